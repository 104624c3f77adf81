"""The model of the broker that the simulation runs on, held to a real Kafka: the same scripts, and clients must see the same."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final, Protocol
from unittest import mock

import aiokafka.consumer.consumer
import aiokafka.producer.producer
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.transaction import EndTxnRequest

from tests.simulation.broker import Broker
from tests.simulation.clock import VirtualLoop
from tests.simulation.network import ModelClient, Network
from tests.support.topics import create_topic, unique

PATIENCE_S: Final = 60.0


class Side(Protocol):
    """A Kafka to run a script against."""

    def topic(self, **config: str) -> Awaitable[str]:
        """A new topic of two partitions."""
        ...

    def compact(self, topic: str) -> Awaitable[None]:
        """Lets everything in front of the newest records of a topic be compacted; returns before it is."""
        ...

    @property
    def servers(self) -> str: ...


class Real:
    def __init__(self, servers: str) -> None:
        self.servers = servers

    async def topic(self, **config: str) -> str:
        named = {name.replace("_", "."): value for name, value in config.items()}
        return await asyncio.to_thread(create_topic, self.servers, None, 2, named)

    async def compact(self, topic: str) -> None:
        await asyncio.sleep(1.0)  # segment.ms: the next record begins a new segment


class Model:
    servers = "model:9092"

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def topic(self, **config: str) -> str:
        name = unique()
        self._broker.make_topic(name, 2, max_message_bytes=int(config.get("max_message_bytes", 1 << 20)))
        return name

    async def compact(self, topic: str) -> None:
        for tp, log in self._broker.logs.items():
            if tp.topic == topic:
                log.roll()
                asyncio.get_running_loop().call_later(1.0, partial(log.compact, drop_markers=False))


class Script:
    """What scripts do, with what they saw."""

    def __init__(self, side: Side, stack: AsyncExitStack) -> None:
        self.side = side
        self.stack = stack
        self.seen: list[Any] = []

    async def producer(self, transactional_id: str | None, **options: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self.side.servers, transactional_id=transactional_id, enable_idempotence=True, **options
        )
        await producer.start()
        self.stack.push_async_callback(self._stop, producer)
        return producer

    async def consumer(self, *, committed: bool = True, group: str | None = None, topic: str | None = None) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            *([topic] if topic else []),
            bootstrap_servers=self.side.servers,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="none" if group is None else "earliest",
            isolation_level="read_committed" if committed else "read_uncommitted",
            session_timeout_ms=10_000,
            heartbeat_interval_ms=500,
        )
        await consumer.start()
        self.stack.push_async_callback(consumer.stop)
        return consumer

    async def _stop(self, producer: AIOKafkaProducer) -> None:
        # One that was fenced in the middle of a transaction waits for ever to flush.
        try:
            async with asyncio.timeout(3):
                await producer.stop()
        except (TimeoutError, KafkaError):
            await producer.client.close()

    async def attempt(self, what: str, work: Awaitable[Any]) -> Any:
        """Notes how something ended."""
        try:
            result = await work
        except (KafkaError, AssertionError) as error:
            self.seen.append((what, type(error).__name__))
            return None
        self.seen.append((what, "ok"))
        return result

    async def read(self, topic: str, *, committed: bool = True) -> tuple[list[tuple[int, bytes | None, bytes | None]], int, int]:
        """What a reader finds in partition 0 from the start to the end that it is told, where it stands then, and that end."""
        tp = TopicPartition(topic, 0)
        consumer = await self.consumer(committed=committed)
        consumer.assign([tp])
        consumer.seek(tp, (await consumer.beginning_offsets([tp]))[tp])
        end = (await consumer.end_offsets([tp]))[tp]
        found = []
        while (position := await consumer.position(tp)) < end:
            got = await consumer.getmany(tp, timeout_ms=300)
            found += [(record.offset, record.key, record.value) for records in got.values() for record in records]
            if not got and await consumer.position(tp) == position:
                break
        return found, await consumer.position(tp), end

    async def note(self, topic: str, *, committed: bool = True) -> None:
        self.seen.append(await self.read(topic, committed=committed))

    async def until(self, topic: str, right: Callable[[Any], bool]) -> None:
        """Notes what a reader finds, once it is right."""
        async with asyncio.timeout(PATIENCE_S):
            while not right(found := await self.read(topic)):  # noqa: ASYNC110  the broker knows, and has no event for us
                await asyncio.sleep(0.5)
        self.seen.append(found)


async def soon(right: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not right():  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.2)


async def send(producer: AIOKafkaProducer, topic: str, *values: bytes) -> None:
    for future in [await producer.send(topic, value, value[:1], partition=0) for value in values]:
        await future


async def markers(it: Script) -> None:
    """Commits and aborts take an offset each; what was aborted is not seen, and positions go on behind it."""
    topic = await it.side.topic()
    producer = await it.producer(unique())
    for commit in (True, False, True, False):
        await producer.begin_transaction()
        await send(producer, topic, b"a1", b"b1")
        await (producer.commit_transaction() if commit else producer.abort_transaction())
    await asyncio.sleep(0.5)
    await it.note(topic)
    await it.note(topic, committed=False)


async def fencing(it: Script) -> None:
    """A second producer under the same id aborts what the first left open, and the first is refused whatever it tries."""
    topic, name = await it.side.topic(), unique()
    first = await it.producer(name)
    await first.begin_transaction()
    await send(first, topic, b"lost")
    second = await it.producer(name)
    await it.note(topic)
    await it.attempt("commit", first.commit_transaction())
    third = await it.producer(name)
    await it.attempt("begin", second.begin_transaction())
    await it.attempt("send", send(second, topic, b"late"))
    await third.begin_transaction()
    await send(third, topic, b"kept")
    await third.commit_transaction()
    await asyncio.sleep(0.5)
    await it.note(topic)


async def stable_offset(it: Script) -> None:
    """What lies behind an open transaction is not seen before that has ended."""
    topic = await it.side.topic()
    held, plain = await it.producer(unique()), await it.producer(None)
    await send(plain, topic, b"before")
    await held.begin_transaction()
    await send(held, topic, b"open")
    await send(plain, topic, b"behind")
    await it.note(topic)
    await it.note(topic, committed=False)
    await held.abort_transaction()
    await asyncio.sleep(0.5)
    await it.note(topic)


async def time_out(it: Script) -> None:
    """Brokers abort a transaction that goes on for too long, and its producer is fenced."""
    topic = await it.side.topic()
    slow, plain = await it.producer(unique(), transaction_timeout_ms=2_000), await it.producer(None)
    await slow.begin_transaction()
    await send(slow, topic, b"slow")
    await send(plain, topic, b"behind")
    await it.until(topic, lambda found: found[0] != [])
    await it.attempt("commit", slow.commit_transaction())


async def late_end(it: Script) -> None:
    """A request to end a transaction that arrives late ends the next one (KAFKA-17754)."""
    topic = await it.side.topic()
    producer = await it.producer(unique())
    await producer.begin_transaction()
    await send(producer, topic, b"first")
    await producer.commit_transaction()
    await asyncio.sleep(0.3)
    await producer.begin_transaction()
    await send(producer, topic, b"second")
    manager = producer._txn_manager
    node = await producer._sender._find_coordinator(1, manager.transactional_id)
    late = EndTxnRequest(manager.transactional_id, manager.producer_id, manager.producer_epoch, transaction_result=True)
    it.seen.append((await producer.client.send(node, late)).error_code)
    await asyncio.sleep(0.5)
    await it.note(topic)
    await it.attempt("commit", producer.commit_transaction())
    abort = EndTxnRequest(manager.transactional_id, manager.producer_id, manager.producer_epoch, transaction_result=False)
    it.seen.append((await producer.client.send(node, abort)).error_code)


async def twice(it: Script) -> None:
    """A batch that is sent twice is written once; one with a gap in front is refused, one too large as well."""
    topic = await it.side.topic(max_message_bytes="2000")
    producer = await it.producer(None)
    requests: list[tuple[Any, Any]] = []
    send_ = producer.client.send

    async def look(node_id: Any, request: Any, **more: Any) -> Any:
        requests.append((node_id, request))
        return await send_(node_id, request, **more)

    producer.client.send = look
    await send(producer, topic, b"one")
    node, first = requests[-1]
    await send(producer, topic, b"two")
    again = await send_(node, first)
    it.seen.append([(partition[1], partition[2]) for _, partitions in again.topics for partition in partitions])
    await it.attempt("too large", send(producer, topic, b"x" * 3_000))
    await it.attempt("behind a gap", send(producer, topic, b"three"))
    await it.note(topic)


async def generations(it: Script) -> None:
    """Positions are taken from those who are members now, and from nobody else."""
    topic, group = await it.side.topic(), unique()
    consumer = await it.consumer(group=group, topic=topic)
    tp = TopicPartition(topic, 0)
    await it.attempt("member", consumer.commit({tp: 1}))
    other = await it.consumer(group=group, topic=topic)
    await soon(lambda: len(consumer.assignment()) == len(other.assignment()) == 1)
    coordinator = consumer._coordinator
    before = coordinator.generation
    coordinator.generation -= 1
    (ours,) = consumer.assignment()
    await it.attempt("older generation", consumer.commit({ours: 2}))
    await soon(lambda: coordinator.generation > before and len(consumer.assignment()) == len(other.assignment()) == 1)
    await asyncio.sleep(1.0)
    (ours,) = consumer.assignment()
    await it.attempt("joined again", consumer.commit({ours: 3}))
    it.seen.append(await consumer.committed(ours))
    coordinator.member_id = "nobody"
    await it.attempt("unknown", consumer.commit({ours: 4}))


async def compaction(it: Script) -> None:
    """The newest record of each key stays where it is; positions are not moved."""
    topic = await it.side.topic(
        cleanup_policy="compact",
        segment_ms="500",
        min_cleanable_dirty_ratio="0.001",
        max_compaction_lag_ms="500",
        delete_retention_ms="600000",
    )
    producer = await it.producer(unique())
    for values in ((b"a1", b"b1", b"c1"), (b"a2", b"b2"), (b"a3",)):
        await producer.begin_transaction()
        await send(producer, topic, *values)
        await producer.commit_transaction()
    await producer.begin_transaction()
    await send(producer, topic, b"c9")
    await producer.abort_transaction()
    await it.side.compact(topic)
    await producer.begin_transaction()
    await send(producer, topic, b"d1")
    await producer.commit_transaction()
    await it.until(topic, lambda found: len(found[0]) == 4)


SCRIPTS: Final[Mapping[str, Callable[[Script], Awaitable[None]]]] = {
    script.__name__: script for script in (markers, fencing, stable_offset, time_out, late_end, twice, generations, compaction)
}


async def on(side: Side, script: Callable[[Script], Awaitable[None]]) -> list[Any]:
    async with AsyncExitStack() as stack:
        it = Script(side, stack)
        await script(it)
        return it.seen


def on_model(script: Callable[[Script], Awaitable[None]]) -> list[Any]:
    async def run() -> list[Any]:
        broker = Broker(loop, random.Random(1))
        ModelClient.network = Network(broker, random.Random(2))
        return await on(Model(broker), script)

    loop = VirtualLoop()
    try:
        with (
            mock.patch.object(aiokafka.producer.producer, "AIOKafkaClient", ModelClient),
            mock.patch.object(aiokafka.consumer.consumer, "AIOKafkaClient", ModelClient),
            loop.clocks(),
        ):
            return loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.real_kafka
@pytest.mark.parametrize("name", SCRIPTS)
def test_clients_see_the_same_of_the_model_as_of_kafka(kafka: str, name: str) -> None:
    real = asyncio.run(on(Real(kafka), SCRIPTS[name]))

    assert on_model(SCRIPTS[name]) == real
