"""The run loop against records and checkpoints in memory: what is made durable, in which order, and what a failure leaves behind."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import structlog

import anomalyd.pipeline as pipeline_module
from anomalyd.alerts.messages import Message
from anomalyd.batch import Source
from anomalyd.errors import KafkaRefusedError, LostError, StateError
from anomalyd.kafka.consumer import Polled, Recovered
from anomalyd.pipeline import DEADLY, SMALL_RECORDS, Pipeline
from anomalyd.probation import Terms
from anomalyd.shard import DeadLetter, Outcome, OutgoingAlert, StreamPlan
from anomalyd.state.codec import Page
from anomalyd.state.ledger import Load, Prepare
from anomalyd.state.ports import Restored, Work
from anomalyd.state.trial import TRIAL_OFFSETS, Trial
from anomalyd.telemetry.metrics import Metrics
from anomalyd.unless import unless
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
        self.published: dict[Source, int] = {}
        self.reclaimed: list[Source] = []
        self.stopped: dict[Source, str] = {}

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

    async def publish(self, positions: Mapping[Source, int]) -> bool:
        self.published |= positions
        return True

    def reclaim(self, source: Source, lost: str = "") -> None:
        self.reclaimed.append(source)

    def stop_partition(self, source: Source, why: str) -> None:
        self.stopped[source] = why


@dataclass
class Durable:
    """What all ledgers have committed; it can fail and wait."""

    written: list[tuple[Source, Work]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    restored: dict[Source, Restored] = field(default_factory=dict)
    closed: list[Source] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def messages(self) -> list[bytes | None]:
        return [message.key for _, work in self.written for message in work.messages]

    @property
    def positions(self) -> dict[Source, int]:
        """Where they moved; the pins of where they began are left out."""
        return {source: work.position for source, work in self.written if work.position}


class FakeLedger:
    records: Sequence[bytes] = ()

    def __init__(self, source: Source, durable: Durable) -> None:
        self.source = source
        self.durable = durable
        self.partitions = 2

    @property
    def position(self) -> int | None:
        return self.durable.positions.get(self.source)

    def repartitioned(self, partitions: int) -> str:
        return f"{partitions} instead of {self.partitions}"

    async def claim(self, partitions: int, load: Load, prepare: Prepare) -> Restored:
        return self.durable.restored.get(self.source) or Restored(self.position, self.position or 0)

    async def commit(self, work: Work) -> None:
        await self.durable.gate.wait()
        if self.durable.failures:
            raise self.durable.failures.pop(0)
        self.durable.written.append((self.source, work))

    async def close(self) -> None:
        self.durable.closed.append(self.source)


class FakeShard:
    """Remembers what it was given; every record whose offset is a multiple of `alert_every` alerts."""

    series = 3
    open_episodes = 1
    silent_series = 0
    stream_time_ms = 5_000
    pulse = ()
    control = ()
    correction = 0.0
    budget_per_day = 0.1

    def __init__(self, source: Source, alert_every: int = 0, gate: threading.Event | None = None, device: str = "cpu") -> None:
        self.device = device
        self.source = source
        self.seen: list[int] = []
        self.threads: set[str] = set()
        self.crash: BaseException | None = None
        self.live_from = self.position = 0
        self.dirty: list[int] = []
        self.pages_in_use = 1
        self.policies: list[tuple[int, str]] = []
        self._alert_every = alert_every
        self._gate = gate
        self.moving = 0
        self.models: list[tuple[int, str]] = []
        self.asked: Any = None
        self.fired = 0
        self.challenger: Any = None

        class _Plan:
            name = "hosts"

        self.stream: Any = _Plan()

    def adopt(self, plan: Any) -> None:  # noqa: ANN401  a plan, or what stands for one
        self.stream = plan

    def swap(self, detector: Any) -> None:  # noqa: ANN401  a detector, or what stands for one
        self.asked = detector

    def shade(self, challenger: Any) -> None:  # noqa: ANN401  likewise
        self.challenger = challenger

    def prepare(self, restored: Restored) -> None:
        return

    @property
    def replay_from(self) -> int:
        return min(self.dirty, default=self.position)

    @property
    def dirty_pages(self) -> int:
        return len(self.dirty)

    def load(self, pages: list[Page]) -> None:
        return

    def begin(self, restored: Restored, live: Sequence[bytes]) -> None:
        self.live_from, self.position = restored.position or 0, restored.replay_from

    def forget_all(self) -> Outcome:
        return Outcome(next_offset=self.position, alerts=[OutgoingAlert(FIRING, -1)])

    def snapshot(self, most: int) -> dict[bytes, bytes | None]:
        written = {b"S|256|%d" % page: b"page" for page in self.dirty[:most]}
        del self.dirty[:most]
        return dict(written)

    def process(self, records: Sequence[Record], next_offset: int, *, snapshots: int = 0) -> Outcome:
        if self._gate is not None and records:
            assert self._gate.wait(20)
        if self.crash is not None and records:
            crash, self.crash = self.crash, None
            raise crash
        if records:
            self.threads.add(threading.current_thread().name)
        self.seen += [record.offset for record in records]
        before, self.position = self.position, next_offset
        if before < self.live_from:
            return Outcome(next_offset=next_offset, replayed=len(records))
        outcome = Outcome(next_offset=next_offset, records=len(records), samples=len(records), pages=self.snapshot(snapshots))
        outcome.replay_from = self.replay_from
        outcome.fired = self.fired if records else 0
        outcome.policies, self.policies = self.policies, []
        outcome.models, self.models = self.models, []
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


async def assign(pipeline: Pipeline, positions: Mapping[Source, int]) -> dict[Source, Recovered | None]:
    """What the consumer does when the group gives out partitions; the positions are for those that nobody has committed."""
    pipeline.assigned(positions.keys())
    found = {source: await pipeline.recover(source, 2) for source in positions}
    pipeline.take({source: positions[source] if known is None else known.read_from for source, known in found.items()})
    return found


@asynccontextmanager
async def rig(
    make: Callable[[Source], FakeShard] = FakeShard,
    *,
    interval_s: float = 0.02,
    take: dict[Source, int] | None = None,
    workers: int = 1,
    turn_s: float = 60.0,
    durable: Durable | None = None,
    stop_at_gaps: bool = False,
    **more: Any,  # noqa: ANN401  of Pipeline
) -> AsyncIterator[Rig]:
    records, durable, metrics, shards = Records(), durable or Durable(), Metrics(), dict[Source, list[FakeShard]]()

    def make_shard(source: Source) -> Any:  # noqa: ANN401  stands in for a shard
        shards.setdefault(source, []).append(make(source))
        return shards[source][-1]

    with ExitStack() as threads:
        executors = [threads.enter_context(ThreadPoolExecutor(1, f"worker-{number}")) for number in range(workers)]
        made: Any = partial(FakeLedger, durable=durable)  # stands in for a ledger
        pipeline = Pipeline(
            records,
            make_shard,
            made,
            executors,
            metrics,
            alerts_topic="alerts",
            dead_letter_topic="dead",
            interval_s=interval_s,
            turn_s=turn_s,
            stop_at_gaps=stop_at_gaps,
            **more,
        )
        await assign(pipeline, {ZERO: 0, ONE: 0} if take is None else take)
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

    assert it.durable.messages == [FIRING.key, FIRING.key]
    assert it.durable.positions[ZERO] == 21
    assert it.value("anomalyd_alerts_total", {"status": "firing", "severity": "warning"}) == 2
    assert it.value("anomalyd_detection_latency_seconds_count") == 2


async def test_dead_letters_carry_where_from_and_why() -> None:
    async with rig(interval_s=0.01) as it:
        it.records.waiting.append([Polled(ONE, [Record(41, None, key=b"k")], 42)])
        await until(lambda: it.durable.messages, "the dead letter")

    (message,) = [message for _, work in it.durable.written for message in work.messages]
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


@pytest.mark.parametrize("silent", ["probe", "publish"])
async def test_brokers_that_do_not_answer_hold_up_nothing_that_looks_after_us(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither question waits for the other one's answer, and pages come due all the same."""
    monkeypatch.setattr(pipeline_module, "_TICK_S", 0.005)
    monkeypatch.setattr(pipeline_module, "_PUBLISH_EVERY_S", 0.005)
    called: list[str] = []

    async def call(name: str) -> bool:
        called.append(name)
        if name == silent:
            await asyncio.get_running_loop().create_future()
        return True

    monkeypatch.setattr(Records, "probe", lambda _: call("probe"))
    monkeypatch.setattr(Records, "publish", lambda *_: call("publish"))
    async with rig(take={ZERO: 0}, turn_s=0.05) as it:
        await until(lambda: silent in called, "the question without an answer")
        before = len(called)
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.durable.positions.get(ZERO) == 10, "the records")
        it.shards[ZERO][0].dirty = [0]
        await until(lambda: any(work.pages for _, work in it.durable.written), "the page")
        await until(lambda: len(called) > before, "the other question")
        monkeypatch.undo()


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
    assert it.durable.positions == {}


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

    assert it.durable.positions == {}


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

    assert it.durable.positions == {}


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
        await assign(it.pipeline, {ZERO: 0})
        it.records.put((ZERO, 10, 10))
        await until(lambda: it.durable.positions[ZERO] == 20, "the rest")

        assert [len(made) for made in it.shards.values()] == [1, 1]
        await until(lambda: it.durable.closed == [ONE], "the ledger of the partition that went")

        await it.pipeline.release()
        await assign(it.pipeline, {ZERO: 0, ONE: 0})

    assert [len(made) for made in it.shards.values()] == [1, 2]


async def test_a_plan_that_was_adopted_reaches_every_partition_whatever_it_is_at() -> None:
    """Running ones, one that is put aside, one that is being recovered, and those that come later; other topics are left alone."""
    other, two = Source("logs", 0), Source("metrics", 2)
    async with rig(take={ZERO: 0, other: 0}) as it:
        await it.pipeline.release()  # both are put aside
        it.pipeline.assigned([ZERO, ONE, two, other])
        recovering = asyncio.create_task(it.pipeline.recover(ONE, 2))
        await asyncio.sleep(0)
        plan: Any = StreamPlan("new")
        it.pipeline.adopt({"metrics": plan})
        await recovering
        for source in (ZERO, two, other):
            await it.pipeline.recover(source, 2)
        it.pipeline.take({ZERO: 0, ONE: 0, two: 0, other: 0})

        assert {source: made[-1].stream.name for source, made in it.shards.items()} == {ZERO: "new", ONE: "new", two: "new", other: "hosts"}


async def test_a_model_that_was_swapped_to_reaches_every_partition_of_its_stream() -> None:
    """Running ones, those that are put aside, one that is being recovered, and those that come later; another stream is left alone."""
    two = Source("metrics", 2)
    async with rig(take={ZERO: 0}) as it:
        await it.pipeline.release()
        it.pipeline.assigned([ZERO, ONE, two])
        recovering = asyncio.create_task(it.pipeline.recover(ONE, 2))
        await asyncio.sleep(0)
        detector: Any = object()
        it.pipeline.swap("hosts", detector)
        it.pipeline.shade("hosts", detector)
        it.pipeline.swap("others", None)  # type: ignore[arg-type]  # nobody looks at it
        await recovering
        for source in (ZERO, two):
            await it.pipeline.recover(source, 2)
        it.pipeline.take({ZERO: 0, ONE: 0, two: 0})

        for found in ("asked", "challenger"):
            assert {source: getattr(made[-1], found) for source, made in it.shards.items()} == dict.fromkeys([ZERO, ONE, two], detector)


async def test_a_model_that_does_not_keep_to_the_terms_goes_and_the_edge_is_told() -> None:
    stand_ins: Any = [SimpleNamespace(model=SimpleNamespace(hash=name)) for name in ("good", "bad")]
    good, bad = stand_ins
    told: list[tuple[str, Any, str]] = []
    async with rig(probation=Terms(least=3), on_unfit=lambda *what: told.append(what)) as it:
        it.pipeline.swap("hosts", good)
        it.pipeline.swap("hosts", bad, on_trial=True)
        it.shards[ZERO][0].fired = 2
        it.records.put((ZERO, 0, 10), (ONE, 0, 10))
        await until(lambda: it.durable.positions == {ZERO: 10, ONE: 10}, "the records")
        assert not told
        assert it.shards[ONE][0].asked is bad
        it.records.put((ZERO, 10, 10))
        await until(lambda: bool(told), "the model to go")

        assert told == [("hosts", bad, "4 alerts fired, and 0 were to be expected")]
        assert [made[-1].asked for made in it.shards.values()] == [good, good]

        # The incident goes on: what was returned to stays.
        it.records.put((ZERO, 20, 50))
        await until(lambda: it.durable.positions[ZERO] == 70, "the rest")
        assert len(told) == 1
        assert it.shards[ZERO][0].asked is good


async def test_going_back_by_hand_ends_the_trial_and_begins_none() -> None:
    stand_ins: Any = [SimpleNamespace(model=SimpleNamespace(hash=name)) for name in ("good", "bad")]
    good, bad = stand_ins
    told: list[tuple[str, Any, str]] = []
    async with rig(probation=Terms(least=3), on_unfit=lambda *what: told.append(what)) as it:
        it.pipeline.swap("hosts", good)
        it.pipeline.swap("hosts", bad, on_trial=True)
        it.pipeline.swap("hosts", good)
        it.shards[ZERO][0].fired = 5
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.durable.positions.get(ZERO) == 10, "the records")
        it.records.put((ZERO, 10, 10))
        await until(lambda: it.durable.positions.get(ZERO) == 20, "the rest")

        assert not told
        assert it.shards[ZERO][0].asked is good


async def test_policies_and_models_that_came_into_force_are_committed_with_the_position() -> None:
    async with rig() as it:
        shard = it.shards[ZERO][0]
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.durable.positions == {ZERO: 10}, "the records")
        shard.policies, shard.models = [(10, "{}")], [(10, "m")]
        it.records.put((ZERO, 10, 10))
        await until(lambda: it.durable.positions == {ZERO: 20}, "the rest")

    found = [(work.position, work.policies, work.models) for source, work in it.durable.written if source == ZERO and work.policies]
    assert found == [(20, [(10, "{}")], [(10, "m")])]


async def test_a_batch_that_a_rebalance_did_not_wait_for_leaves_no_trace() -> None:
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, alert_every=1, gate=gate)) as it:
        it.records.put((ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await it.pipeline.release()
        await assign(it.pipeline, {ONE: 0})
        gate.set()
        it.records.put((ONE, 0, 1))
        await until(lambda: it.durable.positions.get(ONE) == 1, "the other partition")

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


async def test_a_detector_that_does_not_come_back_is_a_lag_that_nothing_is_read_of() -> None:
    """What the rule AnomalydStuck looks at; the loop turns on meanwhile."""
    gate, seen = threading.Event(), []
    labels = {"topic": "metrics", "partition": "0"}
    async with rig(lambda source: FakeShard(source, gate=gate)) as it:
        it.records.log_ends = {ZERO: 9_000}
        for begin in range(0, 9_000, 1_000):
            it.records.put((ZERO, begin, 1_000))
        await until(lambda: it.value("anomalyd_consumer_lag_records", labels), "a lag")
        for _ in range(20):
            seen.append((it.value("anomalyd_consumer_lag_records", labels), it.value("anomalyd_records_consumed_total")))
            await asyncio.sleep(0.02)
        gate.set()
        await until(lambda: it.value("anomalyd_consumer_lag_records", labels) == 0, "all to be read, once it does")

    assert {lag > 0 for lag, _ in seen if lag is not None} == {True}
    assert {consumed for _, consumed in seen} == {0}


async def test_series_and_open_episodes_are_those_of_the_partitions_that_we_have() -> None:
    async with rig() as it:
        await until(lambda: (it.value("anomalyd_open_episodes"), it.value("anomalyd_series")) == (2, 6), "those of two shards")
        await it.pipeline.release()
        await assign(it.pipeline, {ZERO: 0})
        await until(lambda: (it.value("anomalyd_open_episodes"), it.value("anomalyd_series")) == (1, 3), "those of one")


async def test_records_of_partitions_that_are_not_ours_are_left_alone() -> None:
    async with rig(take={ZERO: 0}) as it:
        it.records.put((ONE, 0, 5), (ZERO, 0, 5))
        await until(lambda: it.durable.positions.get(ZERO) == 5, "our own partition")

    assert it.durable.positions == {ZERO: 5}


async def test_where_a_partition_begins_is_committed_before_anything_was_read() -> None:
    """Otherwise `latest` would move on with each restart."""
    async with rig(take={ZERO: 7}) as it:
        await until(lambda: it.durable.positions == {ZERO: 7}, "the pin")


async def test_nothing_of_a_replay_leaves_or_is_committed() -> None:
    durable = Durable(restored={ZERO: Restored(10, 4)})
    async with rig(lambda source: FakeShard(source, alert_every=1), take={ZERO: 0}, durable=durable) as it:
        assert not it.pipeline.restored
        it.records.put((ZERO, 4, 6))
        await until(lambda: it.pipeline.restored, "the end of the replay")
        assert durable.messages == []
        it.records.put((ZERO, 10, 2))
        await until(lambda: durable.positions == {ZERO: 12}, "what is new")

    assert durable.messages == [FIRING.key] * 2
    assert it.value("anomalyd_records_replayed_total") == 6


async def test_a_partition_that_was_lost_is_dropped_and_asked_for_again() -> None:
    async with rig() as it:
        it.durable.failures.append(LostError("fenced"))
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.records.reclaimed, "the claim")
        (lost,) = it.records.reclaimed
        it.records.put((lost, 10, 10))
        await until(lambda: it.durable.closed == [lost], "the ledger to be closed")
        for _ in range(20):
            await asyncio.sleep(0)

    assert lost not in it.durable.positions


async def test_a_group_that_shares_our_state_is_named_once() -> None:
    durable = Durable(restored=dict.fromkeys((ZERO, ONE), Restored(10, 10, strangers=frozenset({"other/host"}))))
    with structlog.testing.capture_logs() as logged:
        async with rig(durable=durable) as it:
            it.durable.failures.append(LostError("taken over by other/host"))
            it.records.put((ZERO, 10, 1))
            await until(lambda: it.records.reclaimed, "the loss")
            await it.pipeline.recover(it.records.reclaimed[0], 2)

    assert [(entry["by"], entry["log_level"]) for entry in logged if entry["event"] == "state_shared"] == [("other/host", "warning")]


async def test_a_partition_with_damaged_state_is_stopped_and_the_others_go_on() -> None:
    async with rig() as it:
        it.durable.failures.append(StateError("damaged"))
        await until(lambda: it.records.stopped, "the stop")
        other = ONE if ZERO in it.records.stopped else ZERO
        it.records.put((other, 0, 10))
        await until(lambda: it.durable.positions.get(other) == 10, "the other partition")


async def test_a_stop_writes_every_page_that_changed() -> None:
    async with rig(take={ZERO: 0}) as it:
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.durable.positions.get(ZERO) == 10, "the records")
        it.shards[ZERO][0].dirty = list(range(100))
        it.pipeline.stop()
        await asyncio.wait_for(it.running, 10)

    assert sum(len(work.pages) for _, work in it.durable.written) == 100
    assert it.durable.written[-1][1].replay_from == 10
    assert it.records.published == {ZERO: 10}


async def test_pages_go_out_in_turn_even_when_nothing_arrives() -> None:
    async with rig(take={ZERO: 0}, turn_s=0.05) as it:
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.durable.positions.get(ZERO) == 10, "the records")
        it.shards[ZERO][0].dirty = [0]
        await until(lambda: any(work.pages for _, work in it.durable.written), "the page")


async def test_the_oldest_page_goes_out_as_soon_as_an_owner_has_replayed() -> None:
    """Owners that live for less than a turn would never write one, and each would have more to replay than the one before."""
    durable = Durable(restored={ZERO: Restored(10, 4)})
    async with rig(take={ZERO: 0}, turn_s=3_600, durable=durable) as it:
        it.shards[ZERO][0].dirty = [0, 1, 2]
        it.records.put((ZERO, 4, 6))
        await until(lambda: any(work.pages for _, work in durable.written), "the page")
        it.records.put((ZERO, 10, 5))
        await until(lambda: durable.positions == {ZERO: 15}, "what is new")

        assert it.shards[ZERO][0].dirty == [1, 2]


async def test_input_that_a_replay_needs_and_that_is_gone_is_told() -> None:
    durable = Durable(restored={ZERO: Restored(10, 4)})
    async with rig(take={}, durable=durable) as it:
        it.pipeline.assigned([ZERO])
        await it.pipeline.recover(ZERO, 2)
        it.pipeline.take({ZERO: 8})
        assert it.value("anomalyd_replay_gap_records_total") == 4
        it.records.put((ZERO, 8, 4))
        await until(lambda: durable.positions == {ZERO: 12}, "what is there")


async def test_nothing_is_missing_of_a_partition_that_another_one_has_begun_since() -> None:
    """Ours was put aside before it had read anything; and of the one that is claimed next the group says so."""
    durable = Durable()
    with structlog.testing.capture_logs() as logged:
        async with rig(take={}, durable=durable, stop_at_gaps=True) as it:
            for _ in range(2):
                it.pipeline.assigned([ZERO])
                await it.pipeline.recover(ZERO, 2)
                await it.pipeline.release()
            it.pipeline.assigned([ZERO])
            await it.pipeline.recover(ZERO, 2)
            durable.restored[ZERO] = Restored(10, 10)
            it.pipeline.take({ZERO: 8}, begun=True)
            await it.pipeline.recover(ZERO, 2)
            it.pipeline.take({ZERO: 10})
            it.records.put((ZERO, 10, 4))
            await until(lambda: durable.positions == {ZERO: 14}, "what is there")

    assert [entry for entry in logged if entry["event"] in {"state_missing", "partition_stopped"}] == []
    assert len(it.shards[ZERO]) == 4


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("stop", [False, True])
async def test_state_that_is_gone_is_told_and_stops_the_partition_where_that_is_wanted(*, begun: bool, missing: bool, stop: bool) -> None:
    durable = Durable(restored={ZERO: Restored(missing=missing)})
    with structlog.testing.capture_logs() as logged:
        async with rig(take={}, durable=durable, stop_at_gaps=stop) as it:
            it.pipeline.assigned([ZERO])
            await it.pipeline.recover(ZERO, 2)
            it.pipeline.take({ZERO: 8}, begun=begun)
            assert it.records.reclaimed == [ZERO] * begun  # what was read before the group had been asked is no proof
            if begun:
                await it.pipeline.recover(ZERO, 2)
                it.pipeline.take({ZERO: 8}, begun=begun)
            if not it.records.stopped:
                it.records.put((ZERO, 8, 4))
                await until(lambda: durable.positions == {ZERO: 12}, "what is there")
                it.pipeline.take({ZERO: 12}, begun=begun)  # located again: nothing new about the state

    told = [(entry["log_level"], entry["position"]) for entry in logged if entry["event"] == "state_missing"]
    assert told == ([("error", 8)] if begun or missing else [])
    assert list(it.records.stopped) == ([ZERO] if told and stop else [])
    assert all("state.on_gap" in why for why in it.records.stopped.values())


async def test_an_input_topic_made_anew_begins_anew() -> None:
    durable = Durable(restored={ZERO: Restored(10, 4)})
    async with rig(take={}, durable=durable) as it:
        it.pipeline.assigned([ZERO])
        await it.pipeline.recover(ZERO, 2)
        it.pipeline.take({ZERO: 0})
        it.records.put((ZERO, 0, 2))
        await until(lambda: durable.positions == {ZERO: 2}, "its first records")

    assert durable.messages == [FIRING.key]  # the alerts that were open end
    assert durable.written[0][1].anew
    assert it.shards[ZERO][-1].seen == [0, 1]


async def test_a_record_that_killed_the_process_twice_is_a_dead_letter() -> None:
    durable = Durable(restored={ZERO: Restored(10, 10, trial=Trial(1, 2, 12))})
    async with rig(take={ZERO: 0}, durable=durable) as it:
        it.records.put((ZERO, 10, 4))
        await until(lambda: durable.positions == {ZERO: 14}, "everything behind it")

    (letter,) = [message for _, work in durable.written for message in work.messages]
    assert dict(letter.headers)["anomalyd-reason"] == DEADLY.encode()
    assert dict(letter.headers)["anomalyd-offset"] == b"10"
    assert it.shards[ZERO][0].seen == [11, 12, 13]


async def test_owners_that_die_without_getting_anywhere_are_followed_by_a_careful_one() -> None:
    durable = Durable(restored={ZERO: Restored(10, 10, claims=4)})
    async with rig(take={ZERO: 0}, durable=durable) as it:
        it.records.put((ZERO, 10, 1_000))
        await until(lambda: durable.positions == {ZERO: 1_010}, "all records")

    announced = [(work.position, work.trial.size) for _, work in durable.written if work.trial is not None]
    assert list(dict.fromkeys(announced)) == [(10, 512), (522, 512), (1_010, 512)]


async def test_a_shard_that_moved_after_a_rebalance_did_not_wait_is_not_used_again() -> None:
    """The sticky group gives the partition back, and its records would be taken for repeated ones."""
    gate = threading.Event()
    async with rig(lambda source: FakeShard(source, alert_every=1, gate=gate), take={ZERO: 0}) as it:
        await until(lambda: it.durable.written, "the pin")
        it.records.put((ZERO, 0, 1_000))
        await until(lambda: it.value("anomalyd_batches_in_flight") == 1, "a batch in flight")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await it.pipeline.release()
        gate.set()
        await until(lambda: it.value("anomalyd_batches_in_flight") == 0, "the batch")
        await assign(it.pipeline, {ZERO: 0})
        assert len(it.shards[ZERO]) == 2


async def test_pages_that_are_due_at_a_rebalance_are_committed_or_stay_dirty() -> None:
    async with rig(take={ZERO: 0, ONE: 0}, turn_s=0.01, interval_s=60) as it:
        it.records.put((ZERO, 0, 10), (ONE, 0, 10))
        await until(lambda: it.shards[ONE][0].seen, "the records")
        for source in (ZERO, ONE):
            it.shards[source][0].pages_in_use, it.shards[source][0].dirty = 100, list(range(100))
        await until(lambda: it.pipeline._partitions[ONE].allowance > 50, "pages to be due")  # noqa: SLF001  nothing else says so
        await it.pipeline.release()
        written = {ZERO: 0, ONE: 0}
        for source, work in it.durable.written:
            written[source] += len(work.pages)

        assert {source: written[source] + len(it.shards[source][0].dirty) for source in (ZERO, ONE)} == {ZERO: 100, ONE: 100}
        assert written[ZERO] > 0


async def test_a_stop_does_not_wait_for_records_that_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "STOP_DEADLINE_S", 0.1)
    durable = Durable(restored={ZERO: Restored(10, 10, claims=4)})
    async with rig(take={ZERO: 0}, durable=durable) as it:
        durable.gate.clear()
        it.records.put((ZERO, 10, 1_000))
        await until(lambda: not it.records.waiting, "the records to be read")
        it.pipeline.stop()
        await asyncio.wait_for(it.running, 10)

    assert durable.positions == {}


async def test_records_behind_a_replay_are_tried_though_they_came_with_it() -> None:
    """Else nobody would ever find a record that ends the process: the poll in which it comes begins in front of the position."""
    durable = Durable(restored={ZERO: Restored(10, 4, claims=4)})
    seen_at_announcement: list[list[int]] = []
    async with rig(take={ZERO: 0}, durable=durable) as it:
        durable.gate.clear()
        it.records.put((ZERO, 4, 3))
        it.records.put((ZERO, 7, 13))
        await until(lambda: it.shards[ZERO][0].seen[-1:] == [9], "the replay")
        for _ in range(20):
            await asyncio.sleep(0)
        seen_at_announcement.append(list(it.shards[ZERO][0].seen))
        durable.gate.set()
        await until(lambda: durable.positions.get(ZERO) == 20, "all records")

    assert seen_at_announcement == [list(range(4, 10))]
    first = durable.written[0][1]
    assert (first.position, first.trial) == (10, Trial(512, 0, 10 + TRIAL_OFFSETS))
    assert it.shards[ZERO][0].seen == list(range(4, 20))


async def test_records_that_wait_to_be_tried_go_to_nobody_who_took_over_meanwhile() -> None:
    """Who recovers a partition reads from where it was restored, these records too."""
    durable = Durable(restored={ZERO: Restored(10, 10, claims=4), ONE: Restored(10, 10, claims=4)})
    async with rig(durable=durable, interval_s=60) as it:
        durable.gate.clear()
        it.records.put((ZERO, 10, 5), (ONE, 10, 5))
        await until(lambda: not it.records.waiting, "the records to be read")
        it.pipeline._give_up(it.pipeline._partitions[ONE])  # noqa: SLF001  as after a commit that was refused
        durable.restored[ONE] = Restored(10, 4, claims=4)
        assert await it.pipeline.recover(ONE, 2) == Recovered(4, 10)
        it.pipeline.take({ONE: 4})
        durable.gate.set()
        it.records.put((ONE, 4, 20))
        await until(lambda: durable.positions == {ZERO: 15, ONE: 24}, "both")

    assert it.shards[ONE][1].seen == list(range(4, 24))


async def test_what_is_being_tried_is_known_after_a_handover(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next owner would otherwise have to die three times to become careful again."""
    durable = Durable(restored={ZERO: Restored(10, 10, claims=4)})
    async with rig(take={ZERO: 0}, durable=durable) as it:
        it.records.put((ZERO, 10, 5))
        await until(lambda: durable.positions.get(ZERO) == 15, "the records")
        it.shards[ZERO][0].dirty = [0]
        await it.pipeline.release()

    assert durable.written[-1][1].clean
    assert {work.trial for _, work in durable.written} == {Trial(512, 0, 10 + TRIAL_OFFSETS)}


async def test_a_stop_leaves_off_where_no_page_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeShard, "snapshot", lambda *_: {})
    async with rig(take={ZERO: 0}, interval_s=60) as it:
        it.records.put((ZERO, 0, 10))
        await until(lambda: it.shards[ZERO][0].seen, "the records")
        it.shards[ZERO][0].dirty = [0]
        it.pipeline.stop()
        await asyncio.wait_for(it.running, 10)

    assert [work.position for _, work in it.durable.written][-1:] == [10]
    assert len(it.durable.written) <= 3


@pytest.mark.parametrize("careful", [False, True])
async def test_a_stop_does_not_wait_for_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch, careful: bool) -> None:
    monkeypatch.setattr(pipeline_module, "STOP_DEADLINE_S", 0.1)
    gate = threading.Event()
    durable = Durable(restored={ONE: Restored(10, 10, claims=4)} if careful else {})
    async with rig(lambda source: FakeShard(source, gate=gate), durable=durable) as it:
        try:
            it.records.put((ZERO, 0, 1_000))
            it.records.put((ONE, 10, 5) if careful else (ZERO, 1_000, 1_000))
            await until(lambda: not it.records.waiting, "the records to be read")
            it.pipeline.stop()
            await asyncio.wait_for(it.running, 5)
        finally:
            gate.set()

    assert durable.positions.get(ZERO) is None


async def test_a_commit_that_is_cancelled_by_nobody_ends_the_loop() -> None:
    """The client awaits what it has cancelled itself, and lets that out. What was to be committed would be lost without a word."""
    async with rig() as it:
        it.durable.failures.append(asyncio.CancelledError())  # type: ignore[arg-type]  # no Exception, which is the point
        it.records.put((ZERO, 0, 10))

        with pytest.raises(RuntimeError, match="cancelled by nobody"):
            await asyncio.wait_for(it.running, 10)


@pytest.mark.parametrize("asked", ["probe", "publish", "ends"])
async def test_what_looks_after_us_does_not_just_go_away(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "_TICK_S", 0.005)
    monkeypatch.setattr(pipeline_module, "_PUBLISH_EVERY_S", 0.005)

    def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    async with rig() as it:
        monkeypatch.setattr(Records, asked, cancelled)

        with pytest.raises(RuntimeError, match="cancelled by nobody"):
            await asyncio.wait_for(it.running, 10)
        monkeypatch.undo()


async def test_work_that_nobody_cancelled_is_not_taken_for_done() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="cancelled by nobody"):
        await unless(asyncio.Event(), work())
