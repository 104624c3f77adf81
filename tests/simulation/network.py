"""What lies between clients and the broker: each request takes its time, gets lost, comes late or twice, and so do answers.

`ModelClient` stands in for aiokafka's AIOKafkaClient, the object through which its producers and consumers reach brokers: everything
above it, senders, fetchers, group coordination and their habits, is aiokafka's own.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from random import Random
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import (
    BrokerResponseError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import TopicPartition

from tests.simulation.broker import Broker, Member
from tests.simulation.clock import KilledError, Process

NODE: Final = 0


class Trouble(NamedTuple):
    """What becomes of one request."""

    before_s: float = 0.0
    """Later than usual at the broker by so much."""
    after_s: float = 0.0
    """Its answer later than usual by so much."""
    lost: bool = False
    """Never arrives."""
    answer_lost: bool = False
    twice: bool = False
    """Arrives a second time, whose answer nobody hears."""
    error: type[BrokerResponseError] | None = None
    """A part of it is answered with this instead of being executed."""
    part: float = 0.0
    """Which part, from 0 to below 1."""


NO_TROUBLE: Final = Trouble()


class Network:
    """Carries requests.

    Args:
        broker: at the other end.
        rng: for how long things take.
        trouble: asked about every request; by the process that sends it and its name.
        observe: told after every request that was executed.
    """

    def __init__(
        self,
        broker: Broker,
        rng: Random,
        trouble: Callable[[Process | None, str, Any], Trouble] = lambda *_: NO_TROUBLE,
        observe: Callable[[Process | None, str, Any], None] = lambda *_: None,
    ) -> None:
        self.broker = broker
        self.loop = asyncio.get_running_loop()
        self.down = False
        self.isolated: set[str] = set()
        """Processes that reach no broker."""
        self._rng = rng
        self._trouble = trouble
        self._observe = observe
        self._context = Context()
        self._under_way: dict[asyncio.Future[Any], None] = {}

    def reachable(self) -> bool:
        process = Process.current.get()
        return not self.down and (process is None or process.name not in self.isolated)

    def go_down(self) -> None:
        """The broker stops; connections break."""
        self.down = True
        for future in list(self._under_way):
            if not future.done():
                future.set_exception(KafkaConnectionError("connection closed"))

    async def call(  # noqa: C901  the ways of one request, side by side
        self, name: str, request: Any, execute: Callable[[], Any], timeout_s: float, refuse: Callable[[int, float], Any] | None = None
    ) -> Any:
        """Sends a request. Raises what a client raises when no answer comes; errors of the broker are part of answers.

        Args:
            name: of the request.
            request: what `trouble` and `observe` are shown.
            execute: what the broker does; its result is the answer, or a future of it.
            timeout_s: how long the client waits.
            refuse: does it but for a part, which is answered with an error code.
        """
        process, rng = Process.current.get(), self._rng
        if process is not None and not process.alive:
            raise KilledError
        if not self.reachable():
            await asyncio.sleep(0.05)
            raise NodeNotReadyError
        trouble = self._trouble(process, name, request)
        answer: asyncio.Future[Any] = self.loop.create_future()
        self._under_way[answer] = None
        there_s = rng.uniform(0.0002, 0.002) + trouble.before_s

        def settle(result: Any, error: BaseException | None) -> None:
            if not answer.done():
                answer.set_result(result) if error is None else answer.set_exception(error)

        def respond(result: Any, error: BaseException | None = None) -> None:
            if not trouble.answer_lost:
                self.loop.call_later(rng.uniform(0.0002, 0.002) + trouble.after_s, settle, result, error, context=self._context)

        def run() -> None:
            if self.down or (process is not None and process.name in self.isolated):
                settle(None, KafkaConnectionError("connection closed"))
                return
            try:
                result = refuse(int(trouble.error.errno), trouble.part) if trouble.error is not None and refuse is not None else execute()
            except Exception as error:  # noqa: BLE001  a broker that fails is a bug of the model, and must be seen
                settle(None, error)
                return
            self._observe(process, name, request)
            if isinstance(result, asyncio.Future):
                result.add_done_callback(_then(respond), context=self._context)
            else:
                respond(result)

        if not trouble.lost:
            self.loop.call_later(there_s, run, context=self._context)
        if trouble.twice:
            self.loop.call_later(there_s + rng.uniform(0.0, 3.0), _quietly(execute, lambda: self.down), context=self._context)
        deadline = self.loop.call_later(timeout_s, settle, None, RequestTimedOutError(), context=self._context)
        try:
            return await answer
        finally:
            deadline.cancel()
            del self._under_way[answer]


def _then(respond: Callable[..., None]) -> Callable[[asyncio.Future[Any]], None]:
    def done(future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        respond(None, error) if error is not None else respond(future.result())

    return done


def _quietly(execute: Callable[[], Any], down: Callable[[], bool]) -> Callable[[], None]:
    def run() -> None:
        if not down():
            execute()

    return run


class ModelClient:
    """AIOKafkaClient, as far as producers and consumers look at it. The network is that of the running simulation."""

    network: Network

    def __init__(self, **options: Any) -> None:
        self._loop = asyncio.get_running_loop()
        self._client_id = options.get("client_id", "client")
        self._request_timeout_ms = options.get("request_timeout_ms", 40_000)
        self._metadata_max_age_ms = options.get("metadata_max_age_ms", 300_000)
        self._retry_backoff = options.get("retry_backoff_ms", 100) / 1000
        self.cluster = ClusterMetadata(bootstrap_servers=["model:9092"])
        self._topics: set[str] = set()
        self._md_update_fut: asyncio.Future[bool] | None = None
        self._conns: dict[Any, Any] = {}
        self._closed = False
        # One for each client, as if it had been born with the process that made it.
        self._net = self.network

    # --- metadata ---------------------------------------------------------------------------------------------------

    async def bootstrap(self) -> None:
        try:
            self._update(await self._call("Metadata", None, self._describe))
        except KafkaError as error:
            raise KafkaConnectionError(f"Unable to bootstrap from model:9092: {error!r}") from error

    async def close(self) -> None:
        self._closed = True

    def _describe(self) -> Any:
        by_topic: dict[str, list[int]] = {}
        for tp in self._net.broker.logs:
            by_topic.setdefault(tp.topic, []).append(tp.partition)
        topics = [(0, topic, False, [(0, number, NODE, [NODE], [NODE]) for number in numbers]) for topic, numbers in by_topic.items()]
        return SimpleNamespace(API_VERSION=1, brokers=[(NODE, "model", 9092, None)], controller_id=NODE, topics=topics)

    def _update(self, described: Any) -> None:
        self.cluster.update_metadata(described)

    def force_metadata_update(self) -> "asyncio.Future[bool]":
        if self._md_update_fut is None or self._md_update_fut.done():
            self._md_update_fut = self._loop.create_future()
            self._loop.create_task(self._refresh(self._md_update_fut))
        return asyncio.shield(self._md_update_fut)

    async def _refresh(self, updated: "asyncio.Future[bool]") -> None:
        try:
            self._update(await self._call("Metadata", None, self._describe))
        except KafkaError:
            await asyncio.sleep(self._retry_backoff)
        if not updated.done():
            updated.set_result(True)

    async def _maybe_wait_metadata(self) -> None:
        if self._md_update_fut is not None and not self._md_update_fut.done():
            await asyncio.shield(self._md_update_fut)

    async def _wait_on_metadata(self, topic: str) -> set[int]:
        partitions: set[int] | None = self.cluster.partitions_for_topic(topic)
        if partitions is None:
            raise UnknownTopicOrPartitionError
        return partitions

    async def fetch_all_metadata(self) -> ClusterMetadata:
        await self._call("Metadata", None, self._describe)
        return self.cluster

    def set_topics(self, topics: Any) -> "asyncio.Future[bool]":
        self._topics = set(topics)
        done: asyncio.Future[bool] = self._loop.create_future()
        done.set_result(True)
        return done

    def add_topic(self, topic: str) -> "asyncio.Future[bool]":
        return self.set_topics({*self._topics, topic})

    # --- requests ---------------------------------------------------------------------------------------------------

    def get_random_node(self) -> int:
        return NODE

    async def ready(self, node_id: int, *, group: Any = ConnectionGroup.DEFAULT) -> bool:
        return self._net.reachable()

    async def coordinator_lookup(self, coordinator_type: Any, coordinator_key: str) -> int:
        return await self._call("FindCoordinator", None, lambda: NODE)  # type: ignore[no-any-return]

    async def send(self, node_id: int, request: Any, *, group: Any = ConnectionGroup.DEFAULT) -> Any:
        name = type(request).__name__.removesuffix("Request")
        refuse = (lambda code, part: _produce(self._net.broker, request, code, part)) if name == "Produce" else None
        return await self._call(name, request, lambda: ANSWERS[name](self._net.broker, request), refuse)

    async def _call(self, name: str, request: Any, execute: Callable[[], Any], refuse: Callable[[int, float], Any] | None = None) -> Any:
        if self._closed:
            raise NodeNotReadyError
        return await self._net.call(name, request, execute, self._request_timeout_ms / 1000, refuse)


# --- what the broker answers ------------------------------------------------------------------------------------------


def _code(work: Callable[[], Any]) -> int:
    try:
        work()
    except BrokerResponseError as error:
        return int(error.errno)
    return 0


def _tps(topics: Any) -> list[TopicPartition]:
    return [TopicPartition(topic, partition) for topic, partitions in topics for partition in partitions]


def _by_topic(rows: list[tuple[TopicPartition, tuple[Any, ...]]]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    found: dict[str, list[tuple[Any, ...]]] = {}
    for tp, row in rows:
        found.setdefault(tp.topic, []).append((tp.partition, *row))
    return list(found.items())


def _produce(broker: Broker, request: Any, refused: int = 0, part: float = 0.0) -> Any:
    batches = [(TopicPartition(topic, partition), raw) for topic, partitions in request._topics for partition, raw in partitions]
    rows: list[tuple[TopicPartition, tuple[Any, ...]]] = []
    for i, (tp, raw) in enumerate(batches):
        code, offset = refused, -1
        if not refused or i != int(part * len(batches)):
            try:
                code, offset = 0, broker.produce(tp, bytes(raw), request._transactional_id)
            except BrokerResponseError as error:
                code = int(error.errno)
        rows.append((tp, (code, offset, -1, 0)))
    return SimpleNamespace(API_VERSION=5, topics=_by_topic(rows))


def _init_producer(broker: Broker, request: Any) -> Any:
    try:
        producer, epoch = broker.init_producer(request._transactional_id, request._transaction_timeout_ms / 1000)
    except BrokerResponseError as error:
        return SimpleNamespace(error_code=error.errno, producer_id=-1, producer_epoch=-1)
    return SimpleNamespace(error_code=0, producer_id=producer, producer_epoch=epoch)


def _add_partitions(broker: Broker, request: Any) -> Any:
    tps = _tps(request._topics)
    code = _code(lambda: broker.add_partitions(request._transactional_id, request._producer_id, request._producer_epoch, tps))
    return SimpleNamespace(errors=_by_topic([(tp, (code,)) for tp in tps]))


def _end_transaction(broker: Broker, request: Any) -> Any:
    commit = bool(request._transaction_result)
    return SimpleNamespace(
        error_code=_code(
            lambda: broker.end_transaction(
                request._transactional_id,
                request._producer_id,
                request._producer_epoch,
                commit=commit,
            )
        )
    )


def _fetch(broker: Broker, request: Any) -> Any:  # noqa: C901  an answer, and the ways to wait for it
    wanted = [
        (TopicPartition(topic, partition), position, most)
        for topic, partitions in request.topics
        for partition, position, most in partitions
    ]
    committed = request._isolation_level == 1

    def look() -> tuple[Any, bool]:
        rows: list[tuple[TopicPartition, tuple[Any, ...]]] = []
        worth = False
        for tp, position, most in wanted:
            try:
                found = broker.led(tp).fetch(position, most, committed=committed)
            except BrokerResponseError as error:
                rows.append((tp, (int(error.errno), -1, -1, [], b"")))
                worth = True
            else:
                rows.append((tp, (0, found.high_water, found.lso, found.aborted, found.raw)))
                worth = worth or bool(found.raw)
        return SimpleNamespace(API_VERSION=4, topics=_by_topic(rows)), worth

    answer, worth = look()
    if worth or not request._max_wait_ms:
        return answer
    later: asyncio.Future[Any] = broker.loop.create_future()

    def check(_: object = None) -> None:
        if not later.done():
            answer, worth = look()
            if worth:
                later.set_result(answer)
            else:
                watch()

    def watch() -> None:
        waiter: asyncio.Future[None] = broker.loop.create_future()
        waiter.add_done_callback(check, context=broker.context)
        for tp, _, _ in wanted:
            log = broker.log(tp)
            log.waiters = [other for other in log.waiters if not other.done()]
            log.waiters.append(waiter)

    def enough() -> None:
        if not later.done():
            later.set_result(look()[0])

    watch()
    broker.loop.call_later(request._max_wait_ms / 1000, enough, context=broker.context)
    return later


def _offsets(broker: Broker, request: Any) -> Any:
    rows: list[tuple[TopicPartition, tuple[Any, ...]]] = []
    for topic, partitions in request._topics:
        for partition, timestamp in partitions:
            tp = TopicPartition(topic, partition)
            try:
                log = broker.led(tp)
                offset = log.start if timestamp == -2 else log.lso if request._isolation_level == 1 else log.end
                rows.append((tp, (0, -1, offset)))
            except BrokerResponseError as error:
                rows.append((tp, (int(error.errno), -1, -1)))
    return SimpleNamespace(API_VERSION=2, topics=_by_topic(rows))


def _join(broker: Broker, request: Any) -> Any:
    later: asyncio.Future[Any] = broker.loop.create_future()
    group = broker.group(request._group)
    member = Member(
        id="",
        name="member",
        session_s=request._session_timeout / 1000,
        rebalance_s=request._rebalance_timeout / 1000,
        instance=request._group_instance_id,
        metadata=list(request._group_protocols),
    )

    def answer(done: asyncio.Future[Any]) -> None:
        error = done.exception()
        if isinstance(error, BrokerResponseError):
            later.set_result(SimpleNamespace(API_VERSION=2, error_code=error.errno, member_id="", generation_id=-1))
            return
        generation, member_id, leader, members = done.result()
        protocol = member.metadata[0][0]
        later.set_result(
            SimpleNamespace(
                API_VERSION=2,
                error_code=0,
                generation_id=generation,
                group_protocol=protocol,
                leader_id=leader,
                member_id=member_id,
                members=[(each.id, dict(each.metadata)[protocol]) for each in members],
            )
        )

    try:
        joined = broker.join(group, member, request._member_id)
    except BrokerResponseError as error:
        return SimpleNamespace(API_VERSION=2, error_code=error.errno, member_id="", generation_id=-1)
    joined.add_done_callback(answer, context=broker.context)
    return later


def _sync(broker: Broker, request: Any) -> Any:
    later: asyncio.Future[Any] = broker.loop.create_future()
    assignments = dict(request._group_assignment) or None

    def answer(done: asyncio.Future[Any]) -> None:
        error = done.exception()
        code = int(error.errno) if isinstance(error, BrokerResponseError) else 0
        later.set_result(SimpleNamespace(error_code=code, member_assignment=b"" if code else done.result()))

    try:
        synced = broker.sync(broker.group(request._group), request._member_id, request._generation_id, assignments)
    except BrokerResponseError as error:
        return SimpleNamespace(error_code=error.errno, member_assignment=b"")
    synced.add_done_callback(answer, context=broker.context)
    return later


def _heartbeat(broker: Broker, request: Any) -> Any:
    group = broker.group(request._group)
    return SimpleNamespace(error_code=_code(lambda: broker.heartbeat(group, request._member_id, request._generation_id)))


def _leave(broker: Broker, request: Any) -> Any:
    return SimpleNamespace(error_code=_code(lambda: broker.leave(broker.group(request._group), request._member_id)))


def _commit_offsets(broker: Broker, request: Any) -> Any:
    offsets = {
        TopicPartition(topic, partition): (offset, note) for topic, partitions in request._topics for partition, offset, note in partitions
    }
    group = broker.group(request._consumer_group)
    code = _code(lambda: broker.commit_offsets(group, request._consumer_id, request._consumer_group_generation_id, offsets))
    return SimpleNamespace(topics=_by_topic([(tp, (code,)) for tp in offsets]))


def _fetch_offsets(broker: Broker, request: Any) -> Any:
    group = broker.group(request._consumer_group)
    code = _code(broker.coordinator)
    return SimpleNamespace(
        topics=_by_topic([(tp, (group.offsets.get(tp, -1), group.notes.get(tp, ""), code)) for tp in _tps(request._partitions)])
    )


ANSWERS: Final[dict[str, Callable[[Broker, Any], Any]]] = {
    "Produce": _produce,
    "InitProducerId": _init_producer,
    "AddPartitionsToTxn": _add_partitions,
    "EndTxn": _end_transaction,
    "Fetch": _fetch,
    "Offset": _offsets,
    "JoinGroup": _join,
    "SyncGroup": _sync,
    "Heartbeat": _heartbeat,
    "LeaveGroup": _leave,
    "OffsetCommit": _commit_offsets,
    "OffsetFetch": _fetch_offsets,
}
"""By request; those of aiokafka."""

assert kafka_errors.for_code(0) is kafka_errors.NoError
