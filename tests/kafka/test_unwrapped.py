"""Compiled records out of a real consumer: what we rely on inside the client."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState

from anomalyd.errors import AnomalydError
from anomalyd.kafka.unwrapped import NEEDED, fetch_ended, unwrap, verify
from tests.support.poll import until
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


async def test_a_fetch_that_was_cut_short_is_over() -> None:
    """The client would count it as going on, and not notice a loop that hangs."""
    state = SubscriptionState()
    with contextlib.suppress(TimeoutError), state.fetch_context():
        raise TimeoutError
    assert state.fetcher_idle_time == 0

    fetch_ended(SimpleNamespace(_subscription=state))

    await until(lambda: state.fetcher_idle_time > 0, "the time to go on")


@pytest.mark.parametrize("name", NEEDED)
def test_a_client_that_lacks_something_is_named(name: str) -> None:
    client = SimpleNamespace(
        _client=SimpleNamespace(cluster=SimpleNamespace(unauthorized_topics=())),
        _coordinator=SimpleNamespace(generation=-1, fetch_committed_offsets=None),
        _subscription=SimpleNamespace(subscription=None, _fetch_count=0, _last_fetch_ended=0.0),
    )
    verify(client)
    *owners, last = name.split(".")
    holder: object = client
    for owner in owners:
        holder = getattr(holder, owner)
    delattr(holder, last)

    with pytest.raises(AnomalydError, match=rf"aiokafka [\d.]+ lacks {name}"):
        verify(client)


def test_of_a_client_built_another_way_records_come_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer: dict[object, object] = {}
    fetcher = SimpleNamespace(_records=buffer)
    monkeypatch.delattr(PartitionRecords, "_consumer_record")

    unwrap(SimpleNamespace(_fetcher=fetcher))

    assert vars(fetcher) == {"_records": buffer}
