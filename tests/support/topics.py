"""What tests do with a broker, by another client than the one under test: make topics, send records, read what was committed.

All functions block; inside a coroutine call them through `asyncio.to_thread`.
"""

import time
import uuid
from collections.abc import Callable, Iterable
from typing import NamedTuple

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.support.poll import poll_until


class Record(NamedTuple):
    """A record as a read_committed consumer sees it."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def unique(name: str = "test") -> str:
    """A name for a topic or a group that no other test has."""
    return f"{name}-{uuid.uuid4().hex[:12]}"


def create_topic(bootstrap: str, name: str | None = None, partitions: int = 1, config: dict[str, str] | None = None) -> str:
    """Make a topic and wait until every partition has a leader; returns its name, a unique one unless `name` is given.

    On the embedded broker a topic has four partitions, whatever was asked for.
    """
    topic = name or unique()
    admin = AdminClient({"bootstrap.servers": bootstrap})
    if not str(admin.list_topics(timeout=10).cluster_id).startswith("mockCluster"):
        admin.create_topics([NewTopic(topic, partitions, config=config or {})])[topic].result(30)
    poll_until(lambda: _has_leaders(admin, topic), f"leaders of topic {topic}")
    return topic


def _has_leaders(admin: AdminClient, topic: str) -> bool:
    partitions = admin.list_topics(topic, timeout=10).topics[topic].partitions
    return bool(partitions) and all(partition.leader >= 0 for partition in partitions.values())


def produce(
    bootstrap: str,
    topic: str,
    values: Iterable[bytes],
    partition: int = 0,
    key: bytes | None = None,
    timestamp_ms: int | None = None,
) -> None:
    """Send records to one partition, in order, and wait until all are acknowledged."""
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5})
    failed: list[KafkaError] = []

    def acknowledged(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed.append(error)

    stamp = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
    for value in values:
        while True:
            try:
                producer.produce(topic, value, key, partition, on_delivery=acknowledged, timestamp=stamp)
                break
            except BufferError:  # the local queue is full: let deliveries drain
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(60)
    assert not failed, f"records refused: {failed[0]}"
    assert left == 0, f"{left} records not acknowledged within 60 s"


def read_committed(bootstrap: str, topic: str) -> list[Record]:
    """All records of a topic that a read_committed consumer sees now, by partition and offset."""
    return read_until(bootstrap, topic, lambda _: True, "anything")


def read_until(bootstrap: str, topic: str, enough: Callable[[list[Record]], bool], what: str, timeout_s: float = 30.0) -> list[Record]:
    """Read a topic from its start, to the end and further as it grows, until `enough` of the records; returns all that were read.

    `enough` is asked only when every partition was read to its end, so that it sees a whole state.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": unique("reader"),
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 50,
        }
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        unread, records, deadline = set(partitions), list[Record](), time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            message = consumer.poll(0.1)
            if message is None:
                continue
            error = message.error()
            if error is None:
                records.append(_record(message))
                unread.add(message.partition())
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the client's name for this condition
                unread.discard(message.partition())
            else:
                raise KafkaException(error)
            if not unread and enough(records):
                return sorted(records, key=lambda record: (record.partition, record.offset))
        raise AssertionError(f"waited {timeout_s:g} s for {what} on {topic}; read {len(records)} records, the last: {records[-3:]}")
    finally:
        consumer.close()


def _record(message: Message) -> Record:
    headers = {name: value if isinstance(value, bytes) else str(value).encode() for name, value in dict(message.headers() or ()).items()}
    topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
    return Record(topic, partition, offset, message.timestamp()[1], message.key(), message.value(), headers)
