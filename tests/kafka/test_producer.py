"""The producer keeps the promises of every sink, and those that only Kafka asks of it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiokafka
import pytest
from aiokafka.errors import MessageSizeTooLargeError, OutOfOrderSequenceNumber, TopicAuthorizationFailedError

import anomalyd.kafka.producer as producer_module
from anomalyd.alerts.messages import Message as Alert
from anomalyd.errors import KafkaRefusedError
from anomalyd.kafka.client import Backoff
from anomalyd.kafka.message import TRUNCATED_BYTES, Message, truncated
from anomalyd.kafka.producer import Producer
from anomalyd.settings import KafkaSettings
from tests.support.sinks import SinkContract, SinkKit
from tests.support.topics import create_topic, read_committed


class Dropped:
    """Metrics that remember."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def dropped(self, kind: str) -> None:
        self.kinds.append(kind)


@pytest.fixture
async def producer(kafka: str) -> AsyncIterator[Producer]:
    made = Producer(KafkaSettings(bootstrap_servers=kafka), Dropped())
    await made.start()
    yield made
    await made.stop()


async def values(kafka: str, topic: str) -> list[bytes | None]:
    return [record.value for record in await asyncio.to_thread(read_committed, kafka, topic)]


class TestProducer(SinkContract):
    """The promises of every sink."""

    @pytest.fixture
    async def kit(self, kafka: str, producer: Producer) -> SinkKit:
        topic = await asyncio.to_thread(create_topic, kafka, partitions=2)

        async def deliver(alerts: Any) -> None:  # noqa: ANN401  a sequence of alerts
            await producer.deliver([Message(topic, _partition(alert), alert.key, alert.value) for alert in alerts])

        async def delivered() -> list[tuple[bytes, bytes]]:
            return [(r.key or b"", r.value or b"") for r in await asyncio.to_thread(read_committed, kafka, topic)]

        return SinkKit(deliver, delivered)


def _partition(alert: Alert) -> int:
    return int(json.loads(alert.value)["series"]["labels"]["host"][1:]) + 2


async def test_what_one_input_partition_causes_stays_in_one_partition(kafka: str, producer: Producer) -> None:
    topic = await asyncio.to_thread(create_topic, kafka, partitions=4)

    await producer.deliver([Message(topic, partition, b"k%d" % partition, b"v") for partition in range(8)])

    records = await asyncio.to_thread(read_committed, kafka, topic)
    assert sorted((record.partition, record.key) for record in records) == sorted((p % 4, b"k%d" % p) for p in range(8))


@pytest.mark.real_kafka
async def test_a_dead_letter_that_its_topic_refuses_for_its_size_is_cut_and_holds_up_nothing(kafka: str, producer: Producer) -> None:
    topic = await asyncio.to_thread(create_topic, kafka, config={"max.message.bytes": "5000"})
    headers = (("anomalyd-reason", b"malformed"),)

    await producer.deliver([Message(topic, 0, None, value, headers, dead_letter=True) for value in (b"before", b"x" * 100_000, b"behind")])

    records = {record.value: record.headers for record in await asyncio.to_thread(read_committed, kafka, topic)}
    assert records.keys() == {b"before", b"x" * TRUNCATED_BYTES, b"behind"}
    assert records[b"before"] == {"anomalyd-reason": b"malformed"}
    assert records[b"x" * TRUNCATED_BYTES]["anomalyd-truncated"].startswith(b"100000 bytes")


@pytest.mark.parametrize("failures", [1, 3])
async def test_what_failed_is_sent_again_by_a_new_client(
    kafka: str, producer: Producer, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A send that failed leaves a gap in the sequence numbers, so the old client would fail for ever."""
    topic = await asyncio.to_thread(create_topic, kafka)
    clients = _failing_sends(monkeypatch, failures, OutOfOrderSequenceNumber)
    messages = [Message(topic, 0, b"k", b"%d" % i) for i in range(5)]

    await producer.deliver(messages)

    assert set(await values(kafka, topic)) == {message.value for message in messages}
    assert len(clients) == failures + 1


async def test_a_refusal_ends_the_attempts(kafka: str, producer: Producer, monkeypatch: pytest.MonkeyPatch) -> None:
    topic = await asyncio.to_thread(create_topic, kafka)
    _failing_sends(monkeypatch, 1, lambda: TopicAuthorizationFailedError(topic))

    with pytest.raises(KafkaRefusedError, match="allow"):
        await producer.deliver([Message(topic, 0, b"k", b"v")])


def _failing_sends(monkeypatch: pytest.MonkeyPatch, failures: int, error: Callable[[], Exception]) -> set[aiokafka.AIOKafkaProducer]:
    """The third message (or the only one) of the first sends fails as the broker would have it; returns the clients that were used."""
    send, clients, left = aiokafka.AIOKafkaProducer.send, set[aiokafka.AIOKafkaProducer](), [failures]

    async def failing(self: Any, topic: str, value: bytes, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401  the client's signature
        clients.add(self)
        future = await send(self, topic, value, *args, **kwargs)
        if left[0] and value in {b"2", b"v"}:
            left[0] -= 1
            await future
            future = asyncio.get_running_loop().create_future()
            future.set_exception(error())
        return future

    monkeypatch.setattr(aiokafka.AIOKafkaProducer, "send", failing)
    return clients


def test_a_cut_message_says_what_it_was() -> None:
    cut = truncated(Message("t", 0, b"key", b"abc" * 1_000, (("a", b"b"),)))

    assert cut.value == (b"abc" * 1_000)[:TRUNCATED_BYTES]
    assert cut.key == b"key"
    assert cut.headers[0] == ("a", b"b")
    assert cut.headers[1][0] == "anomalyd-truncated"
    assert cut.headers[1][1].startswith(b"3000 bytes, crc32 ")


class FakeClient:
    """A client in memory: every topic takes `most_bytes` of key and value, and a test decides what becomes of the futures."""

    made = 0
    most_bytes = 5_000
    written: list[tuple[bytes | None, bytes]]
    outcomes: list[Callable[[asyncio.Future[None]], object]]

    def __init__(self, **_: object) -> None:
        type(self).made += 1

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    async def send(
        self, topic: str, value: bytes, key: bytes | None, *, partition: int, headers: list[tuple[str, bytes]]
    ) -> asyncio.Future[None]:
        del topic, partition, headers
        future = asyncio.get_running_loop().create_future()
        if len(key or b"") + len(value) > self.most_bytes:
            future.set_exception(MessageSizeTooLargeError("too large"))
        elif self.outcomes:
            self.outcomes.pop(0)(future)
        else:
            self.written.append((key, value))
            future.set_result(None)
        return future


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    FakeClient.made, FakeClient.written, FakeClient.outcomes = 0, [], []
    monkeypatch.setattr(producer_module, "AIOKafkaProducer", FakeClient)
    return FakeClient


@pytest.fixture
def dropped() -> Dropped:
    return Dropped()


@pytest.fixture
def offline(fake: type[FakeClient], dropped: Dropped) -> Producer:
    """A producer whose client is the one in memory."""
    del fake
    return Producer(KafkaSettings(bootstrap_servers="127.0.0.1:1", request_timeout_ms=1_000), dropped)


async def test_a_dead_letter_is_cut_in_key_and_value(offline: Producer, fake: type[FakeClient], dropped: Dropped) -> None:
    """An oversize key with a small value used to be sent again for ever, without a pause."""
    letters = [(b"k" * 9_000, b"v"), (b"k" * 9_000, b"v" * 9_000), (None, b"v" * 9_000), (b"k", b"behind")]

    await offline.deliver([Message("t", 0, key, value, dead_letter=True) for key, value in letters])

    kib = TRUNCATED_BYTES
    assert set(fake.written) == {(b"k" * kib, b"v"), (b"k" * kib, b"v" * kib), (None, b"v" * kib), (b"k", b"behind")}
    assert dropped.kinds == []


async def test_an_alert_that_is_too_large_is_dropped_whole(offline: Producer, fake: type[FakeClient], dropped: Dropped) -> None:
    """Cut JSON would break whoever reads it."""
    await offline.deliver([Message("t", 0, b"k", b"{" * 9_000), Message("t", 0, b"k", b"{}")])

    assert fake.written == [(b"k", b"{}")]
    assert dropped.kinds == ["alert"]


async def test_what_does_not_fit_even_when_cut_holds_up_nothing(
    offline: Producer, fake: type[FakeClient], dropped: Dropped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeClient, "most_bytes", 100)

    await offline.deliver([Message("t", 0, b"k", b"v" * 9_000, dead_letter=True), Message("t", 0, b"k", b"v", dead_letter=True)])

    assert fake.written == [(b"k", b"v")]
    assert dropped.kinds == ["dead-letter"]


async def test_a_refused_size_beside_another_failure_pauses_before_the_next_attempt(
    offline: Producer, fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    def next_s(_: Backoff) -> float:
        delays.append(0.0)
        return 0.0

    monkeypatch.setattr(Backoff, "next_s", next_s)
    fake.outcomes += [lambda future: future.set_exception(OutOfOrderSequenceNumber())] * 4

    await offline.deliver([Message("t", 0, b"k", b"v"), Message("t", 0, b"k", b"v" * 9_000, dead_letter=True)])

    assert fake.written == [(b"k", b"v"), (b"k", b"v" * TRUNCATED_BYTES)]
    assert len(delays) == 2


async def test_a_cancelled_send_is_no_acknowledgement(offline: Producer, fake: type[FakeClient]) -> None:
    fake.outcomes.append(lambda future: future.cancel())

    await offline.deliver([Message("t", 0, b"k", b"v")])

    assert fake.written == [(b"k", b"v")]
    assert fake.made == 2


async def test_a_client_that_never_acknowledges_is_replaced(offline: Producer, fake: type[FakeClient]) -> None:
    fake.outcomes.append(lambda _: None)

    async with asyncio.timeout(20):
        await offline.deliver([Message("t", 0, b"k", b"v")])

    assert fake.written == [(b"k", b"v")]
    assert fake.made == 2
