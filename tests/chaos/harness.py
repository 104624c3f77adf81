"""Faults on real processes and a real Kafka, by a seeded schedule, and what they must not change."""

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from confluent_kafka.admin import AdminClient

from anomalyd import crashpoints
from anomalyd.detector import Shape, artifact
from anomalyd.detector.detector import shipped
from anomalyd.warmup import filler
from tests.chaos.chain import Chain
from tests.chaos.compare import Comparison, compare
from tests.chaos.instance import Instance
from tests.chaos.load import Feeder, Fleet
from tests.detector.population import untrained
from tests.support.kafka import Cluster
from tests.support.poll import poll_until
from tests.support.topics import Record, create_topic, read_until, unique

INSTANCES: Final = 3
FIRST_START_S: Final = 300.0
"""On a fresh checkout it has everything to compile."""
OFTEN: Final = frozenset({"begin", "sent", "before-commit", "after-commit"})
"""Crash points that a working process passes many times a second: it may get some way first."""
ARMED_STARTS: Final = 3
"""A process may end without coming to its crash point: one that has to stop while its partitions are elsewhere has nothing to flush."""
STREAM: Final = "hosts"
OTHER: Final = Shape(features=1, units=5, layers=2, latent=3, joint=False)
"""Of the model that takes turns with the one that ships."""
PREPARED: Final = frozenset({"restore", "replay"})
"""Crash points that are passed only after another crash, because a planned stop leaves nothing to do."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what. The defaults are the full run, about an hour on two cores."""

    kills: int = 100
    points: int = 5
    """Kills at each crash point."""
    point_names: tuple[str, ...] = crashpoints.NAMES
    moves: int = 20
    """Instances that join or leave."""
    zombies: int = 10
    brokers: int = 10
    swaps: int = 3
    """To another model, of another shape or back by promotion; half of all faults come right behind or in front of one."""
    rollbacks: int = 1
    """To the model before."""
    events: int = 1_000_000
    """At least; while faults go on, input does."""
    rate: float = 400.0
    """Records a second."""
    series: int = 320
    partitions: int = 8
    seed: int = 1
    delivery: str = "exactly-once"
    session_timeout_ms: int = 6_000
    patience_s: float = 120.0
    """For anything that is waited for; what takes longer has failed."""


@dataclass(slots=True)
class Report:
    """What happened. `problems` is empty where everything holds."""

    seed: int
    kills: int = 0
    killed_at_work: int = 0
    """Of them: a process that was scoring, while input was coming."""
    killed_starting: int = 0
    killed_recovering: int = 0
    """Right after the group gave it partitions: while it claims, restores and replays."""
    points: dict[str, int] = field(default_factory=dict)
    """Processes that ended at a crash point."""
    points_missed: dict[str, int] = field(default_factory=dict)
    """Crash points that an armed process never came to."""
    prepared: int = 0
    """More kills, so that an armed process had something to recover."""
    moves: int = 0
    zombies: int = 0
    brokers: int = 0
    swaps: int = 0
    rollbacks: int = 0
    models: int = 0
    """Changes of model that were recorded, over all partitions."""
    starts: int = 0
    fences: int = 0
    rebalances: int = 0
    events: int = 0
    comparison: Comparison = field(default_factory=Comparison)
    digest_equal: bool | None = None
    """Whether state and position are those of the uninterrupted run; None: not compared."""
    seconds: float = 0.0
    recoveries: int = 0
    """Faults after which nothing else happened until every partition had moved on."""
    recovery_median_s: float = 0.0
    recovery_longest_s: float = 0.0
    unplanned_ends: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Chaos:
    """One run: `run` does it all and ends every process that it started.

    Args:
        cluster: three brokers, which it may kill.
        plan: how much of what.
        folder: for configurations, logs and, where something is wrong, what was written.
        say: told what happens.
    """

    def __init__(self, cluster: Cluster, plan: Plan, folder: Path, say: Callable[[str], None] = print) -> None:
        self._cluster = cluster
        self._plan = plan
        self._folder = folder
        self._tell = say
        self._random = random.Random(plan.seed)
        self._bootstrap = cluster.bootstrap_servers
        self._admin = AdminClient({"bootstrap.servers": self._bootstrap, "log_level": 0})
        self._fleet = Fleet(plan.series, plan.partitions, plan.seed)
        self._report = Report(plan.seed)
        self._recoveries: list[float] = []
        self._last_fault_s = self._recovered_s = 0.0
        self._began = time.monotonic()
        self._down: int | None = None  # the broker that is
        self._source = create_topic(self._bootstrap, unique("chaos"), plan.partitions)
        group = unique("chaos")
        # One member is static: its partitions wait for its next process instead of moving.
        self._instances = [self._instance(f"member-{i}", group, static=i == 0) for i in range(INSTANCES)]
        self._timeline = folder / "timeline.jsonl"
        self._timeline.touch()
        self._golden = self._instance("golden", unique("golden"), repeats=self._timeline if plan.swaps or plan.rollbacks else None)
        self._models = [str(shipped()), str(folder / "model")]  # which of them is the champion changes; the first one is now
        artifact.save(untrained(OTHER), folder / "model")
        for one in (self._instances[0], self._golden):
            one.create_topics()
        changelog = f"{group}-state-{self._source}"
        self._chain = Chain(self._bootstrap, changelog, plan.partitions)
        self._feeder = Feeder(self._bootstrap, self._source, self._fleet, rate=plan.rate, at_least=plan.events)

    def run(self) -> Report:
        """Does everything. A promise that does not hold is among the report's problems; what keeps the run from going on is too."""
        schedule = self._schedule()
        try:
            with ExitStack() as ends:
                for instance in (*self._instances, self._golden):
                    ends.callback(instance.kill)
                if self._plan.swaps or self._plan.rollbacks:
                    # Before anything moves: a short run would be over before the other model could score.
                    subprocess.run(filler(OTHER, "plain-json", several=False), check=True, capture_output=True)
                ends.enter_context(self._chain)
                ends.enter_context(self._feeder)
                self._instances[0].start()
                self._instances[0].until_working(FIRST_START_S)
                self._until_progress(time.time())
                for number, (name, fault) in enumerate(schedule, 1):
                    self._fault(f"{number}/{len(schedule)} {name}", fault)
                self._finish()
                self._judge()
        except AssertionError as error:  # what a poll waited for did not come: a finding, with its own words
            self._report.problems.append(str(error))
            self._say(f"FAILED: {error}")
        finally:
            self._sum_up()
        return self._report

    def _instance(self, name: str, group: str, *, static: bool = False, repeats: Path | None = None) -> Instance:
        settings: dict[str, Any] = {
            "max_series": self._fleet.most_series,
            "delivery": self._plan.delivery,
            # Pages are due so rarely that there is something to replay, and so often that all of them are written many times.
            "state": {"turn_s": 10.0},
            "device": "cpu",
        }
        if repeats is not None:
            # Its group is another one, and the models lie in the topic of the first.
            settings["models"] = {"timeline": str(repeats), "topic": f"{self._instances[0].group}-models"}
        return Instance(
            self._bootstrap,
            self._folder,
            name,
            source=self._source,
            group=group,
            static=static,
            session_timeout_ms=self._plan.session_timeout_ms,
            settings=settings,
        )

    # --- the schedule -----------------------------------------------------------------------------------------------

    def _schedule(self) -> list[tuple[str, Callable[[], None]]]:
        plan, faults, left = self._plan, list[tuple[str, Callable[[], None]]](), self._plan.kills
        while left:
            burst = min(left, self._random.choice((1, 1, 2, 3)))
            faults.append((f"kill x{burst}", lambda n=burst: self._kills(n)))  # type: ignore[misc]  # bound in its default
            left -= burst
        for point in plan.point_names:
            faults += [(f"crash at {point}", lambda name=point: self._crash_at(name))] * plan.points  # type: ignore[misc]  # likewise
        faults += [("join or leave", self._move)] * plan.moves
        faults += [("zombie", self._zombie)] * plan.zombies
        faults += [("broker", self._kill_broker)] * plan.brokers
        faults += [("swap", self._swap)] * plan.swaps
        self._random.shuffle(faults)
        # There has to be something to go back from.
        swaps = [number for number, (name, _) in enumerate(faults) if name == "swap"] or [0]
        for _ in range(plan.rollbacks):
            faults.insert(self._random.randint(swaps[0] + 1, len(faults)), ("rollback", self._roll_back))
        return faults

    def _fault(self, name: str, fault: Callable[[], None]) -> None:
        self._say(name)
        down = self._down
        fault()
        if self._random.random() < 0.75:  # else the next fault comes on top
            self._recover()
        if down is not None and self._down == down:
            self._revive_broker()

    def _struck(self) -> None:
        """Something was ended or begun now; recovery is counted from here."""
        self._last_fault_s = time.time()

    def _recover(self) -> None:
        """Waits until everything goes on, and notes how long that took."""
        if self._recovered_s < self._last_fault_s:
            seconds = self._until_progress(self._last_fault_s)
            self._recovered_s = self._last_fault_s
            self._recoveries.append(seconds)
            self._say(f"    goes on after {seconds:.1f} s")

    # --- faults -----------------------------------------------------------------------------------------------------

    def _kills(self, count: int) -> None:
        """SIGKILL of one at work, then of what is started in its place, before that works."""
        instance = self._random.choice(self._running())
        instance.until_working(self._plan.patience_s)
        self._pause(0, 1.5)
        self._report.killed_at_work += self._feeder.alive and instance.running
        for number in range(count):
            if number:
                self._report.kills += self._reach_early_moment(instance)
            else:
                self._report.kills += instance.running
            instance.kill()
            self._struck()
            if self._random.random() < 0.2:  # the group may notice
                self._pause(0, 1.5 * self._plan.session_timeout_ms / 1000)
                if not self._running():
                    self._struck()  # our pause is none of its doing
            instance.start()

    def _reach_early_moment(self, instance: Instance) -> bool:
        if self._random.random() < 0.4:
            self._pause(0.1, 2.5)
            self._report.killed_starting += 1
        else:
            poll_until(lambda: not instance.running or instance.events("partitions_assigned"), "partitions", self._plan.patience_s, 0.01)
            self._pause(0, 0.7)
            self._report.killed_recovering += 1
        return instance.running

    def _crash_at(self, point: str) -> None:
        """Ends an instance at a crash point; one that had no occasion to come there is armed again."""
        instance = self._random.choice(self._running())
        instance.until_working(self._plan.patience_s)
        reached = any(self._reach_point(instance, point) for _ in range(ARMED_STARTS))
        if reached:
            self._report.points[point] = self._report.points.get(point, 0) + 1
        else:
            self._report.points_missed[point] = self._report.points_missed.get(point, 0) + 1
        instance.start()

    def _reach_point(self, instance: Instance, point: str) -> bool:
        """Whether its next process ended there. It does not run afterwards."""
        if instance.running:
            if point in PREPARED or self._random.random() < 0.5:
                instance.kill()
                self._report.prepared += 1
            else:
                instance.stop()
            self._struck()
        times = self._random.randint(1, 20) if point in OFTEN else self._random.randint(1, 2) if point in PREPARED else 1
        instance.start(ANOMALYD_CRASH_AT=f"{point}:{times}")
        instance.may_end()
        if point in {"revoke", "flush"}:
            poll_until(lambda: not instance.running or instance.scored() > 0, f"{instance.name} to work", self._plan.patience_s, 0.1)
            if point == "flush":
                instance.process.terminate()
            else:
                self._move(spare=instance)
        deadline = time.monotonic() + self._plan.patience_s
        while instance.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._struck()
        reached = not instance.running and instance.process.returncode == -signal.SIGKILL
        if not reached:
            self._say(f"    {point} was not reached")
            instance.kill()
        return reached

    def _move(self, spare: Instance | None = None) -> None:
        """Another instance joins, or one leaves in good order."""
        running, away = self._running(), self._away()
        leaving = [instance for instance in running if instance is not spare]
        if away and (len(running) == 1 or not leaving or self._random.random() < 0.5):
            self._random.choice(away).start()
        else:
            instance = self._random.choice(leaving)
            poll_until(lambda: not instance.running or instance.events("http_listening"), "a start", self._plan.patience_s)
            instance.stop()
        self._struck()
        self._report.moves += 1

    def _zombie(self) -> None:
        """One stops, others take over what it had, and it goes on as if nothing had happened."""
        while len(self._running()) < 2:
            self._away()[0].start()
        zombie = self._random.choice(self._running())
        zombie.until_working(self._plan.patience_s)
        zombie.freeze()
        self._struck()
        others = [instance for instance in self._running() if instance is not zombie]
        poll_until(
            lambda: sum(other.metric("anomalyd_assigned_partitions") or 0 for other in others) == self._plan.partitions,
            f"others to take over from {zombie.name}",
            self._plan.patience_s,
            0.1,
        )
        self._recover()
        self._pause(0, 2)
        zombie.thaw()
        self._struck()
        self._report.zombies += 1

    def _swap(self) -> None:
        """Another model is made champion; whoever runs goes over to it, and so does whoever starts later."""
        self._models.reverse()
        self._said("promote", self._models[0])
        self._report.swaps += 1

    def _roll_back(self) -> None:
        self._models.reverse()
        self._said("rollback")
        self._report.rollbacks += 1

    def _said(self, *words: str) -> None:
        """A command of `anomalyd models` about the stream."""
        done = self._instances[0].command("models", *words, "--stream", STREAM)
        assert done.returncode == 0, f"models {words}: {done.stdout}{done.stderr}"
        self._struck()

    def _kill_broker(self) -> None:
        """A power cut at one of three. It comes back soon, or once the others have gone on without it, or after the next fault."""
        if self._down is not None:
            self._revive_broker()
        self._down = self._random.randrange(len(self._cluster.brokers))
        self._cluster.brokers[self._down].kill()
        self._struck()
        self._report.brokers += 1
        how_long = self._random.random()
        if how_long < 0.3:
            self._pause(0, 6)
            self._revive_broker()
        elif how_long < 0.6:
            self._recover()
            self._revive_broker()

    def _revive_broker(self) -> None:
        """It runs, and has everything that the others have: the next one may go."""
        self._down = None
        self._cluster.ensure_up()
        brokers = len(self._cluster.brokers)

        def whole() -> bool:
            topics = self._admin.list_topics(timeout=10).topics.values()
            return all(len(partition.isrs) == brokers for topic in topics for partition in topic.partitions.values())

        poll_until(whole, "replicas in sync", self._plan.patience_s, 0.2)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """All faults end; everything catches up and stops in good order."""
        self._say("all faults are over")
        if self._down is not None:
            self._revive_broker()
        self._until_progress(self._last_fault_s)
        self._feeder.finish()
        self._say(f"{self._feeder.fed:,} events are written")
        self._until_done(self._instances[0])
        for instance in self._running():
            # One that was killed last may still be taking its partitions back from another that has done the work: pages of different ages
            # can't be written when it ends.
            instance.until_ready(self._plan.patience_s)
        for instance in self._running():
            instance.stop()
        self._say("uninterrupted run")
        self._write_timeline()
        self._golden.start()
        self._until_done(self._golden)
        self._golden.stop()

    def _write_timeline(self) -> None:
        lines = (
            json.dumps({"topic": self._source, "partition": partition, "offset": offset, "model": model})
            for partition, models in enumerate(self._chain.models)
            for offset, model in models.items()
        )
        self._timeline.write_text("".join(f"{line}\n" for line in lines))
        self._report.models = sum(len(models) - 1 for models in self._chain.models)

    def _until_done(self, instance: Instance) -> list[Record]:
        """Until the last record of every partition, a bad one, has come back."""
        wanted = set(self._feeder.last.values())

        def all_there(found: list[Record]) -> bool:
            return {record.value for record in found} >= wanted

        return read_until(self._bootstrap, instance.dead, all_there, "the last dead letters", 5 * self._plan.patience_s)

    def _judge(self) -> None:
        report, plan = self._report, self._plan
        under_faults = self._instances[0]
        alerts, dead = self._read(under_faults.alerts), self._read(under_faults.dead)
        wanted, wanted_dead = self._read(self._golden.alerts), self._read(self._golden.dead)
        report.comparison = found = compare(wanted, alerts, wanted_dead, dead, self._feeder.bad)
        report.digest_equal = self._compare_state()
        forbidden = {"lost", "foreign", "changed", "disordered", "dead_lost", "dead_foreign", "dead_changed"}
        if plan.delivery == "exactly-once":
            forbidden |= {"doubled", "dead_doubled"}
        report.problems += [f"{name}: {count}" for name, count in asdict(found).items() if name in forbidden and count]
        if report.digest_equal is False:
            report.problems.append("the state differs from that of the uninterrupted run")
        if report.models < plan.swaps + plan.rollbacks:
            report.problems.append(f"only {report.models} changes of model were recorded")
        if len(wanted) < plan.events / 10_000:
            report.problems.append(f"only {len(wanted)} alerts: they prove little")
        if report.problems:
            for name, records in {"alerts": alerts, "alerts-golden": wanted, "dead": dead, "dead-golden": wanted_dead}.items():
                self._write(name, (_line(record) for record in records))

    def _read(self, topic: str) -> list[Record]:
        return read_until(self._bootstrap, topic, lambda _: True, "its end", self._plan.patience_s)

    def _compare_state(self) -> bool | None:
        """What `anomalyd state verify` says about both."""
        digests = []
        for instance in (self._instances[0], self._golden):
            verified = instance.command("state", "verify", "--json")
            self._write(f"verify-{instance.name}", [verified.stdout, verified.stderr])
            if verified.returncode != 0:
                self._report.problems.append(f"state verify of {instance.name}: {(verified.stderr or verified.stdout)[-500:]}")
                return None
            digests.append(_digests(json.loads(verified.stdout.splitlines()[-1])))
        self._report.problems += [f"pages of {partition} were not flushed" for one in digests for partition in one if not one[partition][0]]
        return digests[0] == digests[1]

    def _sum_up(self) -> None:
        report, instances = self._report, [*self._instances, self._golden]
        report.events = self._feeder.fed
        report.starts = sum(instance.starts for instance in self._instances)
        report.fences = self._chain.fences
        logs = sorted(self._folder.glob("*.log"))
        report.rebalances = sum('"event": "partitions_assigned"' in line for log in logs for line in _lines(log))
        report.tracebacks = [log.name for log in logs if any("Traceback" in line for line in _lines(log))]
        report.unplanned_ends = [end for instance in instances for end in instance.ended_itself]
        report.recoveries = len(self._recoveries)
        if self._recoveries:
            report.recovery_median_s = round(sorted(self._recoveries)[len(self._recoveries) // 2], 1)
            report.recovery_longest_s = round(max(self._recoveries), 1)
        report.seconds = round(time.monotonic() - self._began)
        report.problems += [f"ended by itself: {end}" for end in report.unplanned_ends]
        report.problems += [f"Traceback in {name}" for name in report.tracebacks]
        report.problems += [f"never came to {point}: {times} x" for point, times in report.points_missed.items()]
        if self._plan.delivery == "exactly-once":
            report.problems += self._chain.problems
        if report.problems:
            for broker in self._cluster.brokers:
                self._write(f"broker-{broker.node}", [broker.log_tail()])
            for partition, steps in enumerate(self._chain.steps):
                self._write(f"positions-{partition}", (f"{step.written_s:.3f} {step.offset} {step.position}" for step in steps))

    # --- small things -----------------------------------------------------------------------------------------------

    def _running(self) -> list[Instance]:
        """Those that should run; one that has ended by itself is a finding, and is started again."""
        for instance in self._instances:
            if instance.fell():
                self._say(f"    {instance.ended_itself[-1]}")
                instance.start()
        return [instance for instance in self._instances if instance.running]

    def _away(self) -> list[Instance]:
        return [instance for instance in self._instances if not instance.running]

    def _until_progress(self, since_s: float) -> float:
        """Waits until every partition has moved on by what was written since; returns how long that took."""
        deadline = time.monotonic() + self._plan.patience_s
        while (seen_s := self._chain.progress_s(since_s)) is None:
            self._running()
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"no progress in partitions {self._chain.stuck(since_s)} for {self._plan.patience_s:g} s; running: "
                    f"{[f'{one.name} ({one.log()[-300:]})' for one in self._running()]}"
                )
            time.sleep(0.05)
        return seen_s - since_s

    def _pause(self, least_s: float, most_s: float) -> None:
        """Until a random moment; nothing is waited for."""
        time.sleep(self._random.uniform(least_s, most_s))

    def _say(self, what: str) -> None:
        self._tell(f"[{time.monotonic() - self._began:6.1f} s] {self._feeder.fed:>9,} events, {len(self._alive())} instances: {what}")

    def _alive(self) -> list[Instance]:
        return [instance for instance in self._instances if instance.running]

    def _write(self, name: str, lines: Any) -> None:  # noqa: ANN401  lines from anywhere
        (self._folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))


def _lines(log: Path) -> Iterator[str]:
    with log.open(errors="replace") as lines:
        yield from lines


def _line(record: Record) -> str:
    value = (record.value or b"").decode(errors="replace")
    headers = {name: header.decode(errors="replace") for name, header in record.headers.items()}
    return json.dumps({"partition": record.partition, "offset": record.offset, "headers": headers, "value": value})


def _digests(verified: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """By partition, out of what the command prints: whether a stop left all pages at one position, this position, series, fingerprint."""
    return {
        f"{part['topic']}/{part['partition']}": (part["settled"], part["position"], part["series"], part["digest"])
        for part in verified["partitions"]
    }
