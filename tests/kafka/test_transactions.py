"""Writers: everything or nothing, nobody else, and never a success that is none."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NoError,
    NotCoordinatorError,
    OperationNotAttempted,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from confluent_kafka.admin import AdminClient

from anomalyd.batch import Entry
from anomalyd.errors import DeliveryError, FencedError, KafkaRefusedError, TooLargeError
from anomalyd.kafka.message import TRUNCATED_BYTES, Message, truncated
from anomalyd.kafka.transactions import PlainWriter, TransactionalWriter
from anomalyd.kafka.watch import Watch
from anomalyd.settings import KafkaSettings
from tests.support.kafka import Cluster
from tests.support.poll import until
from tests.support.topics import Record, create_topic, read_committed, unique

Writer = TransactionalWriter | PlainWriter


class Dropped:
    """Metrics that remember."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def dropped(self, kind: str) -> None:
        self.kinds.append(kind)


class Place:
    """Topics of a test, and writers for them."""

    def __init__(self, bootstrap: str, *, changelog: dict[str, str] | None = None, alerts: dict[str, str] | None = None) -> None:
        self.bootstrap = bootstrap
        self.alerts = create_topic(bootstrap, unique("alerts"), partitions=2, config=alerts)
        self.changelog = create_topic(
            bootstrap, unique("changelog"), partitions=2, config={"max.message.bytes": "8388608"} | (changelog or {})
        )
        self.id = unique("group") + ".input.1"
        self.dropped = Dropped()
        self.writers: list[Writer] = []

    async def writer(self, kind: str = "transactional", *, timeout_ms: int = 5_000, make: Callable[..., Any] = AIOKafkaProducer) -> Writer:
        settings = KafkaSettings(bootstrap_servers=self.bootstrap, request_timeout_ms=timeout_ms)
        made: Writer = (
            TransactionalWriter(settings, self.id, self.changelog, 1, self.dropped, make=make)
            if kind == "transactional"
            else PlainWriter(settings, self.changelog, 1, self.dropped, make=make)
        )
        self.writers.append(made)
        await made.open()
        return made

    def alert(self, value: bytes, **more: Any) -> Message:  # noqa: ANN401  fields of a message
        return Message(self.alerts, 1, b"k", value, **more)

    async def read(self, topic: str) -> list[Record]:
        return await asyncio.to_thread(read_committed, self.bootstrap, topic)

    async def values(self, topic: str) -> list[bytes | None]:
        return [record.value for record in await self.read(topic)]

    async def close(self) -> None:
        for writer in self.writers:
            await writer.close()


class MakePlace:
    def __init__(self) -> None:
        self.made: list[Place] = []

    async def __call__(self, bootstrap: str, **config: dict[str, str]) -> Place:
        self.made.append(await asyncio.to_thread(lambda: Place(bootstrap, **config)))
        return self.made[-1]


@pytest.fixture
async def make_place() -> AsyncIterator[MakePlace]:
    made = MakePlace()
    yield made
    for place in made.made:
        await place.close()
    # Nothing of a closed writer lives on: it could write when nobody expects it any more.
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks of writers", timeout_s=5)


both = pytest.mark.parametrize("kind", ["transactional", "plain"])


# --- on a real Kafka ------------------------------------------------------------------------------------------------


@both
@pytest.mark.real_kafka
async def test_everything_arrives_where_it_belongs_and_offsets_are_those_of_the_log(kafka: str, make_place: MakePlace, kind: str) -> None:
    place = await make_place(kafka)
    writer = await place.writer(kind)
    offsets = []
    for i in range(5):
        messages = [place.alert(b"a%d" % i), Message(place.alerts, 2, None, b"b%d" % i, (("why", b"x"),))]
        offsets += await writer.commit(messages, [Entry(b"S", b"s" * 600_000), Entry(b"A", None), Entry(b"P", b"%d" % i)])

    alerts = await place.read(place.alerts)
    assert [(record.partition, record.value) for record in alerts] == [
        *((0, b"b%d" % i) for i in range(5)),
        *((1, b"a%d" % i) for i in range(5)),
    ]
    assert alerts[0].headers == {"why": b"x"}
    log = await place.read(place.changelog)
    assert [record.offset for record in log] == offsets
    assert {record.partition for record in log} == {1}
    assert [(record.key, record.value and record.value[:1]) for record in log[-3:]] == [(b"S", b"s"), (b"A", None), (b"P", b"4")]


@pytest.mark.real_kafka
async def test_a_second_writer_fences_the_first_and_ends_its_open_transaction(kafka: str, make_place: MakePlace) -> None:
    place = await make_place(kafka)
    first, torn = await place.writer(), await place.writer(make=lambda **more: Stuck(AIOKafkaProducer(**more)))
    with pytest.raises(FencedError):
        await first.commit([], [Entry(b"P", b"first")])

    # Its records are in the logs, and nothing has decided about them.
    with pytest.raises(DeliveryError):
        await torn.commit([place.alert(b"torn")], [Entry(b"P", b"torn")])
    last = await place.writer()
    (offset,) = await last.commit([place.alert(b"last")], [Entry(b"P", b"last")])

    assert await place.values(place.alerts) == [b"last"]
    assert [(record.offset, record.value) for record in await place.read(place.changelog)] == [(offset, b"last")]
    assert offset > 1


class Stuck:
    """A producer whose commit does not even leave the process."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever it is
        return getattr(self._producer, name)

    async def commit_transaction(self) -> None:
        raise KafkaConnectionError("cut off")


@both
@pytest.mark.real_kafka
async def test_a_dead_letter_that_its_topic_refuses_for_its_size_is_cut_and_holds_up_nothing(
    kafka: str, make_place: MakePlace, kind: str
) -> None:
    place = await make_place(kafka)
    messages = [place.alert(value, kind="dead-letter") for value in (b"before", b"x" * 2_000_000, b"behind")]
    with pytest.raises(TooLargeError) as refused:
        await (await place.writer(kind)).commit(messages, [Entry(b"P", b"1")])
    assert not await place.read(place.changelog)
    assert refused.value.instead is not None

    await (await place.writer(kind)).commit(refused.value.instead, [Entry(b"P", b"2")], singly=True)

    records = {record.value: record.headers for record in await place.read(place.alerts)}
    assert records.keys() == {b"before", b"x" * TRUNCATED_BYTES, b"behind"}
    assert records[b"x" * TRUNCATED_BYTES]["anomalyd-truncated"].startswith(b"2000000 bytes")
    assert await place.values(place.changelog) == [b"2"]


@both
@pytest.mark.real_kafka
async def test_of_messages_below_a_batch_those_that_are_too_large_are_found_one_by_one(
    kafka: str, make_place: MakePlace, kind: str
) -> None:
    """A topic that takes less than one of our batches refuses all that is in it; and a refused message leaves a gap in the sequence."""
    place = await make_place(kafka, alerts={"max.message.bytes": "5000"})
    messages = [
        place.alert(b"0"),
        place.alert(b"{" * 9_000),
        place.alert(b"1"),
        place.alert(b"x" * 9_000, kind="dead-letter"),
        place.alert(b"2"),
        place.alert(b"x" * 9_000)._replace(key=None),
    ]
    with pytest.raises(TooLargeError) as refused:
        await (await place.writer(kind)).commit(messages, [Entry(b"P", b"1")])
    assert refused.value.instead is None

    with pytest.raises(TooLargeError) as refused:
        await (await place.writer(kind)).commit(messages, [Entry(b"P", b"2")], singly=True)
    assert refused.value.instead == [messages[0], messages[2], truncated(messages[3]), messages[4]]
    assert place.dropped.kinds == ["alert", "alert"]
    assert not await place.read(place.changelog)

    await (await place.writer(kind)).commit(refused.value.instead, [Entry(b"P", b"3")], singly=True)
    assert (await place.values(place.alerts))[-4:] == [b"0", b"1", b"x" * TRUNCATED_BYTES, b"2"]
    assert await place.values(place.changelog) == [b"3"]


@both
@pytest.mark.real_kafka
async def test_small_messages_that_are_too_large_together_go_out_singly(kafka: str, make_place: MakePlace, kind: str) -> None:
    place = await make_place(kafka, alerts={"max.message.bytes": "5000"})
    messages = [place.alert(b"%d" % i * 1_000) for i in range(10)]
    with pytest.raises(TooLargeError) as refused:
        await (await place.writer(kind)).commit(messages, [Entry(b"P", b"1")])
    assert refused.value.instead is None

    await (await place.writer(kind)).commit(messages, [Entry(b"P", b"2")], singly=True)

    assert (await place.values(place.alerts))[-10:] == [message.value for message in messages]
    assert place.dropped.kinds == []


@both
@pytest.mark.real_kafka
async def test_a_changelog_that_refuses_a_page_is_a_fault_that_the_operator_is_told(kafka: str, make_place: MakePlace, kind: str) -> None:
    place = await make_place(kafka, changelog={"max.message.bytes": "100000"})

    with pytest.raises(KafkaRefusedError, match=rf"{place.changelog}.*200003 bytes.*max\.message\.bytes"):
        await (await place.writer(kind)).commit([place.alert(b"a")], [Entry(b"S|1", b"s" * 200_000), Entry(b"P", b"1")])


@pytest.mark.real_kafka
async def test_commits_in_quick_succession_are_certain(kafka: str, make_place: MakePlace) -> None:
    """Each finds brokers still marking the one before, and is told to come again: that is no doubt."""
    codes: list[int] = []
    place = await make_place(kafka)
    writer = await place.writer(make=lambda **more: listening(AIOKafkaProducer(**more), codes))

    for i in range(20):
        await writer.commit([place.alert(b"%d" % i)], [Entry(b"P", b"%d" % i)])

    assert ConcurrentTransactions.errno in codes
    assert await place.values(place.changelog) == [b"%d" % i for i in range(20)]


def listening(producer: AIOKafkaProducer, codes: list[int]) -> AIOKafkaProducer:
    send = producer.client.send

    async def listen(node: int, request: Any, **more: Any) -> Any:  # noqa: ANN401  the client's own
        response = await send(node, request, **more)
        if type(request).__name__ == "AddPartitionsToTxnRequest":
            codes.extend(code for _, partitions in response.errors for _, code in partitions)
        return response

    producer.client.send = listen
    return producer


@pytest.mark.real_kafka
@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_that_the_client_repeated_is_in_doubt_although_it_reports_success(
    kafka: str, make_place: MakePlace, arrives: bool
) -> None:
    """The first attempt may still be under way and decide the next transaction."""
    place = await make_place(kafka)
    lost: list[object] = []
    writer = await place.writer(make=lambda **more: losing(AIOKafkaProducer(**more), lost, arrives=arrives))

    with pytest.raises(DeliveryError, match=r"doubt.*EndTxn"):
        await writer.commit([place.alert(b"a")], [Entry(b"P", b"1")])

    assert len(lost) == 1
    assert await place.values(place.changelog) == [b"1"]  # which is what a reader of the tail would find out
    with pytest.raises(DeliveryError, match="failed before"):
        await writer.commit([], [Entry(b"P", b"2")])


def losing(producer: AIOKafkaProducer, lost: list[object], *, arrives: bool) -> AIOKafkaProducer:
    """Loses the first request that ends a transaction, or its answer."""
    send = producer.client.send

    async def lose(node: int, request: Any, **more: Any) -> Any:  # noqa: ANN401  the client's own
        if type(request).__name__ != "EndTxnRequest" or lost:
            return await send(node, request, **more)
        lost.append(await send(node, request, **more) if arrives else request)
        raise RequestTimedOutError

    producer.client.send = lose
    return producer


@pytest.mark.real_kafka
@pytest.mark.parametrize("held", ["AddPartitionsToTxnRequest", "ProduceRequest", "EndTxnRequest"])
async def test_what_a_closed_writer_had_under_way_is_never_sent(kafka: str, make_place: MakePlace, held: str) -> None:
    place = await make_place(kafka)
    let_go, late = asyncio.Event(), list[str]()
    writer = await place.writer(timeout_ms=1_000, make=lambda **more: holding(AIOKafkaProducer(**more), held, let_go, late))
    with pytest.raises(DeliveryError):
        await writer.commit([place.alert(b"a")], [Entry(b"S", b"s" * 600_000), Entry(b"P", b"1")])

    began_s = time.monotonic()
    await writer.close()
    assert time.monotonic() - began_s < 2
    let_go.set()

    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks of the writer", timeout_s=5)
    assert late == []


def holding(producer: AIOKafkaProducer, held: str, let_go: asyncio.Event, late: list[str]) -> AIOKafkaProducer:
    """Requests of a kind wait, as for a connection."""
    send = producer.client.send

    async def hold(node: int, request: Any, **more: Any) -> Any:  # noqa: ANN401  the client's own
        if type(request).__name__ == held:
            await let_go.wait()
        if let_go.is_set():
            late.append(type(request).__name__)
        return await send(node, request, **more)

    producer.client.send = hold
    return producer


@both
@pytest.mark.slow
async def test_while_brokers_are_away_every_call_ends_in_time(breakable_kafka: Cluster, make_place: MakePlace, kind: str) -> None:
    place = await make_place(breakable_kafka.bootstrap_servers)
    writer = await place.writer(kind, timeout_ms=2_000)
    await writer.commit([place.alert(b"0")], [Entry(b"P", b"0")])
    (broker,) = breakable_kafka.brokers

    # It takes the bytes and does not answer.
    broker.freeze()
    began_s = time.monotonic()
    with pytest.raises(DeliveryError):
        await writer.commit([place.alert(b"1")], [Entry(b"P", b"1")])
    assert time.monotonic() - began_s < 10
    began_s = time.monotonic()
    await writer.close()
    assert time.monotonic() - began_s < 10
    broker.thaw()
    writer = await place.writer(kind, timeout_ms=2_000)
    await writer.commit([], [Entry(b"P", b"2")])
    if kind == "transactional":
        assert await place.values(place.alerts) == [b"0"]
        assert await place.values(place.changelog) == [b"0", b"2"]

    # Nobody is there.
    broker.kill()
    began_s = time.monotonic()
    with pytest.raises(DeliveryError):
        await writer.commit([place.alert(b"3")], [Entry(b"P", b"3")])
    await writer.close()
    with pytest.raises(DeliveryError):
        await place.writer(kind, timeout_ms=2_000)
    assert time.monotonic() - began_s < 20


@pytest.mark.slow
@pytest.mark.timeout(300)  # three brokers start, and two of them once more
async def test_a_leader_that_dies_in_a_transaction_leaves_all_of_it_or_nothing(kafka_cluster: Cluster, make_place: MakePlace) -> None:
    place = await make_place(kafka_cluster.bootstrap_servers)
    certain, doubtful = list[int](), list[int]()
    writer: Writer | None = None

    async def commit(i: int) -> None:
        nonlocal writer
        try:
            writer = writer or await place.writer(timeout_ms=3_000)
        except DeliveryError:
            return
        try:
            await writer.commit([place.alert(b"%d" % i)] * 3, [Entry(b"S", b"%d" % i * 50_000), Entry(b"P", b"%d" % i)])
            certain.append(i)
        except DeliveryError:
            doubtful.append(i)
            await writer.close()
            writer = None

    for i in range(5):
        await commit(i)
    killed = [await asyncio.to_thread(leader, place, kafka_cluster, topic) for topic in (place.changelog, "__transaction_state")]
    i = 5
    for node in dict.fromkeys(killed):
        dying = asyncio.create_task(commit(i))
        await asyncio.sleep(0)
        await asyncio.to_thread(kafka_cluster.brokers[node - 1].kill)
        await dying
        before, i = len(certain), i + 1
        deadline_s = time.monotonic() + 60
        while len(certain) < before + 3:
            assert time.monotonic() < deadline_s, "no commit succeeds after a broker's death"
            await commit(i)
            i += 1
        kafka_cluster.brokers[node - 1].start()
        await asyncio.to_thread(kafka_cluster.ensure_up)

    alerts = [int(value or b"") for value in await place.values(place.alerts)]
    state = [record for record in await place.read(place.changelog) if record.key == b"P"]
    pages = [record for record in await place.read(place.changelog) if record.key == b"S"]
    written = [int(record.value or b"") for record in state]
    assert written == sorted(set(written))
    assert sorted(alerts) == sorted(written * 3)
    assert len(pages) == len(written)
    assert set(certain) <= set(written) <= {*certain, *doubtful}


def leader(place: Place, cluster: Cluster, topic: str) -> int:
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    return int(partitions[max(partitions)].leader)


# --- on a client in memory ------------------------------------------------------------------------------------------


class Written(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    partition: int


class FakeProducer:
    """A client whose sends and calls come out as a test says. What it cannot say itself is nothing that writers may rely on."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401  the client's own
        self.options = options
        self.log: list[str | Written] = []
        self.outcomes: dict[bytes | None, Exception | None] = {}
        self.opening: Callable[[], Awaitable[None]] | None = None
        self.committing: Callable[[], Awaitable[None]] | None = None
        self.offset = 0

    async def start(self) -> None:
        if self.opening is not None:
            await self.opening()

    async def stop(self) -> None:
        self.log.append("stop")

    async def partitions_for(self, topic: str) -> set[int]:
        return {0, 1}

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[Any]:
        self.log.append(Written(topic, key, value, partition))
        future = asyncio.get_running_loop().create_future()
        if value in self.outcomes:
            error = self.outcomes[value]
            if error is not None:
                future.set_exception(error)
        else:
            self.offset += 1
            asyncio.get_running_loop().call_soon(future.set_result, SimpleNamespace(offset=self.offset))
        return future

    async def begin_transaction(self) -> None:
        self.log.append("begin")

    async def commit_transaction(self) -> None:
        self.log.append("commit")
        if self.committing is not None:
            await self.committing()


class Kit:
    """A writer and the client in memory under it."""

    def __init__(self, kind: str = "transactional") -> None:
        self.producer = FakeProducer()
        self.dropped = Dropped()
        settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", group_id="mine", request_timeout_ms=1_000)
        self.writer: Writer = (
            TransactionalWriter(settings, "mine.in.0", "log", 1, self.dropped, make=self._made)
            if kind == "transactional"
            else PlainWriter(settings, "log", 1, self.dropped, make=self._made)
        )

    def _made(self, **options: Any) -> FakeProducer:  # noqa: ANN401  the client's own
        self.producer.options = options
        return self.producer

    async def commit(self, **more: bool) -> list[int]:
        if "stop" not in self.producer.log and not self.producer.log:
            await self.writer.open()
        return await self.writer.commit([Message("alerts", 3, b"k", b"a")], [Entry(b"S", b"s"), Entry(b"P", b"p")], **more)


@both
@pytest.mark.parametrize("value", [b"a", b"s", b"p"])
@pytest.mark.parametrize("error", [OutOfOrderSequenceNumber(), KafkaConnectionError("gone"), InvalidTxnState()])
async def test_a_record_that_failed_is_no_success_though_the_commit_would_be_one(kind: str, value: bytes, error: Exception) -> None:
    """A failed batch tells only its own futures."""
    kit = Kit(kind)
    kit.producer.outcomes[value] = error

    with pytest.raises(DeliveryError):
        await kit.commit()

    assert "commit" not in kit.producer.log


@both
async def test_a_record_that_is_never_acknowledged_ends_in_time(kind: str) -> None:
    kit = Kit(kind)
    kit.producer.outcomes[b"s"] = None

    async with asyncio.timeout(10):
        with pytest.raises(DeliveryError, match="not acknowledged"):
            await kit.commit()

    assert "commit" not in kit.producer.log


@both
async def test_closing_a_writer_ends_what_it_is_doing(kind: str) -> None:
    kit = Kit(kind)
    kit.producer.outcomes[b"p"] = None
    committing = asyncio.create_task(kit.commit())
    await until(lambda: Written("log", b"P", b"p", 1) in kit.producer.log, "the last record")

    began_s = time.monotonic()
    await kit.writer.close()

    with pytest.raises(DeliveryError):
        await committing
    assert time.monotonic() - began_s < 0.5
    assert "commit" not in kit.producer.log


async def test_without_transactions_the_position_comes_last_and_only_behind_what_is_acknowledged() -> None:
    kit = Kit("plain")
    kit.producer.outcomes[b"s"] = KafkaError("lost")

    with pytest.raises(DeliveryError):
        await kit.commit()

    assert [sent.value for sent in kit.producer.log if isinstance(sent, Written)] == [b"a", b"s"]


@pytest.mark.parametrize("error", [ProducerFenced(), InvalidProducerEpoch()])
async def test_another_writer_is_recognised(error: Exception) -> None:
    kit = Kit()
    kit.producer.outcomes[b"p"] = error
    with pytest.raises(FencedError):
        await kit.commit()

    kit = Kit()
    kit.producer.committing = failing(wrapped(error))
    with pytest.raises(FencedError):
        await kit.commit()


def wrapped(error: Exception) -> Exception:
    """As the client does it with what ends its sender."""
    outer: Exception = KafkaError("Unexpected error during batch delivery")
    outer.__cause__ = error
    return outer


def failing(error: Exception) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (TransactionalIdAuthorizationFailed("mine.in.0"), "Write on transactional id mine.in.0; `anomalyd topics rights`"),
        (TopicAuthorizationFailedError("log"), "allow"),
    ],
)
async def test_a_refusal_is_told_with_what_to_do(error: Exception, advice: str) -> None:
    opening, sending, committing = Kit(), Kit(), Kit()
    opening.producer.opening = failing(error)
    sending.producer.outcomes[b"a"] = error
    committing.producer.committing = failing(wrapped(error))

    for kit in (opening, sending, committing):
        with pytest.raises(KafkaRefusedError, match=advice):
            await kit.commit()


@pytest.mark.parametrize(
    "error", [KafkaError("unknown to the client"), AssertionError("state"), OSError("net"), KafkaConnectionError("away")]
)
async def test_errors_that_nobody_expects_are_doubts(error: Exception) -> None:
    kit = Kit()
    kit.producer.committing = failing(error)
    with pytest.raises(DeliveryError):
        await kit.commit()

    kit = Kit()
    kit.producer.opening = failing(error)
    with pytest.raises(DeliveryError):
        await kit.writer.open()
    assert kit.producer.log == ["stop"]


async def test_of_a_client_that_cannot_be_watched_only_a_quick_commit_is_certain() -> None:
    """Before it repeats a request it sleeps, so that a commit that took less time was not repeated."""
    kit = Kit()
    kit.producer.committing = lambda: asyncio.sleep(0.2)

    with pytest.raises(DeliveryError, match="doubt"):
        await kit.commit()

    assert await Kit().commit() == [2, 3]


async def test_after_an_error_a_writer_is_not_used_again() -> None:
    kit = Kit()
    kit.producer.outcomes[b"p"] = KafkaError("once")
    with pytest.raises(DeliveryError):
        await kit.commit()
    kit.producer.outcomes.clear()

    with pytest.raises(DeliveryError, match="failed before"):
        await kit.commit()
    assert "commit" not in kit.producer.log


async def test_a_refused_size_beside_another_failure_counts() -> None:
    """The other failure may be its consequence: a gap in the sequence. Nothing was committed in either case."""
    kit = Kit()
    kit.producer.outcomes |= {b"a": MessageSizeTooLargeError(), b"p": OutOfOrderSequenceNumber()}

    with pytest.raises(TooLargeError):
        await kit.commit()
    assert "commit" not in kit.producer.log


class Narrow(FakeProducer):
    """For a topic that takes requests up to a size; a refused one leaves a gap in the sequence."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.requests: list[int] = []
        self._gap = False
        self._waiting: list[tuple[int, asyncio.Future[Any]]] = []

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[Any]:
        if topic != "alerts":
            return await super().send(topic, value, key, partition=partition, headers=headers)
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((len(value or b""), future))
        return future

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        size = sum(one for one, _ in waiting)
        self.requests.append(size)
        error = MessageSizeTooLargeError() if size > self.most else OutOfOrderSequenceNumber() if self._gap else None
        self._gap = self._gap or error is not None
        for _, future in waiting:
            if error is None:
                future.set_result(SimpleNamespace(offset=1))
            else:
                future.set_exception(error)


async def singly(most: int, messages: Sequence[Message], together: int) -> Narrow:
    kit = Kit()
    narrow = kit.producer = Narrow(most)
    await kit.writer.open()
    await kit.writer.commit(messages, [Entry(b"P", b"p")], singly=together)
    return narrow


async def test_messages_that_are_looked_at_for_their_size_soon_travel_together() -> None:
    """One round trip for every few of tens of thousands of alerts would outlast the transaction, each time again."""
    messages = [Message("alerts", 0, b"k", b"x" * 5_000) for _ in range(2_000)]
    topic = await singly(1_000_000, messages, 512 << 10)

    assert sum(topic.requests) == 10_000_000
    assert len(topic.requests) < 40
    assert max(topic.requests) <= 512 << 10


async def test_a_topic_that_takes_less_together_is_offered_less_until_it_takes_all() -> None:
    messages = [Message("alerts", 0, b"k", b"x" * 1_000) for _ in range(500)]
    with pytest.raises(TooLargeError) as refused:
        await singly(30_000, messages, 512 << 10)
    assert (refused.value.instead, refused.value.together) == (None, 16 << 10)

    topic = await singly(30_000, messages, refused.value.together)

    assert max(topic.requests) <= 30_000
    assert len(topic.requests) < 50


async def test_what_is_too_large_is_found_among_many_that_are_not() -> None:
    messages = [Message("alerts", 0, b"k", b"x" * 1_000) for _ in range(500)]
    messages[300] = messages[300]._replace(value=b"x" * 60_000, kind="dead-letter")

    with pytest.raises(TooLargeError) as refused:
        await singly(50_000, messages, 32_000)

    assert refused.value.instead == [*messages[:300], truncated(messages[300]), *messages[301:]]


# --- the watch ------------------------------------------------------------------------------------------------------


class EndTxnRequest:
    """As the client names it."""


class AddPartitionsToTxnRequest:
    """As the client names it."""


class ProduceRequest:
    """As the client names it."""


class MetadataRequest:
    """As the client names it."""


def ended(error: type[Exception]) -> SimpleNamespace:
    return SimpleNamespace(error_code=getattr(error, "errno", 0))


def added(*errors: type[Exception]) -> SimpleNamespace:
    return SimpleNamespace(errors=[("t", [(i, getattr(error, "errno", 0)) for i, error in enumerate(errors)])])


GOOD = [(AddPartitionsToTxnRequest, added(NoError, NoError)), (ProduceRequest, None), (EndTxnRequest, ended(NoError))]


@pytest.mark.parametrize(
    ("requests", "doubt"),
    [
        (GOOD, False),
        ([(MetadataRequest, KafkaConnectionError("x")), *GOOD], False),
        ([(AddPartitionsToTxnRequest, added(ConcurrentTransactions, OperationNotAttempted)), *GOOD], False),
        ([(AddPartitionsToTxnRequest, added(NotCoordinatorError)), *GOOD], True),
        ([(AddPartitionsToTxnRequest, RequestTimedOutError()), *GOOD], True),
        ([(ProduceRequest, KafkaConnectionError("x")), *GOOD], True),
        ([*GOOD[:2], (EndTxnRequest, RequestTimedOutError()), GOOD[2]], True),
        ([*GOOD[:2], (EndTxnRequest, ended(CoordinatorNotAvailableError)), GOOD[2]], True),
        ([*GOOD[:2], (EndTxnRequest, ended(ConcurrentTransactions)), GOOD[2]], True),
        (GOOD[:2], True),
    ],
)
async def test_a_transaction_is_certain_if_its_requests_went_through_at_the_first_attempt(
    requests: Sequence[tuple[type, Any]], doubt: bool
) -> None:
    answers = [answer for _, answer in requests]

    async def send(node_id: int, request: object, **more: object) -> Any:  # noqa: ANN401  a response
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    producer = SimpleNamespace(client=SimpleNamespace(send=send))
    watch = Watch.of(producer)
    assert watch is not None
    watch.begin()
    for kind, answer in requests:
        if isinstance(answer, Exception):
            with pytest.raises(type(answer)):
                await producer.client.send(1, kind())
        else:
            await producer.client.send(1, kind())

    assert (watch.doubt() is not None) == doubt


async def test_a_silenced_client_sends_nothing_and_gives_up_what_waits() -> None:
    sent: list[object] = []
    connected = asyncio.Event()

    async def send(node_id: int, request: object, **more: object) -> None:
        await connected.wait()
        sent.append(request)

    producer = SimpleNamespace(client=SimpleNamespace(send=send))
    watch = Watch.of(producer)
    assert watch is not None
    waiting = asyncio.create_task(producer.client.send(1, EndTxnRequest()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    watch.silence()
    connected.set()

    with pytest.raises(ProducerClosed):
        await waiting
    with pytest.raises(ProducerClosed):
        await producer.client.send(1, EndTxnRequest())
    assert sent == []


async def test_the_installed_client_is_one_that_can_be_watched_and_emptied() -> None:
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1", transactional_id="x")

    assert Watch.of(producer) is not None
    assert producer._message_accumulator._batches == {}  # noqa: SLF001  what discard() empties
    assert producer._message_accumulator._pending_batches == set()  # noqa: SLF001  likewise
    assert producer._txn_manager._transaction_waiter is None  # noqa: SLF001  likewise
    assert producer.client._conns == {}  # noqa: SLF001  likewise
    assert producer.client._md_update_fut is None  # noqa: SLF001  likewise
    await producer.stop()
