"""Compiled records out of a real consumer: what we rely on inside the client."""

import asyncio

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from anomalyd.kafka.unwrapped import unwrap
from tests.support.topics import create_topic, produce


async def test_records_have_what_we_use_and_are_not_wrapped(kafka: str) -> None:
    topic = await asyncio.to_thread(create_topic, kafka)
    await asyncio.to_thread(produce, kafka, topic, [b"one", b"two"], key=b"k", timestamp_ms=1_700_000_000_123)
    kept = {}
    for unwrapped in (False, True):
        consumer = AIOKafkaConsumer(bootstrap_servers=kafka, group_id=None, enable_auto_commit=False)
        await consumer.start()
        try:
            if unwrapped:
                unwrap(consumer)
            partition = TopicPartition(topic, 0)
            consumer.assign([partition])
            consumer.seek(partition, 0)
            kept[unwrapped] = (await consumer.getmany(timeout_ms=10_000))[partition]
            assert await consumer.position(partition) == 2
        finally:
            await consumer.stop()

    fields = [[(record.offset, record.key, record.value, record.timestamp) for record in records] for records in kept.values()]
    assert fields[0] == fields[1] == [(0, b"k", b"one", 1_700_000_000_123), (1, b"k", b"two", 1_700_000_000_123)]
    assert isinstance(kept[False][0], ConsumerRecord)
    assert not isinstance(kept[True][0], ConsumerRecord)
