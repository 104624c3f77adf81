"""Whole topics for those who only learn from them."""

import asyncio
from collections.abc import Callable

import pytest
from aiokafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from anomalyd.errors import KafkaUnavailableError
from anomalyd.kafka.intake import Intake
from anomalyd.settings import KafkaSettings
from tests.support.kafka import Cluster
from tests.support.topics import create_topic, produce


def intake(bootstrap: str, topic: str) -> Intake:
    return Intake(KafkaSettings(bootstrap_servers=bootstrap, request_timeout_ms=3_000), [topic], None)


async def read(source: Intake, enough: Callable[[list[bytes | None]], bool], timeout_s: float = 60.0) -> list[bytes | None]:
    """Polls until it is enough."""
    found: list[bytes | None] = []
    async with asyncio.timeout(timeout_s):
        while not enough(found):
            found += [record.value for taken in await source.poll() for record in taken.records]
    return found


@pytest.mark.real_kafka
async def test_partitions_that_are_added_are_read_from_their_beginning(kafka: str) -> None:
    topic = await asyncio.to_thread(create_topic, kafka)
    await asyncio.to_thread(produce, kafka, topic, [b"first"])
    source = intake(kafka, topic)
    try:
        assert await read(source, bool) == [b"first"]
        admin = AdminClient({"bootstrap.servers": kafka})
        await asyncio.to_thread(admin.create_partitions([NewPartitions(topic, 3)])[topic].result, 30)
        await asyncio.to_thread(produce, kafka, topic, [b"added"], 2)
        await asyncio.to_thread(produce, kafka, topic, [b"as ever"], 0)

        assert sorted(map(bytes, filter(None, await read(source, lambda found: len(found) >= 2)))) == [b"added", b"as ever"]
    finally:
        await source.close()


async def test_a_topic_that_is_gone_is_named() -> None:
    """The client says that nobody answers, and goes on."""

    class Deleted:
        async def getmany(self, **_: int) -> dict[TopicPartition, list[bytes]]:
            return {}

        def partitions_for_topic(self, _: str) -> None:
            return None

        async def end_offsets(self, _: list[TopicPartition]) -> dict[TopicPartition, int]:
            raise TimeoutError

        async def topics(self) -> set[str]:
            return {"another"}

    source = Intake(KafkaSettings(bootstrap_servers="127.0.0.1:1"), ["alerts", "another"], None, ours=True)
    source._client = Deleted()  # noqa: SLF001  a broker that deletes would take minutes of the client's patience

    with pytest.raises(KafkaUnavailableError, match=r"^topic alerts missing, .*make with: anomalyd topics create"):
        await source.poll()


async def test_brokers_that_are_away_are_told_and_nothing_is_lost(breakable_kafka: Cluster) -> None:
    """The client raises nothing: it just finds no records."""
    topic = await asyncio.to_thread(create_topic, breakable_kafka.bootstrap_servers)
    await asyncio.to_thread(produce, breakable_kafka.bootstrap_servers, topic, [b"before"])
    source = intake(breakable_kafka.bootstrap_servers, topic)
    try:
        assert await read(source, bool) == [b"before"]
        breakable_kafka.brokers[0].kill()
        with pytest.raises(KafkaUnavailableError, match="no answer"):
            await read(source, bool)
        await asyncio.to_thread(breakable_kafka.ensure_up)
        await asyncio.to_thread(produce, breakable_kafka.bootstrap_servers, topic, [b"after"])

        async def again() -> list[bytes | None]:
            while True:
                try:
                    return await read(source, bool)
                except KafkaUnavailableError:
                    await asyncio.sleep(0)

        assert await asyncio.wait_for(again(), 60) == [b"after"]
    finally:
        await source.close()
