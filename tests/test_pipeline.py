"""The run loop against records and checkpoints in memory: what is made durable, in which order, and what a failure leaves behind."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import structlog

import anomalyd.pipeline as pipeline_module
from anomalyd.alerts.messages import Message
from anomalyd.batch import Source
from anomalyd.errors import DeliveryError, KafkaRefusedError
from anomalyd.kafka.checkpoint import AtLeastOnce, Pending
from anomalyd.kafka.consumer import Polled
from anomalyd.kafka.message import Message as KafkaMessage
from anomalyd.pipeline import SMALL_RECORDS, Pipeline
from anomalyd.shard import DeadLetter, Outcome, OutgoingAlert
from anomalyd.telemetry.metrics import Metrics
from tests.support.poll import until
from tests.support.sinks import alert_messages

ZERO, ONE = Source("metrics", 0), Source("metrics", 1)
FIRING: Message = alert_messages(series=1)[0]


class Record(NamedTuple):
    offset: int
    value: bytes | None = b""
    timestamp: int = 1_000
    key: bytes | None = None


class Records:
    """A consumer that hands out what a test puts in."""

    def __init__(self) -> None:
        self.waiting: list[list[Polled]] = []
        self.held = False
        self.log_ends: dict[Source, int] = {}
        self.fetched: dict[Source, int] = {}

    def put(self, *parts: tuple[Source, int, int]) -> None:
        """One poll's records: partition, first offset, count."""
        self.waiting.append([Polled(source, [Record(first + i) for i in range(count)], first + count) for source, first, count in parts])

    async def poll(self) -> list[Polled]:
        await asyncio.sleep(0.001)
        return self.waiting.pop(0) if self.waiting and not self.held else []

    async def probe(self) -> None:
        return

    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False

    def positions(self) -> dict[Source, int]:
        return self.fetched

    def ends(self) -> dict[Source, int]:
        return self.log_ends


@dataclass
class Durable:
    """A checkpoint in memory that can fail and wait."""

    written: list[tuple[list[bytes | None], dict[Source, int]]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def write(self, pending: Pending) -> None:
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.written.append(([message.key for message in pending.messages], dict(pending.positions)))

    @property
    def messages(self) -> list[bytes | None]:
        return [key for keys, _ in self.written for key in keys]

    @property
    def positions(self) -> dict[Source, int]:
        return {source: offset for _, positions in self.written for source, offset in positions.items()}


class FakeShard:
    """Remembers what it was given; every record whose offset is a multiple of `alert_every` alerts."""

    series = 3
    open_episodes = 1
    stream_time_ms = 5_000

    def __init__(self, source: Source, alert_every: int = 0, gate: threading.Event | None = None, device: str = "cpu") -> None:
        self.device = device
        self.source = source
        self.seen: list[int] = []
        self.threads: set[str] = set()
        self.crash: BaseException | None = None
        self._alert_every = alert_every
        self._gate = gate

        class _Plan:
            name = "hosts"

        self.stream = _Plan()

    def process(self, records: Sequence[Record]) -> Outcome:
        if self._gate is not None:
            assert self._gate.wait(20)
        if self.crash is not None:
            crash, self.crash = self.crash, None
            raise crash
        self.threads.add(threading.current_thread().name)
        self.seen += [record.offset for record in records]
        outcome = Outcome(next_offset=records[-1].offset + 1, records=len(records), samples=len(records))
        for record in records:
            if self._alert_every and record.offset % self._alert_every == 0:
                outcome.alerts.append(OutgoingAlert(FIRING, record.timestamp))
            if record.value is None:
                outcome.dead_letters.append(DeadLetter(record, "empty"))
        return outcome


@dataclass
class Rig:
    records: Records
    durable: Durable
    pipeline: Pipeline
    metrics: Metrics
    shards: dict[Source, list[FakeShard]]
    running: asyncio.Task[None]

    def value(self, name: str, labels: dict[str, str] | None = None) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels or {})


@asynccontextmanager
async def rig(
    make: Callable[[Source], FakeShard] = FakeShard, *, interval_s: float = 0.02, take: dict[Source, int] | None = None, workers: int = 1
) -> AsyncIterator[Rig]:
    records, durable, metrics, shards = Records(), Durable(), Metrics(), dict[Source, list[FakeShard]]()

    def make_shard(source: Source) -> Any:  # noqa: ANN401  stands in for a shard
        shards.setdefault(source, []).append(make(source))
        return shards[source][-1]

    with ExitStack() as threads:
        executors = [threads.enter_context(ThreadPoolExecutor(1, f"worker-{number}")) for number in range(workers)]
        pipeline = Pipeline(
            records, durable, make_shard, executors, metrics, alerts_topic="alerts", dead_letter_topic="dead", interval_s=interval_s
        )
        pipeline.take({ZERO: 0, ONE: 0} if take is None else take)
        running = asyncio.create_task(pipeline.run())
        try:
            yield Rig(records, durable, pipeline, metrics, shards, running)
        finally:
            pipeline.stop()
            durable.gate.set()
            await asyncio.gather(running, return_exceptions=True)


async def test_records_go_through_in_order_and_their_position_becomes_durable() -> None:
    async with rig() as it:
        for first in range(0, 5_000, 1_000):
            it.records.put((ZERO, first, 1_000), (ONE, first, 1_000))

        await until(lambda: it.durable.positions == {ZERO: 5_000, ONE: 5_000}, "positions of everything")

    assert it.shards[ZERO][0].seen == it.shards[ONE][0].seen == list(range(5_000))
    assert it.value("anomalyd_records_consumed_total") == 10_000


async def test_large_batches_run_in_the_worker_and_small_ones_at_once() -> None:
    async with rig() as it:
        it.records.put((ZERO, 0, SMALL_RECORDS + 1))
        await until(lambda: it.shards[ZERO][0].seen, "the large batch")
        it.records.put((ONE, 0, SMALL_RECORDS))
        await until(lambda: it.shards[ONE][0].seen, "the small batch")

    assert it.shards[ZERO][0].threads == {"worker-0_0"}
    assert it.shards[ONE][0].threads == {threading.main_thread().name}


async def test_on_a_gpu_small_batches_run_in_the_worker_too() -> None:
    """One series' samples take a round each there, and heartbeats would wait for all of them."""
    async with rig(lambda source: FakeShard(source, device="cuda")) as it:
        it.records.put((ZERO, 0, 5))
        await until(lambda: it.shards[ZERO][0].seen, "the small batch")

    assert it.shards[ZERO][0].threads == {"worker-0_0"}


async def test_partitions_share_the_workers_and_each_stays_in_order_on_its_own() -> None:
    async with rig(workers=2) as it:
        for first in range(0, 20_000, 1_000):
            it.records.put((ZERO, first, 1_000), (ONE, first, 1_000))
        await until(lambda: it.durable.positions == {ZERO: 20_000, ONE: 20_000}, "everything")

    assert it.shards[ZERO][0].seen == it.shards[ONE][0].seen == list(range(20_000))
    assert [it.shards[source][0].threads for source in (ZERO, ONE)] == [{"worker-0_0"}, {"worker-1_0"}]


async def test_at_most_two_batches_are_under_way() -> None:
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, gate=gate)) as it:
        for first in range(0, 5_000, 1_000):
            it.records.put((ZERO, first, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 2, "two batches in flight")
        for _ in range(50):
            await asyncio.sleep(0)

        assert len(it.records.waiting) == 3
        gate.set()
        await until(lambda: it.durable.positions == {ZERO: 5_000}, "the rest")


async def test_an_alert_does_not_wait_for_the_interval() -> None:
    async with rig(lambda source: FakeShard(source, alert_every=10), interval_s=60) as it:
        it.records.put((ZERO, 1, 20))

        await until(lambda: it.durable.messages, "the alert", timeout_s=5)

    assert it.durable.written[0] == ([FIRING.key, FIRING.key], {ZERO: 21})
    assert it.value("anomalyd_alerts_total", {"status": "firing", "severity": "warning"}) == 2
    assert it.value("anomalyd_detection_latency_seconds_count") == 2


async def test_dead_letters_carry_where_from_and_why() -> None:
    letters: list[Pending] = []

    async with rig(interval_s=0.01) as it:
        write = it.durable.write

        async def look(pending: Pending) -> None:
            letters.append(pending)
            await write(pending)

        it.durable.write = look  # type: ignore[method-assign]  # a spy
        it.records.waiting.append([Polled(ONE, [Record(41, None, key=b"k")], 42)])
        await until(lambda: letters, "the dead letter")

    (message,) = letters[0].messages
    assert (message.topic, message.partition, message.key, message.value) == ("dead", 1, b"k", b"")
    assert dict(message.headers) == {
        "anomalyd-reason": b"empty",
        "anomalyd-topic": b"metrics",
        "anomalyd-partition": b"1",
        "anomalyd-offset": b"41",
    }


async def test_rejected_records_are_told_once_and_not_one_by_one() -> None:
    """A format that is not the producers' shows in the log, and does not flood it."""
    with structlog.testing.capture_logs() as logged:
        async with rig() as it:
            it.records.waiting.append([Polled(ONE, [Record(offset, None) for offset in range(400)], 400)])
            await until(lambda: any(entry["event"] == "records_rejected" for entry in logged), "the warning")

    told = [entry for entry in logged if entry["event"] == "records_rejected"]
    assert told == [{"event": "records_rejected", "log_level": "warning", "stream": "hosts", "records": 400, "reasons": {"empty": 400}}]


async def test_a_failed_checkpoint_is_written_again_with_all_that_it_held() -> None:
    async with rig(lambda source: FakeShard(source, alert_every=5)) as it:
        it.durable.failures += [DeliveryError("away"), DeliveryError("away")]
        it.records.put((ZERO, 1, 9))

        await until(lambda: it.durable.positions, "the third attempt")

    assert it.durable.messages == [FIRING.key]
    assert it.durable.positions == {ZERO: 10}
    assert it.value("anomalyd_checkpoint_failures_total") == 2
    assert it.value("anomalyd_alerts_total", {"status": "firing", "severity": "warning"}) == 1


async def test_what_waiting_cannot_mend_ends_the_loop() -> None:
    async with rig() as it:
        it.durable.failures.append(KafkaRefusedError("not authorised"))
        it.records.put((ZERO, 0, 10))

        with pytest.raises(KafkaRefusedError, match="not authorised"):
            await asyncio.wait_for(it.running, 10)


@pytest.mark.parametrize("count", [10, 1_000])
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_batch_that_fails_ends_the_loop(workers: int, count: int) -> None:
    async with rig(workers=workers) as it:
        it.shards[ZERO][0].crash = MemoryError()
        it.records.put((ZERO, 0, count))

        with pytest.raises(MemoryError):
            await asyncio.wait_for(it.running, 10)


@pytest.mark.parametrize("workers", [1, 2])
async def test_nothing_is_committed_behind_a_batch_that_failed(workers: int) -> None:
    """The next batch of the partition waits in the worker already; its position would vouch for the records of the failed one."""
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, alert_every=500, gate=gate), workers=workers) as it:
        it.shards[ZERO][0].crash = ZeroDivisionError()
        it.records.put((ZERO, 1, 1_000))
        it.records.put((ZERO, 1_001, 1_000))
        it.records.put((ZERO, 2_001, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 2, "two batches in flight")
        releasing = asyncio.create_task(it.pipeline.release())
        gate.set()
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(it.running, 10)
        with pytest.raises(ZeroDivisionError):
            await releasing
        await until(lambda: it.value("anomalyd_batches_in_flight") == 0, "the second batch")
        with pytest.raises(ZeroDivisionError):
            await it.pipeline.release()

    assert it.shards[ZERO][0].seen == list(range(1_001, 2_001))
    assert it.durable.written == []


async def test_a_batch_that_fails_frees_the_loop_though_another_worker_hangs() -> None:
    gates = {ZERO: threading.Event(), ONE: threading.Event()}
    async with rig(lambda source: FakeShard(source, gate=gates[source]), workers=2) as it:
        it.shards[ZERO][0].crash = ZeroDivisionError()
        it.records.put((ONE, 0, 1_000))
        it.records.put((ONE, 1_000, 1_000), (ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 3, "three batches in flight")
        gates[ZERO].set()
        try:
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(it.running, 10)
        finally:
            gates[ONE].set()


async def test_a_batch_that_fails_while_stopping_is_told() -> None:
    """Exit code 0 would say that all is well."""
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, gate=gate), interval_s=60) as it:
        it.shards[ZERO][0].crash = MemoryError()
        it.records.put((ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        it.pipeline.stop()
        gate.set()

        with pytest.raises(MemoryError):
            await asyncio.wait_for(it.running, 10)

    assert it.durable.written == []


@pytest.mark.parametrize("count", [10, 1_000])
async def test_a_failure_to_count_ends_the_loop_and_commits_nothing(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens in a callback, out of which an exception would go nowhere."""

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with rig() as it:
        monkeypatch.setattr(it.metrics, "batch", crash)
        it.records.put((ZERO, 0, count))

        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(it.running, 10)

    assert it.durable.written == []


async def test_stopping_finishes_what_was_read_and_makes_it_durable() -> None:
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, alert_every=500, gate=gate), interval_s=60) as it:
        it.records.put((ZERO, 1, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        it.pipeline.stop()
        gate.set()
        await asyncio.wait_for(it.running, 10)

    assert it.durable.positions == {ZERO: 1_001}
    assert len(it.durable.messages) == 2


async def test_stopping_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "STOP_DEADLINE_S", 0.1)
    async with rig() as it:
        it.durable.gate.clear()
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.shards[ZERO][0].seen, "the records")
        it.pipeline.stop()

        await asyncio.wait_for(it.running, 10)

    assert it.durable.positions == {}


async def test_memory_is_bounded_while_nothing_can_be_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "MOST_PENDING_BYTES", 10_000)
    async with rig(lambda source: FakeShard(source, alert_every=1)) as it:
        it.durable.gate.clear()
        for first in range(100):
            it.records.put((ZERO, first, 1))
        await until(lambda: it.records.held, "the intake to be held")

        assert it.records.waiting
        assert it.value("anomalyd_paused_partitions") == 2
        it.durable.gate.set()
        await until(lambda: it.durable.positions.get(ZERO) == 100, "everything, once deliveries work")

    assert len(it.durable.messages) == 100


async def test_memory_is_bounded_while_positions_cannot_be_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alerts are delivered then, but what metrics want to know of them waits for the commit."""
    monkeypatch.setattr(pipeline_module, "MOST_PENDING_BYTES", 10_000)
    sent, refused, brokers_well = list[KafkaMessage](), list[int](), asyncio.Event()

    class Kafka:
        async def deliver(self, messages: Sequence[KafkaMessage]) -> None:
            sent.extend(messages)

        async def commit(self, positions: Mapping[Source, int]) -> None:
            if not brokers_well.is_set():
                refused.append(len(positions))
                raise DeliveryError("away")

    kafka: Any = Kafka()  # stands in for producer and consumer
    async with rig(lambda source: FakeShard(source, alert_every=1)) as it:
        it.durable.write = AtLeastOnce(kafka, kafka).write  # type: ignore[method-assign]  # the real one
        it.records.put((ZERO, 0, 150))
        it.records.put((ZERO, 150, 150))
        await until(lambda: len(refused) >= 3, "a few attempts")

        assert len(sent) == 150
        assert it.records.held
        assert it.records.waiting
        brokers_well.set()
        alerts = {"status": "firing", "severity": "warning"}
        await until(lambda: it.value("anomalyd_alerts_total", alerts) == 300, "everything, once commits work")

    assert len(sent) == 300


async def test_a_rebalance_makes_everything_durable_before_partitions_go() -> None:
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, gate=gate), interval_s=60) as it:
        it.records.put((ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        releasing = asyncio.create_task(it.pipeline.release())
        await asyncio.sleep(0)
        assert not releasing.done()
        gate.set()
        await releasing

        assert it.durable.positions == {ZERO: 1_000}


async def test_state_survives_a_rebalance_that_brings_the_partition_back() -> None:
    """What moves is known only afterwards; a series must not start anew because another instance came."""
    async with rig() as it:
        it.records.put((ZERO, 0, 10), (ONE, 0, 10))
        await until(lambda: it.durable.positions == {ZERO: 10, ONE: 10}, "both")
        await it.pipeline.release()
        it.pipeline.take({ZERO: 10})
        it.records.put((ZERO, 10, 10))
        await until(lambda: it.durable.positions[ZERO] == 20, "the rest")

        assert [len(made) for made in it.shards.values()] == [1, 1]

        await it.pipeline.release()
        it.pipeline.take({ZERO: 25, ONE: 10})

    assert [len(made) for made in it.shards.values()] == [2, 2]  # ZERO was read further by another, ONE had been given up


async def test_a_batch_that_a_rebalance_did_not_wait_for_leaves_no_trace() -> None:
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, alert_every=1, gate=gate)) as it:
        it.records.put((ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await it.pipeline.release()
        it.pipeline.take({ONE: 0})
        gate.set()
        it.records.put((ONE, 0, 1))
        await until(lambda: ONE in it.durable.positions, "the other partition")

    assert it.durable.positions == {ONE: 1}
    assert it.durable.messages == [FIRING.key]


async def test_lag_counts_what_is_not_through_yet_and_reaches_zero_past_control_records() -> None:
    labels = {"topic": "metrics", "partition": "0"}
    async with rig() as it:
        assert it.value("anomalyd_consumer_lag_records", labels) is None
        it.records.log_ends = {ZERO: 12}
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.value("anomalyd_consumer_lag_records", labels) == 2, "a lag of two")
        it.records.fetched = {ZERO: 12}
        await until(lambda: it.value("anomalyd_consumer_lag_records", labels) == 0, "no lag")
        await until(lambda: it.durable.positions == {ZERO: 12}, "the position behind the control records")
        await it.pipeline.release()

        assert it.value("anomalyd_consumer_lag_records", labels) is None


async def test_series_and_open_episodes_are_those_of_the_partitions_that_we_have() -> None:
    async with rig() as it:
        await until(lambda: (it.value("anomalyd_open_episodes"), it.value("anomalyd_series")) == (2, 6), "those of two shards")
        await it.pipeline.release()
        it.pipeline.take({ZERO: 0})
        await until(lambda: (it.value("anomalyd_open_episodes"), it.value("anomalyd_series")) == (1, 3), "those of one")


async def test_records_of_partitions_that_are_not_ours_are_left_alone() -> None:
    async with rig(take={ZERO: 0}) as it:
        it.records.put((ONE, 0, 5), (ZERO, 0, 5))
        await until(lambda: it.durable.positions, "our own partition")

    assert it.durable.positions == {ZERO: 5}
