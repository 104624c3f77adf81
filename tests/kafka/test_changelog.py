"""The reader of a changelog: what was committed, all of it, in order, and nothing else."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import TopicPartition as AdminPartition

import anomalyd.kafka.changelog as module
from anomalyd.batch import Entry, LogRecord
from anomalyd.errors import DeliveryError, KafkaRefusedError, StateError
from anomalyd.kafka.changelog import ChangelogReader
from anomalyd.kafka.message import Message
from anomalyd.kafka.transactions import TransactionalWriter
from anomalyd.settings import KafkaSettings
from tests.support.poll import until
from tests.support.topics import create_topic, read_committed, unique

OPEN = {"max.message.bytes": str(16 << 20)}


class NoMetrics:
    def dropped(self, kind: str) -> None:
        raise AssertionError(kind)


class Log:
    """A changelog on a real Kafka, written by the real writer."""

    def __init__(self, bootstrap: str, config: Mapping[str, str]) -> None:
        self.settings = KafkaSettings(bootstrap_servers=bootstrap, request_timeout_ms=5_000)
        self.topic = create_topic(bootstrap, unique("changelog"), partitions=2, config=OPEN | dict(config))
        self.alerts = create_topic(bootstrap, unique("alerts"))
        self.id = unique("group")
        self.reader = ChangelogReader(self.settings, self.topic, 1)
        self._writer: TransactionalWriter | None = None

    async def write(self, *entries: tuple[bytes, bytes | None]) -> list[int]:
        """One transaction."""
        if self._writer is None:
            self._writer = TransactionalWriter(self.settings, self.id, self.topic, 1, NoMetrics())
            await self._writer.open()
        return await self._writer.commit([], [Entry(*entry) for entry in entries])

    async def abort(self, *entries: tuple[bytes, bytes | None]) -> None:
        """One that ends when the next writer opens."""
        assert self._writer is not None
        with pytest.raises(DeliveryError):
            await self._writer.commit([Message(self.alerts, 0, None, b"x" * 2_000_000)], [Entry(*entry) for entry in entries])
        await self.close_writer()

    async def close_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    async def read(self, start: int, through: int) -> list[LogRecord]:
        return [record async for records in self.reader.read(start, through) for record in records]


@pytest.fixture
async def make_log(kafka: str) -> AsyncIterator[Callable[..., Any]]:
    made: list[Log] = []

    async def make(**config: str) -> Log:
        made.append(await asyncio.to_thread(Log, kafka, {name.replace("_", "."): value for name, value in config.items()}))
        return made[-1]

    yield make
    for log in made:
        await log.close_writer()
        await log.reader.close()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "the end of all tasks of clients", timeout_s=5)


MakeLog = Callable[..., Any]


@pytest.mark.real_kafka
async def test_exactly_what_was_committed_is_read_past_aborted_transactions_and_markers(make_log: MakeLog) -> None:
    log = await make_log()
    written: list[LogRecord] = []
    for i in range(4):
        entries = [(b"S|%d" % i, b"s" * 300_000), (b"A", None), (b"P", b"%d" % i)]
        written += [LogRecord(offset, *entry) for offset, entry in zip(await log.write(*entries), entries, strict=True)]
        await log.abort((b"S|9", b"never" * 50_000), (b"P", b"never"))
    (through,) = await log.write((b"F", b"fence"))
    written.append(LogRecord(through, b"F", b"fence"))
    await log.write((b"P", b"later"))

    assert await log.reader.first() == 0
    assert await log.read(0, through) == written
    # Again and from elsewhere, as a claim looks for the last position further and further back.
    assert await log.read(through - 5, through) == [record for record in written if record.offset >= through - 5]
    assert await log.read(through, through) == written[-1:]
    assert await log.read(1, through) == written[1:]
    assert await log.read(written[3].offset, written[5].offset) == written[3:6]


@pytest.mark.real_kafka
async def test_a_record_larger_than_a_fetch_arrives(make_log: MakeLog) -> None:
    log = await make_log()
    await log.write((b"S|1", b"a" * 10_000_000), (b"S|2", b"b" * 10_000_000))
    (through,) = await log.write((b"F", b""))

    assert [(record.key, len(record.value or b"")) for record in await log.read(0, through)] == [
        (b"S|1", 10_000_000),
        (b"S|2", 10_000_000),
        (b"F", 0),
    ]


@pytest.mark.real_kafka
async def test_compaction_leaves_gaps_that_hold_nothing_up(make_log: MakeLog, kafka: str) -> None:
    log = await make_log(
        cleanup_policy="compact", segment_bytes=str(1 << 20), min_cleanable_dirty_ratio="0.001", delete_retention_ms="0", segment_ms="100"
    )
    offsets = []
    for i in range(12):
        offsets += await log.write((b"S|%d" % (i % 2), b"%02d" % i * 200_000), (b"P", b"%02d" % i))
        if i % 3 == 0:
            await log.abort((b"P", b"never"))

    async def compacted() -> bool:
        await log.write((b"F", b"f"))  # the active segment is never compacted, and only an append begins another
        kept = await asyncio.to_thread(read_committed, kafka, log.topic)
        return sorted(record.key or b"" for record in kept if record.key != b"F") == [b"P", b"S|0", b"S|1"]

    done: bool = await until(compacted, "compaction", timeout_s=60, interval_s=0.3)
    assert done
    (through,) = await log.write((b"F", b"last"))

    records = await log.read(await log.reader.first(), through)
    latest = {record.key: record.value for record in records}
    assert latest == {b"S|0": b"10" * 200_000, b"S|1": b"11" * 200_000, b"P": b"11", b"F": b"last"}
    assert [record.offset for record in records if record.key != b"F"] == [offsets[-4], *offsets[-2:]]
    # The record at its end may itself be gone: there is a newer one of its key behind it, and that is not asked for.
    assert [record.offset for record in await log.read(0, offsets[-3]) if record.key != b"F"] == [offsets[-4]]


@pytest.mark.real_kafka
async def test_a_log_that_does_not_reach_back_far_enough_is_no_log_to_restore_from(make_log: MakeLog, kafka: str) -> None:
    log = await make_log()
    for i in range(10):
        through = (await log.write((b"P", b"%d" % i)))[0]
    admin = AdminClient({"bootstrap.servers": kafka})
    await asyncio.to_thread(lambda: [done.result(20) for done in admin.delete_records([AdminPartition(log.topic, 1, 6)]).values()])

    assert await log.reader.first() == 6
    with pytest.raises(StateError, match=rf"{log.topic}/1 does not hold offset 2"):
        await log.read(2, through)
    assert [record.offset for record in await log.read(6, through)] == [6, 8, 10, 12, 14, 16, 18]


@pytest.mark.real_kafka
async def test_records_of_clients_without_transactions_are_read_too(make_log: MakeLog, kafka: str) -> None:
    log = await make_log()
    producer = Producer({"bootstrap.servers": kafka, "compression.type": "zstd"})
    for i in range(100):
        producer.produce(log.topic, b"v%d" % i, b"k", 1)
    assert producer.flush(20) == 0

    assert await log.read(98, 99) == [LogRecord(98, b"k", b"v98"), LogRecord(99, b"k", b"v99")]


async def test_with_nobody_there_reading_ends_with_an_error() -> None:
    reader = ChangelogReader(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "log", 0)

    with pytest.raises(DeliveryError):
        await reader.first()
    with pytest.raises(DeliveryError):
        async for _ in reader.read(0, 1):
            pass
    await reader.close()


# --- on a client in memory ------------------------------------------------------------------------------------------


class FakeConsumer:
    """A client that answers as a test says."""

    answers: deque[Exception | list[int]]
    seeks: list[int]

    def __init__(self, **options: object) -> None:
        self._tp = TopicPartition("log", 0)

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    def assign(self, partitions: Sequence[TopicPartition]) -> None:
        assert list(partitions) == [self._tp]

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.seeks.append(offset)

    async def getmany(self, *partitions: TopicPartition, timeout_ms: int) -> Mapping[TopicPartition, Sequence[Any]]:
        await asyncio.sleep(0.01)
        answer = self.answers.popleft() if self.answers else []
        if isinstance(answer, Exception):
            raise answer
        return {self._tp: [SimpleNamespace(offset=offset, key=b"k", value=b"v") for offset in answer]} if answer else {}

    async def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return {self._tp: 0}


async def read(start: int, through: int, *answers: Exception | list[int]) -> list[int]:
    FakeConsumer.answers, FakeConsumer.seeks = deque(answers), []
    reader = ChangelogReader(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "log", 0, make=FakeConsumer)
    return [record.offset async for records in reader.read(start, through) for record in records]


async def test_reading_ends_with_a_record_at_or_behind_the_end_and_never_before() -> None:
    assert await read(3, 9, [3, 4], [], [7], [], [9]) == [3, 4, 7, 9]
    assert await read(3, 9, [3, 8], [], [12, 13]) == [3, 8]
    assert await read(3, 9, [3, 8, 9, 10]) == [3, 8, 9]


async def test_where_nothing_comes_any_more_that_is_an_error_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_S", 0.3)
    began_s = time.monotonic()

    with pytest.raises(DeliveryError, match="nothing to read"):
        await read(3, 9, [3, 8])
    assert time.monotonic() - began_s < 5


async def test_a_batch_that_cannot_be_read_is_tried_again_from_its_beginning() -> None:
    assert await read(3, 9, [3, 4], CorruptRecordException(), CorruptRecordException(), [5, 9]) == [3, 4, 5, 9]
    assert FakeConsumer.seeks == [3, 5, 5]

    with pytest.raises(StateError, match="behind offset 5"):
        await read(3, 9, [3, 4], *[CorruptRecordException()] * 4)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KafkaError("gone"), DeliveryError),
        (KafkaConnectionError("gone"), DeliveryError),
        (OSError("gone"), DeliveryError),
        (TopicAuthorizationFailedError("log"), KafkaRefusedError),
        (OffsetOutOfRangeError({}), StateError),
    ],
)
async def test_errors_of_the_client_become_ours(error: Exception, raised: type[Exception]) -> None:
    with pytest.raises(raised):
        await read(0, 9, [1], error)


async def test_the_installed_client_takes_what_it_is_given() -> None:
    """Options that a client does not know are an error when it is made."""
    made: list[AIOKafkaConsumer] = []

    def make(**options: Any) -> AIOKafkaConsumer:  # noqa: ANN401  the client's own
        made.append(AIOKafkaConsumer(**options))
        return made[-1]

    reader = ChangelogReader(KafkaSettings(bootstrap_servers="127.0.0.1:1"), "log", 0, make=make)
    with pytest.raises(DeliveryError):
        await reader.first()
    assert len(made) == 1
