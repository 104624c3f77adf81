"""A run: the real daemon, several of it, on a model of Kafka, with a seed's faults; and whether what came out is what an uninterrupted run
would have written.

Everything between `App` and aiokafka's producers and consumers is the real code. What stands in: the event loop and its clock, the client's
connection to brokers, the brokers, the HTTP server, and the detector.
"""

import asyncio
import contextlib
import functools
import os
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final
from unittest import mock

import aiokafka.consumer.consumer
import aiokafka.consumer.fetcher
import aiokafka.producer.producer
import structlog
from aiokafka.structs import TopicPartition

import anomalyd.app
import anomalyd.crashpoints
import anomalyd.kafka.consumer
from anomalyd.alerts.budget import Pace
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.timeline import NEVER, read, written
from anomalyd.app import App, Stream
from anomalyd.batch import Source
from anomalyd.errors import AnomalydError, ArtifactError
from anomalyd.formats import FormatOptions
from anomalyd.settings import Settings
from anomalyd.state.chain import PROCESS_BYTES
from tests.simulation.broker import Broker
from tests.simulation.checks import (
    BrokenError,
    Chain,
    Golden,
    alerts_of,
    check_alerts,
    check_corrections,
    check_dead_letters,
    check_models,
    check_scores,
    dead_letters_of,
    plain,
    scores_of,
)
from tests.simulation.clock import KilledError, Process, StuckError, VirtualLoop
from tests.simulation.detector import MODELS
from tests.simulation.faults import CLASSES, Faults
from tests.simulation.log import Log, Record, build
from tests.simulation.network import ModelClient, Network
from tests.simulation.workload import SERIES_TTL_MS, Workload

POLICIES: Final = (
    Policy(resolve_after_samples=2),
    Policy(resolve_after_samples=1, reopen_after_ms=1_800_000),
    Policy(resolve_after_samples=3, min_duration_ms=30_000),
    Policy(resolve_after_samples=2, min_deviation=52.0, critical_score=2.0),
    Policy(resolve_after_samples=2, mutes=(Mute(('{host=~"h[0-2]"}',)), Mute(from_min=13 * 60, to_min=14 * 60, timezone="Europe/Berlin"))),
    Policy(resolve_after_samples=2, budget_per_day=1.0),
    Policy(resolve_after_samples=1, budget_control=False),
)
"""Samples are minutes apart, from noon UTC on; anomalies lie 49 to 59 above what is expected."""

PACE: Final = Pace(hour_ms=20_000, day_ms=60_000, expected=0.8, days=6, doubt=0.6, samples=2)
"""So that thresholds give several times in the half an hour that a partition sees."""

INPUT: Final = "metrics"
ALERTS: Final = "alerts"
DEAD: Final = "dead"
SCORES: Final = "scores"
SCORED: Final = '{host=~"h[13]"}'
"""Series whose scores are written: one in four samples, so that runs do not become longer than they are."""
CHANGELOG: Final = "anomalyd-state-metrics"

DEAD_BYTES: Final = 5_120
"""Largest dead letter that its topic takes: there are larger records."""

LEAST_FAULTS: Final = 30
PROGRESS_S: Final = 60.0
"""So long after the last fault everything must be done."""

_LONGEST_S: Final = 900.0
_MOST_INSTANCES: Final = 4
_EVENTS: Final = 4_000
_SLOW_S: Final = 2.0


@dataclass
class Report:
    """What a run was."""

    seed: int
    hits: Counter[str]
    records: int
    seconds: float
    """Virtual."""
    steps: int
    events: "deque[str]"
    trace: int
    """Differs where two runs did."""
    failure: BaseException | None = None
    figures: dict[str, int] = field(default_factory=dict)


@dataclass
class Instance:
    """A process that runs the daemon."""

    process: Process
    app: App
    running: asyncio.Task[None] | None = None
    leaving: bool = False


def settings(partitions: int, capacity: int, interval_s: float, turn_s: float, delivery: str) -> Settings:
    """Those of all instances."""
    return Settings.model_validate(
        {
            "kafka": {
                "bootstrap_servers": "model:9092",
                "session_timeout_ms": 6_000,
                "rebalance_timeout_ms": 10_000,
                "request_timeout_ms": 11_000,
                "fetch_max_wait_ms": 3_000,
            },
            "streams": [{"name": "hosts", "topics": [INPUT], "format": "plain-json", "start_from": "earliest"}],
            "alerts": {"topic": ALERTS, "resolve_after_samples": 2},
            "dead_letters": {"topic": DEAD},
            "scores": {"topic": SCORES, "include": [SCORED]},
            "checkpoint": {"interval_s": interval_s},
            "state": {"turn_s": turn_s, "series_ttl_s": SERIES_TTL_MS / 1000},
            "http": {"port": 0},
            "delivery": delivery,
            "device": "cpu",
            "max_series": partitions * capacity,
        }
    )


class Simulation:
    """One seed.

    Args:
        seed: decides everything.
        exactly_once: None lets the seed choose, mostly True.
        mutation: breaks the code on purpose, for as long as it runs.
    """

    def __init__(self, seed: int, *, exactly_once: bool | None = None, mutation: "Mutation | None" = None) -> None:
        self.seed = seed
        rng = self._rng = Random(seed)
        self._mutation = mutation
        self.partitions = rng.randint(2, 6)
        self.window_s = rng.uniform(40, 60)
        self.exactly_once = rng.random() < 0.85 if exactly_once is None else exactly_once
        self.gaps = rng.random() < 0.2
        self.workers = rng.choice([1, 2, 4])
        self.slow = rng.random() < 0.2
        """What was learned is a lot to read back: it takes longer than a session."""
        self.workload = Workload.make(Random(rng.random()), self.partitions, self.window_s, rng.choice([200, 400, 700]))
        self.settings = settings(
            self.partitions,
            self.workload.capacity,
            rng.choice([0.5, 1.0, 2.0]),
            rng.choice([3.0, 8.0, 20.0]),
            "exactly-once" if self.exactly_once else "at-least-once",
        )
        self.stream = stream(self.settings, self._find)
        self.lacking = False
        """Whoever looks next for a model that scored does not find it."""
        self.events: deque[str] = deque(maxlen=_EVENTS)
        self.trace = 0
        self.instances: list[Instance] = []
        self.input: list[list[Record]] = [[] for _ in range(self.partitions)]
        """Visible records by partition, whatever became of them in the log."""
        self.chains: list[Chain] = []
        self.stopped = False
        self.killed: list[Process] = []
        self._born = 0
        self._golden: Golden | None = None

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Runs it to the end, which may be a failure."""
        loop = self.loop = VirtualLoop(self._work_s)
        state = random.getstate()
        random.seed(self.seed)
        failure: BaseException | None = None
        with self._in_place(loop):
            try:
                loop.run_until_complete(self._until_broken())
            except StuckError as error:
                failure = error
            except Exception as error:  # noqa: BLE001  whatever it is, it belongs to this seed
                failure = error
            finally:
                loop.run_until_complete(self._bury())
                asyncio.set_event_loop(None)
                loop.close()
                random.setstate(state)
        return Report(
            self.seed,
            self.faults.hits,
            sum(map(len, self.input)),
            loop.time(),
            loop.steps,
            self.events,
            self.trace,
            failure,
            {
                "transactions": sum(transaction.began for transaction in self.broker.transactions.values()),
                "positions": sum(chain.positions for chain in self.chains),
                "fences": sum(chain.fences for chain in self.chains),
                "corrections": sum(len(chain.corrections) for chain in self.chains),
                "models": sum(len(chain.models) for chain in self.chains),
                "instances": self._born,
                "alerts": sum(len(log.visible()) for log in self._logs(ALERTS)),
                "dead letters": sum(len(log.visible()) for log in self._logs(DEAD)),
            },
        )

    def _work_s(self, name: str) -> float:
        """How long a worker takes."""
        return _SLOW_S if self.slow and name in {"_load", "begin"} else self._rng.choice([0.0, 0.001, 0.03])

    @contextlib.contextmanager
    def _in_place(self, loop: VirtualLoop) -> Iterator[None]:
        """The stand-ins, for as long as it runs."""
        asyncio.set_event_loop(loop)
        with ExitStack() as stack:

            def put(target: Any, name: str, value: Any) -> None:
                stack.enter_context(mock.patch.object(target, name, value))

            put(aiokafka.producer.producer, "AIOKafkaClient", ModelClient)
            put(aiokafka.consumer.consumer, "AIOKafkaClient", ModelClient)
            # Looking more seldom at what one is told of anyway: a fifth of all steps.
            put(
                aiokafka.consumer.fetcher.Fetcher.__init__,
                "__kwdefaults__",
                {**aiokafka.consumer.fetcher.Fetcher.__init__.__kwdefaults__, "fetcher_timeout": 3.0},
            )
            put(anomalyd.kafka.consumer, "_POLL_MS", 1_000)
            put(anomalyd.kafka.consumer, "_POLL_DEADLINE_S", 3.0)
            put(anomalyd.app, "HttpServer", _NoServer)
            put(anomalyd.app, "load_streams", lambda _: {INPUT: self.stream})
            put(anomalyd.app, "_verify_topics", _nothing_to_verify)
            put(anomalyd.app, "Champions", functools.partial(_NoChampions, self._find))
            put(os, "sched_getaffinity", lambda _: set(range(self.workers)))
            put(os, "urandom", self._rng.randbytes)
            put(anomalyd.app, "_PROCESS", _Nonce())
            for module in [module for name, module in sys.modules.items() if name.startswith("anomalyd.")]:
                if getattr(module, "reached", None) is anomalyd.crashpoints.reached and module is not anomalyd.crashpoints:
                    put(module, "reached", self._reached)
            if self._mutation is not None:
                stack.enter_context(self._mutation(self))
            stack.enter_context(loop.clocks())
            before = structlog.get_config()
            stack.callback(lambda: structlog.configure(**before))
            structlog.configure(processors=[self._log], cache_logger_on_first_use=False)
            yield

    async def _bury(self) -> None:
        for instance in self.instances:
            instance.process.bury()

    async def _until_broken(self) -> None:
        self.broken: asyncio.Future[None] = self.loop.create_future()
        main = asyncio.create_task(self._main())
        await asyncio.wait({main, self.broken}, timeout=_LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
        if self.broken.done():
            main.cancel()
            self.broken.result()
        if not main.done():
            raise BrokenError("I10", f"not done after {_LONGEST_S:g} s")
        main.result()

    def break_off(self, error: BaseException) -> None:
        """An invariant does not hold."""
        if not self.broken.done():
            self.broken.set_exception(error)

    async def _main(self) -> None:
        loop, rng = self.loop, self._rng
        self.broker = Broker(loop, Random(rng.random()))
        self.faults = Faults(Random(rng.random()), loop.time, self.tell, self._died)
        self.network = ModelClient.network = Network(self.broker, Random(rng.random()), self.faults.trouble, self._executed)
        self.broker.make_topic(INPUT, self.partitions)
        self.broker.make_topic(ALERTS, rng.randint(1, self.partitions + 1))
        self.broker.make_topic(DEAD, rng.randint(1, self.partitions + 1), max_message_bytes=DEAD_BYTES)
        self.broker.make_topic(SCORES, self.partitions)
        self.broker.make_topic(CHANGELOG, self.partitions, compacted=True)
        self.chains = [Chain(log, transactional=self.exactly_once) for log in self._logs(CHANGELOG)]
        self.broker.on_append = self._appended
        producing = asyncio.create_task(self._produce())
        for _ in range(rng.randint(1, 3)):
            self.start_instance()
        await self._make_trouble()
        await producing
        await self._until_done()
        self._verify()
        await self._restart_and_verify()

    async def _produce(self) -> None:
        for number, burst in enumerate(self.workload.bursts):
            await asyncio.sleep(max(0.0, burst.at_s - self.loop.time()))
            log = self.broker.log(TopicPartition(INPUT, burst.partition))
            if burst.transaction is None:
                batch = log.append(build(burst.records))
                self.input[burst.partition] += batch.records
            else:
                log.open[1 + number] = log.end
                batch = log.append(build(burst.records, 1 + number, 0, transactional=True))
                self.loop.call_later(self._rng.uniform(0.01, 4.0), self._end_input, log, 1 + number, burst.transaction)
                if burst.transaction == "commit":
                    self.input[burst.partition] += batch.records
            log.wake()

    def _end_input(self, log: Log, producer: int, how: Any) -> None:
        log.mark(producer, 0, how)
        log.wake()

    # --- instances --------------------------------------------------------------------------------------------------

    def start_instance(self) -> Instance:
        """Another process."""
        self._born += 1
        process = Process(f"i{self._born}", self.loop)
        app: App = process.run(functools.partial(App, self.settings))
        instance = Instance(process, app)
        instance.running = process.spawn(app.run())
        self.loop.create_task(self._supervise(instance))
        self.instances.append(instance)
        self.tell(f"{process.name} starts")
        return instance

    async def _supervise(self, instance: Instance) -> None:
        """Says how it ended; starts another where that was an error."""
        assert instance.running is not None
        while not instance.running.done():
            await asyncio.wait({instance.running}, timeout=1.0)
            if not instance.process.alive:
                return
        instance.process.alive = False
        if instance.running.cancelled():
            self.break_off(BrokenError("nobody cancels a daemon", instance.process.name))
            return
        error = instance.running.exception()
        self.tell(f"{instance.process.name} ended: {error!r}")
        if error is not None and not isinstance(error, AnomalydError | KilledError):
            self.break_off(error)
        if error is not None or not instance.leaving:
            await asyncio.sleep(1.0)
            if not self.stopped:
                self.start_instance()

    @property
    def alive(self) -> list[Instance]:
        """Instances that have not ended, stopped or not."""
        return [instance for instance in self.instances if instance.process.alive]

    def _died(self, process: Process) -> None:
        self.network.isolated.discard(process.name)
        if not self.stopped:
            self.loop.call_later(self._rng.choice([0.2, 1.0, 4.0]), self._replace, context=self.broker.context)

    def _replace(self) -> None:
        if not self.stopped and len([one for one in self.alive if not one.leaving]) < _MOST_INSTANCES:
            self.start_instance()

    # --- trouble ----------------------------------------------------------------------------------------------------

    async def _make_trouble(self) -> None:
        rng, faults = self._rng, self.faults
        classes = [*CLASSES, "truncation", "truncation"] if self.gaps else [kind for kind in CLASSES if kind != "truncation"]
        await asyncio.sleep(1.0)
        while self.loop.time() < self.window_s or (faults.hits.total() < LEAST_FAULTS and self.loop.time() < 4 * self.window_s):
            self._inject(rng.choice(classes))
            await asyncio.sleep(rng.expovariate(0.9))
        faults.disarm()
        self.lacking = False

    def _inject(self, kind: str) -> None:
        inject: Callable[[], object] | None = getattr(self, "_do_" + kind.replace("-", "_"), None)
        if inject is None:
            self.faults.arm_request(kind)
        else:
            inject()

    def _someone(self) -> Instance | None:
        running = [instance for instance in self.alive if instance.process.running]
        return self._rng.choice(running) if running else None

    def _do_kill(self) -> None:
        if (instance := self._someone()) is not None:
            self.faults.kill(instance.process, "kill", "")

    def _do_crash_point(self) -> None:
        self.faults.arm_point()

    def _do_zombie(self) -> None:
        self._freeze("zombie", self._rng.uniform(7.0, 16.0))

    def _do_pause(self) -> None:
        self._freeze("pause", self._rng.uniform(0.1, 4.0))

    def _freeze(self, kind: str, seconds: float) -> None:
        if (instance := self._someone()) is not None:
            instance.process.stop()
            self.faults.hit(kind, f"{instance.process.name} {seconds:.1f} s", seconds)
            self.loop.call_later(seconds, self._go_on, instance.process)

    def _go_on(self, process: Process) -> None:
        if process.alive:
            self.tell(f"{process.name} goes on")
            process.go_on()

    def _do_isolation(self) -> None:
        if (instance := self._someone()) is not None:
            seconds = self._rng.uniform(0.5, 12.0)
            self.network.isolated.add(instance.process.name)
            self.faults.hit("isolation", f"{instance.process.name} {seconds:.1f} s", seconds)
            self.loop.call_later(seconds, self.network.isolated.discard, instance.process.name)

    def _do_join(self) -> None:
        if len(self.alive) < _MOST_INSTANCES:
            self.faults.hit("join")
            self.start_instance()

    def _do_leave(self) -> None:
        staying = [instance for instance in self.alive if not instance.leaving and instance.process.running]
        if len(staying) > 1:
            instance = self._rng.choice(staying)
            instance.leaving = True
            self.faults.hit("leave", instance.process.name, 15.0)
            instance.process.run(instance.app.stop)

    def _do_rebalance_in_restore(self) -> None:
        def join() -> None:
            self.faults.hit("rebalance-in-restore")
            if len(self.alive) < _MOST_INSTANCES:
                self.loop.call_soon(self.start_instance, context=self.broker.context)
            else:
                group = self.broker.group(self.settings.kafka.group_id)
                if group.members and group.state == "stable":
                    self.broker.rebalance(group)

        self.faults.on_restore.append(join)

    def _do_broker_restart(self) -> None:
        if not self.network.down:
            seconds = self._rng.choice([0.3, 2.0, 8.0])
            self.network.go_down()
            self.faults.hit("broker-restart", f"{seconds} s", seconds)
            self.loop.call_later(seconds, setattr, self.network, "down", False)

    def _do_leader_move(self) -> None:
        tp = self._rng.choice(list(self.broker.logs))
        seconds = self._rng.choice([0.2, 1.0, 5.0])
        self.broker.leaderless[tp] = self.loop.time() + seconds
        self.faults.hit("leader-move", f"{tp.topic}/{tp.partition} {seconds} s", seconds)

    def _do_coordinator_move(self) -> None:
        seconds = self._rng.choice([0.2, 1.0, 5.0])
        self.broker.uncoordinated_until_s = self.loop.time() + seconds
        self.faults.hit("coordinator-move", f"{seconds} s", seconds)

    def _do_transaction_timeout(self) -> None:
        open_ = [transaction for transaction in self.broker.transactions.values() if transaction.state == "ongoing"]
        if open_:
            self._time_out(self._rng.choice(open_))
        else:
            # None is open at this moment: the next one that begins.
            self.broker.on_begin = self._time_out

    def _time_out(self, transaction: Any) -> None:
        self.broker.on_begin = None
        self.faults.hit("transaction-timeout", transaction.id)
        self.loop.call_later(
            self._rng.choice([0.0, 0.001, 0.004]), self.broker.time_out, transaction, transaction.began, context=self.broker.context
        )

    def _do_truncation(self) -> None:
        log = self._rng.choice(self._logs(INPUT))
        last = self.chains[log.tp.partition].last
        if last is not None and last.replay_from < last.position:
            log.truncate(self._rng.randint(last.replay_from + 1, last.position))
            self.faults.hit("truncation", f"{log.tp.partition} to {log.start}")

    def _do_compaction(self) -> None:
        self._compact("compaction", roll=self._rng.random() < 0.7, drop_markers=self._rng.random() < 0.3)

    def _do_compaction_in_restore(self) -> None:
        self.faults.on_restore.append(lambda: self._compact("compaction-in-restore", roll=True, drop_markers=self._rng.random() < 0.3))

    def _do_tail_marker(self) -> None:
        self._compact("tail-marker", roll=True, drop_markers=True)

    def _compact(self, kind: str, *, roll: bool, drop_markers: bool) -> None:
        gone = 0
        for log in self._logs(CHANGELOG):
            if roll:
                log.roll()
            gone += log.compact(drop_markers=drop_markers)
        self.faults.hit(kind, f"{gone} records")

    def _do_reload(self) -> None:
        instance = self._someone()
        # Without transactions a zombie's positions, with a policy of its own, stand among those of its successor.
        if self.exactly_once and instance is not None and instance.app._pipeline is not None:
            self.stream = replace(self.stream, plan=replace(self.stream.plan, policy=self._rng.choice(POLICIES)))
            instance.process.run(functools.partial(instance.app._pipeline.adopt, {INPUT: self.stream.plan}))
            self.faults.hit("reload", f"{instance.process.name} policy {POLICIES.index(self.stream.plan.policy)}")

    def _do_swap(self) -> None:
        instance = self._someone()
        if self.exactly_once and instance is not None and instance.app._pipeline is not None:
            detector: Any = self._rng.choice(MODELS)
            self.stream = replace(self.stream, detector=detector)
            instance.process.run(functools.partial(instance.app._pipeline.swap, self.stream.plan.name, detector))
            self.faults.hit("swap", f"{instance.process.name} model {detector.model.version}")

    def _do_missing_model(self) -> None:
        self.lacking = True

    def _find(self, model: str) -> Any:
        process = Process.current.get()
        if process is not None and self.lacking:
            self.lacking = False
            self.faults.hit("missing-model", f"{process.name} {model[:4]}", 3.0)
            self.loop.call_later(self._rng.uniform(0.5, 3.0), self._restart, process)
            raise ArtifactError("somebody has taken it away")
        return _model(model)

    def _restart(self, process: Process) -> None:
        """What an operator does who reads the runbook."""
        if process.alive:
            self.faults.kill(process, "kill", "by its operator")

    def _do_clock_jump(self) -> None:
        self.loop.wall_offset_s += self._rng.choice([-3_600.0, -5.0, 5.0, 3_600.0, 86_400.0])
        self.faults.hit("clock-jump", f"{self.loop.wall_offset_s:g} s")

    # --- verdict ----------------------------------------------------------------------------------------------------

    async def _until_done(self) -> None:
        """Waits until everything is accounted for. Raises BrokenError if that takes too long."""
        while True:
            since_s = max(self.faults.over_s, self.window_s + 4.0)
            left = self._left()
            if not left:
                return
            if not self.alive:
                self.start_instance()
            if self.loop.time() > since_s + PROGRESS_S:
                raise BrokenError("I10", f"{PROGRESS_S:g} s after the last fault: {left}")
            await asyncio.sleep(1.0)

    def _left(self) -> str:
        """What is not done yet."""
        for partition, chain in enumerate(self.chains):
            log = self.broker.log(TopicPartition(INPUT, partition))
            end = self.input[partition][-1].offset + 1 if self.input[partition] else 0
            position = -1 if chain.last is None else chain.last.position
            if not self.exactly_once:
                # One who was taken for dead goes on from memory, and writes his position again with the next record only.
                position = max(position, min(chain.furthest, self._in_memory(partition)))
            if position < end:
                return f"partition {partition} is at {position} of {end}, log {log.start} to {log.end}, stable to {log.lso}"
        for log in self.broker.logs.values():
            if log.open:
                return f"{log.tp.topic}/{log.tp.partition} is stable to {log.lso} of {log.end} only (I9)"
        return ""

    def _in_memory(self, partition: int) -> int:
        """The position that the instance that works on a partition has come to; -1 if nobody does."""
        pipelines = [instance.app._pipeline for instance in self.alive]
        kept = [pipeline._partitions.get(Source(INPUT, partition)) for pipeline in pipelines if pipeline is not None]
        return max((found.position for found in kept if found is not None), default=-1)

    def _verify(self) -> None:
        for chain in self.chains:
            chain.look()
        golden = self.golden()
        once = self.exactly_once
        check_dead_letters(
            dead_letters_of(self._logs(DEAD), self.partitions), golden, exactly_once=once, gaps=self.gaps, most_bytes=DEAD_BYTES
        )
        overwritten = [] if once else [chain.overwritten for chain in self.chains]
        check_alerts(alerts_of(self._logs(ALERTS), self.partitions), golden, exactly_once=once, gaps=self.gaps, overwritten=overwritten)
        if self.exactly_once and not self.gaps:
            check_scores(scores_of(self._logs(SCORES), self.partitions), golden)
            check_corrections(self.chains, golden)
            check_models(self.chains, golden, self._ends())
        for instance in self.instances if self.exactly_once and not self.gaps else ():
            # It would not show in the alerts: where a replay comes to something else, what was told holds.
            if divergences := instance.app.metrics.registry.get_sample_value("anomalyd_replay_divergences_total"):
                raise BrokenError("I11", f"replays of {instance.process.name} saw {divergences:g} episodes otherwise than they were told")
        if self.loop.crashes:
            raise BrokenError("no callback fails", repr(self.loop.crashes[0]))

    async def _restart_and_verify(self) -> None:
        """Everybody stops in order; another one knows what they knew."""
        self.stopped = True
        for instance in self.alive:
            instance.leaving = True
            instance.process.run(instance.app.stop)
        deadline_s = self.loop.time() + 40.0
        while self.alive and self.loop.time() < deadline_s:  # noqa: ASYNC110  processes that end tell nobody
            await asyncio.sleep(0.5)
        if self.alive:
            raise BrokenError("I10", f"{[instance.process.name for instance in self.alive]} do not stop")
        last = self.start_instance()
        deadline_s = self.loop.time() + PROGRESS_S
        # A member that has left may still come back as a ghost, by a request of its that was under way, and has partitions for a while.
        while not (last.app._ready()[0] and len(last.app._pipeline._partitions if last.app._pipeline else ()) == self.partitions):
            if self.loop.time() > deadline_s or not last.process.alive:
                raise BrokenError("I10", f"a fresh instance does not become ready: {last.app._ready()}")
            await asyncio.sleep(0.2)
        self._check_state(last)
        self._verify()

    def _check_state(self, instance: Instance) -> None:
        """I5: what the instance knows is what an uninterrupted run would."""
        golden = self.golden()
        pipeline = instance.app._pipeline
        assert pipeline is not None
        for partition, (wanted, end) in enumerate(zip(golden.digests, self._ends(), strict=True)):
            kept = pipeline._partitions.get(Source(INPUT, partition))
            if kept is None:
                raise BrokenError("I5", f"partition {partition} is not there: {instance.app._ready()}")
            shard = kept.shard
            # Rows went over to this model where no record follows; an uninterrupted run never comes there.
            unreached = any(offset >= end > 0 for offset, _ in self.chains[partition].models)
            # Without transactions a zombie may write pages of its own among its successor's.
            if shard.digest() != wanted and not unreached and self.exactly_once and not self.gaps:
                raise BrokenError("I5", f"partition {partition}: state {shard.digest()} is not {wanted}")

    def _ends(self) -> list[int]:
        """Offset behind the last record of each partition."""
        return [records[-1].offset + 1 if records else 0 for records in self.input]

    def golden(self) -> Golden:
        """What an uninterrupted instance brings."""
        self._golden = self._golden or self._uninterrupted()
        return self._golden

    def _uninterrupted(self) -> Golden:
        alerts, letters, digests, corrections, models, scores = [], [], [], [], [], []
        for partition, records in enumerate(self.input):
            plan: list[Any] = [(offset, _model(model)) for offset, model in self.chains[partition].models]
            shard = self.stream.shard(Source(INPUT, partition), self.workload.capacity, plan=plan)
            policies = list(self.chains[partition].policies) or [(0, written(self.stream.plan.policy))]
            found_alerts: list[dict[str, Any]] = []
            found_letters: list[dict[str, bytes]] = []
            found_corrections: list[tuple[int, int]] = []
            found_models: list[tuple[int, str]] = []
            found_scores: list[bytes] = []
            for part in _parts(records, [offset for offset, _ in policies[1:]]):
                while policies and (policies[0][0] <= part[0].offset):
                    shard.adopt(replace(self.stream.plan, policy=read(policies.pop(0)[1])))
                outcome = shard.process(part, part[-1].offset + 1, snapshots=0)
                found_corrections += outcome.corrections
                found_models += outcome.models
                found_scores += [value for _, value in outcome.scores]
                found_alerts += [plain(alert.message.value) for alert in outcome.alerts]
                found_letters += [
                    {
                        "anomalyd-offset": str(letter.record.offset).encode(),
                        "anomalyd-reason": letter.reason.encode(),
                        "key": letter.record.key or b"",
                        "value": letter.record.value or b"",
                    }
                    for letter in outcome.dead_letters
                ]
            alerts.append(found_alerts)
            letters.append(found_letters)
            digests.append(shard.digest())
            corrections.append(found_corrections)
            models.append(found_models)
            scores.append(found_scores)
        return Golden(alerts, letters, digests, corrections, models, scores)

    # --- what is seen -----------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        line = f"{self.loop.time():10.4f}  {text}"
        self.trace = hash((self.trace, line))
        self.events.append(line)

    def _log(self, logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        process = Process.current.get()
        what = event.pop("event", "")
        event.pop("exc_info", None)
        self.tell(f"{process.name if process else '-':4} {name} {what} " + " ".join(f"{key}={value}" for key, value in event.items()))
        if what == "state_missing":
            self.break_off(BrokenError("nothing is missing", str(event)))
        raise structlog.DropEvent

    def _executed(self, process: Process | None, name: str, request: Any) -> None:
        if name not in {"Fetch", "Heartbeat", "Metadata", "FindCoordinator"}:
            self.tell(f"{process.name if process else '-':4} > {name} {_about(name, request)}")
        self.faults.executed(process, name, request)

    def _reached(self, name: str) -> None:
        self.faults.reached(name)

    def _appended(self, log: Log) -> None:
        if log.tp.topic == CHANGELOG:
            try:
                self.chains[log.tp.partition].look()
            except (BrokenError, AnomalydError) as error:
                self.break_off(error)

    def _logs(self, topic: str) -> list[Log]:
        return [log for tp, log in self.broker.logs.items() if tp.topic == topic]


def _parts(records: Sequence[Record], boundaries: Sequence[int]) -> Iterator[Sequence[Record]]:
    """Batches of a few records, none of which has offsets on both sides of a boundary."""
    start = 0
    while start < len(records):
        end = min((offset for offset in boundaries if offset > records[start].offset), default=NEVER)
        part = [record for record in records[start : start + 37] if record.offset < end]
        yield part
        start += len(part)


def _model(model: str) -> Any:
    """By its hash."""
    return next(detector for detector in MODELS if detector.model.hash == model)


def stream(configured: Settings, find: Callable[[str], Any]) -> Stream:
    """The one stream, with the detector that stands in."""
    detector: Any = MODELS[0]
    (one,) = configured.streams
    return Stream(
        anomalyd.app.stream_plan(one, configured.policy(one)),
        detector,
        one.format,
        FormatOptions(one.timestamp_unit),
        find,
        series_ttl_ms=round(configured.state.series_ttl_s * 1000),
        reading="0" * 16,
        sweep_records=32,
        scores=anomalyd.app.score_plan(configured),
        pace=PACE,
    )


def _about(name: str, request: Any) -> str:
    """What a request is about, in a few words."""
    if name == "Produce":
        return " ".join(f"{topic}/{partition}" for topic, partitions in request._topics for partition, _ in partitions)
    if name == "EndTxn":
        return f"{request._transactional_id} epoch {request._producer_epoch} {'commit' if request._transaction_result else 'abort'}"
    return str(getattr(request, "_transactional_id", ""))


Mutation = Callable[[Simulation], contextlib.AbstractContextManager[Any]]
"""Breaks the code for a run, which it is given."""


class _Nonce:
    """The random bytes of a process, of which there are several in this one."""

    def __add__(self, other: bytes) -> bytes:
        process = Process.current.get()
        assert process is not None
        return process.name.encode().ljust(PROCESS_BYTES, b"-") + other


class _NoChampions:
    """Nobody follows a models topic; the simulation itself says which model scores."""

    def __init__(self, find: Callable[[str], Any], _: Settings, bases: dict[str, Any], __: Any) -> None:
        self._find = find
        self._bases = bases

    def find(self, _: str, model: str) -> Any:
        """As the shards of the simulation look for one."""
        return self._find(model)

    async def begin(self, _: Any) -> dict[str, Any]:
        return self._bases

    async def follow(self, _: Any) -> None:
        """At its end at once."""

    def unfit(self, *_: Any) -> None:
        """Nobody else has to hear of it: what it changes is written down."""

    async def close(self) -> None:
        """Has nothing open."""


class _NoServer:
    """The HTTP server, which nobody asks."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    async def start(self) -> int:
        return 0

    async def stop(self) -> None:
        return


async def _nothing_to_verify(*_: object) -> None:
    return
