"""The run loop: records of the assigned partitions through their shards, what comes out into their ledgers.

The event loop fetches, hands over and commits; worker threads decode, score and judge, most of the time in compiled code that leaves the
GIL to the loop. A partition belongs to one worker, so its records stay in order; a worker has at most two batches, so that it always finds
the next one. Each partition commits by itself, so that one in trouble holds up no other.
"""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import structlog

from anomalyd.batch import Points, Source
from anomalyd.crashpoints import reached
from anomalyd.detector import Detector
from anomalyd.errors import LostError, StateError
from anomalyd.kafka.consumer import Owner, Polled, Recovered
from anomalyd.lookout import Lookout
from anomalyd.partition import Destinations, Partition
from anomalyd.probation import Probation, Terms
from anomalyd.shard import DeadLetter, Outcome, Shard, StreamPlan
from anomalyd.state.ledger import Ledger
from anomalyd.telemetry.metrics import Metrics
from anomalyd.unless import unasked, unless

IN_FLIGHT: Final = 2
"""Batches handed to a worker: one that it works on and one that is waiting."""

SMALL_RECORDS: Final = 300
SMALL_BYTES: Final = 64 << 10
SMALL_PAGES: Final = 4
"""Up to here the way to the worker and back costs more than the work."""

ALERT_SPACING_S: Final = 0.05
"""Between commits that alerts ask for."""

BEHIND_RECORDS: Final = 50_000
"""With so many records of a partition waiting, an alert is late already: it waits for the interval, and catching up is not held up."""

MOST_PENDING_BYTES: Final = 64 << 20
"""Of messages and pages that brokers do not take; beyond, nothing more is read."""

PAGES_AT_ONCE: Final = 32
"""In one transaction that only flushes."""

STOP_DEADLINE_S: Final = 15.0
"""For the last commits. Kubernetes gives a pod 30 s."""

DEADLY: Final = "deadly"
"""Why a record was rejected that ended the process each time it was tried."""

_TICK_S: Final = 0.5
_PUBLISH_EVERY_S: Final = 10.0

_log = structlog.get_logger(__name__)


class Intake(Protocol):
    """The side of the consumer that the loop uses."""

    async def poll(self) -> list[Polled]:
        """The next records."""

    async def probe(self) -> None:
        """Looks after an idle consumer."""

    def hold(self) -> None:
        """Reads nothing more."""

    def resume(self) -> None:
        """Reads on."""

    def positions(self) -> dict[Source, int]:
        """Behind the last record handed over."""

    def ends(self) -> dict[Source, int]:
        """Of the logs."""

    async def publish(self, positions: Mapping[Source, int]) -> bool:
        """For whoever watches the group's lag."""

    def reclaim(self, source: Source, lost: str = "") -> None:
        """A partition has to be recovered again; `lost` says how it was lost, if it was."""

    def stop_partition(self, source: Source, why: str) -> None:
        """A partition cannot go on."""


@dataclass(slots=True)
class _Job:
    """What one poll brought for one worker."""

    parts: list[tuple[Partition, Polled, int]]
    """With the most pages to write."""
    began_s: float
    """When it was handed over, by the loop's clock."""
    worker: int = 0

    @property
    def small(self) -> bool:
        """Is it done before a worker would have heard of it? On a GPU nothing is: it takes one round for each sample of a series."""
        return (
            sum(len(polled.records) for _, polled, _ in self.parts) <= SMALL_RECORDS
            and sum(len(record.value or b"") for _, polled, _ in self.parts for record in polled.records) <= SMALL_BYTES
            and sum(pages for _, _, pages in self.parts) <= SMALL_PAGES
            and all(partition.shard.device == "cpu" and not partition.shard.moving for partition, _, _ in self.parts)
        )

    def run(self) -> list[Outcome]:
        return [partition.shard.process(polled.records, polled.next_offset, snapshots=pages) for partition, polled, pages in self.parts]


class Pipeline(Owner):
    """Everything between consumer and ledgers.

    Args:
        consumer: where records come from.
        make_shard: a new shard for a partition.
        make_ledger: a new ledger for a partition.
        workers: each runs its batches one after the other (one thread).
        metrics: where to count.
        alerts_topic: for alerts.
        dead_letter_topic: for records that could not be read.
        interval_s: between commits.
        turn_s: in which every page in use is written once.
        probation: what a model has to keep to that was swapped to on trial; None: it stays whatever it does.
        on_unfit: told when one did not: stream, model, and why; the pipeline has gone back to the one before.
        scores_topic: for scores, where shards hand some out.
        on_scores: handed scores of what is committed; must not take long.
        stop_at_gaps: leave a partition alone when input that a replay needs is gone, instead of going on with what is there.
    """

    def __init__(
        self,
        consumer: Intake,
        make_shard: Callable[[Source], Shard],
        make_ledger: Callable[[Source], Ledger],
        workers: Sequence[Executor],
        metrics: Metrics,
        *,
        alerts_topic: str,
        dead_letter_topic: str,
        interval_s: float = 1.0,
        turn_s: float = 60.0,
        stop_at_gaps: bool = False,
        probation: Terms | None = None,
        on_unfit: Callable[[str, Detector, str], None] = lambda _stream, _model, _why: None,
        scores_topic: str = "",
        on_scores: Callable[[Sequence[Points]], None] = lambda _points: None,
    ) -> None:
        self._consumer = consumer
        self._make_shard = make_shard
        self._make_ledger = make_ledger
        self._workers = workers
        self._metrics = metrics
        self._destinations = Destinations(alerts_topic, dead_letter_topic, scores_topic)
        self._on_scores = on_scores
        self._interval_s = interval_s
        self._turn_s = turn_s
        self._stop_at_gaps = stop_at_gaps
        self._terms = probation
        self._on_unfit = on_unfit
        self._probations: dict[str, Probation] = {}
        self._before: dict[str, Detector] = {}  # what scored before the model that is, or was, on trial, by stream
        self._plans: dict[str, StreamPlan] = {}  # that were adopted since, by input topic
        self._models: dict[str, Detector] = {}  # that were swapped to since, by stream
        self._challengers: dict[str, Detector | None] = {}  # that score beside, by stream
        self._partitions: dict[Source, Partition] = {}
        self._recovering: set[Source] = set()
        self._waiting: dict[Source, Partition] = {}  # not read yet
        self._parked: dict[Source, Partition] = {}  # put aside while the group decides
        self._begun: set[Source] = set()  # of which the group has said that something was committed
        self._worker_of: dict[Source, int] = {}
        self._in_flight = [0] * len(workers)
        self._releases = 0  # what was read in front of one is read again
        self._landed = asyncio.Event()  # a batch came back
        self._alert_waits = asyncio.Event()
        self._handing_back = False  # no pages in between: they would land when nobody waits for them any more
        self._held = False
        self._lookout = Lookout(metrics)
        self._closing: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads until `stop`, then finishes what is under way, writes what was learned and commits.

        Raises:
            AnomalydError: going on would not help.
        """
        try:
            async with self._in_background(self._commit_in_turn(), self._look_after(), self._probe_in_turn(), self._publish_in_turn()):
                while not self._stopping.is_set():
                    polled = await self._consumer.poll()
                    self._raise_failure()
                    careful = [part for part in polled if self._needs_care(part)]
                    # At once: what lay about while something else is waited for would be passed over as if it had been control records.
                    self._hand_over([part for part in polled if part not in careful])
                    await self._try_carefully(careful)
                    await self._until(lambda: self._stopping.is_set() or max(self._in_flight) < IN_FLIGHT)
                    self._hold_or_resume()
            await self._finish()
        finally:
            for partition in [*self._partitions.values(), *self._waiting.values(), *self._parked.values()]:
                self._let_go(partition)
            await asyncio.gather(*self._closing)

    def stop(self) -> None:
        """Asks `run` to come to an end."""
        self._stopping.set()
        self._landed.set()  # from here on a worker that hangs is waited for within the deadline only

    def adopt(self, plans: Mapping[str, StreamPlan]) -> None:
        """Alert policies, labels and annotations of these plans hold from now on.

        Args:
            plans: by input topic.
        """
        self._plans = dict(plans)
        for partition in [*self._partitions.values(), *self._waiting.values(), *self._parked.values()]:
            self._renew(partition)

    def swap(self, stream: str, detector: Detector, *, on_trial: bool = False) -> None:
        """This model scores the stream from now on: each of its partitions from its next batch on, those that come later, too.

        Args:
            stream: its name.
            detector: the model, ready to run.
            on_trial: it may go by rule. Otherwise it stays, and a trial that is under way ends: going back has to come to an end.

        Raises:
            ArtifactError: it is for samples of another number of values.
        """
        for partition in [*self._partitions.values(), *self._waiting.values(), *self._parked.values()]:
            if partition.shard.stream.name == stream:
                partition.shard.swap(detector)
        before = self._models.get(stream)
        if before is not None and before is not detector:
            probation = self._probations.setdefault(stream, Probation(self._terms))
            if on_trial:
                self._before[stream] = before
                probation.begin()
            else:
                self._before.pop(stream, None)
                probation.end()
        self._models[stream] = detector

    def shade(self, stream: str, challenger: Detector | None) -> None:
        """This model scores the stream beside its own, and tells nobody; None: none does.

        Raises:
            ArtifactError: it is for samples of another number of values.
        """
        for partition in [*self._partitions.values(), *self._waiting.values(), *self._parked.values()]:
            if partition.shard.stream.name == stream:
                partition.shard.shade(challenger)
        self._challengers[stream] = challenger

    def _renew(self, partition: Partition) -> None:
        """The shard was made with the plan and the model that held at the start."""
        if (detector := self._models.get(partition.shard.stream.name)) is not None:
            partition.shard.swap(detector)
        if (challenger := self._challengers.get(partition.shard.stream.name)) is not None:
            partition.shard.shade(challenger)
        if (plan := self._plans.get(partition.source.topic)) is not None:
            partition.shard.adopt(plan)

    def _hand_over(self, polled: Sequence[Polled]) -> None:
        """Gives records to the workers; what is small, while they have nothing, is done at once."""
        parts = [(partition, part, self._pages_due(partition)) for part in polled if (partition := self._partitions.get(part.source))]
        if not parts:
            return
        for partition, _, _ in parts:
            partition.in_flight += 1
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        if not any(self._in_flight) and (job := _Job(parts, began_s)).small:
            self._take_in_job(job, job.run)
            return
        for number, worker in enumerate(self._workers):
            job = _Job([part for part in parts if self._worker_of[part[0].source] == number], began_s, number)
            if job.parts:
                self._in_flight[number] += 1
                loop.run_in_executor(worker, job.run).add_done_callback(partial(self._land, job))
        self._metrics.in_flight(sum(self._in_flight))

    def _land(self, job: _Job, done: asyncio.Future[list[Outcome]]) -> None:
        """A batch came back. Those of a worker land in their order: it is one thread, and reports through one queue."""
        self._in_flight[job.worker] -= 1
        self._metrics.in_flight(sum(self._in_flight))
        if not done.cancelled():
            self._take_in_job(job, done.result)
        self._landed.set()

    def _take_in_job(self, job: _Job, outcomes: Callable[[], Sequence[Outcome]]) -> None:
        """Takes in what a batch brought. Behind one that failed nothing is: its partition's next position would vouch for it."""
        for partition, _, _ in job.parts:
            partition.in_flight -= 1
        try:
            for (partition, _, _), outcome in zip(job.parts, outcomes(), strict=True):
                # Of a partition that was given up meanwhile nothing counts.
                if self._failure is None and self._partitions.get(partition.source) is partition:
                    self._take_in(partition, outcome)
            if any(polled.records for _, polled, _ in job.parts):
                self._metrics.turned_around(_now() - job.began_s)
        except BaseException as error:  # noqa: BLE001  raised out of a callback it would be logged at most
            self._fail(error)

    def _take_in(self, partition: Partition, outcome: Outcome) -> None:
        partition.take_in(outcome, self._destinations)
        self._lookout.batch(partition.shard, outcome)
        self._lookout.goes_on(partition)
        self._watch(partition.shard.stream.name, outcome)
        if outcome.replayed:
            reached("replay")
        if partition.urgent:
            self._alert_waits.set()

    def _watch(self, stream: str, outcome: Outcome) -> None:
        """A model on trial that does not keep to the terms goes; the one before scores again."""
        probation = None if self._terms is None else self._probations.setdefault(stream, Probation(self._terms))
        if probation is None or not (why := probation.count(outcome.fired, outcome.alarms_allowed, outcome.unsound)):
            return
        unfit, before = self._models[stream], self._before[stream]
        _log.error("model_unfit", stream=stream, model=unfit.model.hash, reason=why, instead=before.model.hash)
        self.swap(stream, before)
        self._on_unfit(stream, unfit, why)

    async def _drained(self) -> None:
        await self._until(lambda: not any(self._in_flight))

    async def _until(self, enough: Callable[[], bool]) -> None:
        """Waits for batches to come back. Raises what must end the loop."""
        self._raise_failure()
        while not enough():
            self._landed.clear()
            await self._landed.wait()
            self._raise_failure()

    def _hold_or_resume(self) -> None:
        """While brokers take nothing, memory must not grow: nothing more is read until half of the room is free again."""
        waiting = sum(partition.parcel.bytes + partition.bytes_committing for partition in self._partitions.values())
        self._metrics.pending(waiting)
        if not self._held and waiting > MOST_PENDING_BYTES:
            self._held = True
            self._consumer.hold()
            _log.warning("intake_held", pending_bytes=waiting)
        elif self._held and waiting < MOST_PENDING_BYTES // 2:
            self._held = False
            self._consumer.resume()
            _log.info("intake_resumed")
        self._metrics.paused(len(self._partitions) if self._held else 0)

    async def _finish(self) -> None:
        """The last commits, with all that was learned, so that nothing has to be replayed; if brokers take it in time."""
        done, self._handing_back = False, True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._drained()
                await self._commit_all()
                await asyncio.gather(*(self._flush(partition) for partition in list(self._partitions.values())))
                await self._publish()
                done = True
        self._raise_failure()  # which may itself have been a TimeoutError
        if not done:
            _log.warning("stopped_uncommitted", help="nothing is lost: what was not committed is done again")

    # --- records that end the process -------------------------------------------------------------------------------

    def _needs_care(self, polled: Polled) -> bool:
        partition = self._partitions.get(polled.source)
        # Owners have survived what is replayed; what lies behind it may come with the same poll.
        return partition is not None and partition.trial is not None and polled.next_offset > partition.shard.live_from

    async def _try_carefully(self, polled: Sequence[Polled]) -> None:
        """Takes a few records at a time where owners have died again and again, and says so before."""
        releases, owned = self._releases, dict(self._partitions)

        async def drained(partition: Partition) -> bool:
            """Whether it still is the partition of which this was read: one that was recovered meanwhile reads it again."""
            await self._until(lambda: self._stopping.is_set() or not any(self._in_flight))
            return not self._stopping.is_set() and releases == self._releases and self._partitions.get(partition.source) is partition

        for part in polled:
            partition, live_from = owned[part.source], owned[part.source].shard.live_from
            alive = await drained(partition)
            if alive and partition.to_replay:
                self._hand_over([Polled(part.source, [record for record in part.records if record.offset < live_from], live_from)])
                alive = await drained(partition)
            if alive:
                await self._try(partition, part._replace(records=[record for record in part.records if record.offset >= live_from]))

    async def _try(self, partition: Partition, polled: Polled) -> None:
        """Those that need no care any more go the usual way. After a release they are read again, even if the partition stays."""
        records, releases = list(polled.records), self._releases
        while (
            records and partition.trial is not None and not self._stopping.is_set() and self._partitions.get(partition.source) is partition
        ):
            trial = partition.trial
            if trial.deadly:
                _log.error("record_deadly", topic=partition.source.topic, partition=partition.source.partition, offset=records[0].offset)
                outcome = partition.shard.process([], records[0].offset + 1)
                outcome.dead_letters.append(DeadLetter(records.pop(0), DEADLY))
                outcome.records += 1
            else:
                tried = records[: trial.size]
                partition.account()
                partition.parcel.work.trial = trial.announced()
                await unless(self._stopping, self._commit(partition))
                if self._stopping.is_set():
                    return
                if releases != self._releases or self._partitions.get(partition.source) is not partition:
                    return
                behind = polled.next_offset if len(tried) == len(records) else tried[-1].offset + 1
                outcome = partition.shard.process(tried, behind, snapshots=min(self._pages_due(partition), SMALL_PAGES))
                del records[: len(tried)]
            self._take_in(partition, outcome)
            partition.trial = trial.survived(partition.position)
        if records and not self._stopping.is_set() and self._partitions.get(partition.source) is partition:
            self._hand_over([polled._replace(records=records)])
        await unless(self._stopping, self._commit(partition))

    # --- commits ----------------------------------------------------------------------------------------------------

    async def _commit_in_turn(self) -> None:
        """Each partition once an interval, or at once when an alert waits."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._alert_waits.wait()
            self._alert_waits.clear()
            self._raise_failure()
            if not self._handing_back:
                self._pass_quiet()
            now, ends = _now(), self._consumer.ends()
            for partition in list(self._partitions.values()):
                behind = ends.get(partition.source, 0) - partition.position > BEHIND_RECORDS
                due = (partition.urgent and not behind) or now - partition.committed_s >= self._interval_s - ALERT_SPACING_S
                if due and partition.parcel.work and partition.committing is None:
                    partition.committing = asyncio.create_task(self._kept(self._commit_once(partition)))
                elif partition.urgent:
                    self._alert_waits.set()
            await asyncio.sleep(ALERT_SPACING_S)

    async def _commit(self, partition: Partition) -> None:
        """Returns when everything up to now is committed, or the partition given up."""
        while (partition.committing or partition.parcel.work) and self._partitions.get(partition.source) is partition:
            self._raise_failure()
            if partition.committing is None:
                partition.committing = asyncio.create_task(self._kept(self._commit_once(partition)))
            await asyncio.wait({partition.committing})
        self._raise_failure()

    async def _commit_all(self) -> None:
        """What is left, and that nobody died: whoever claims a quiet partition next need not be careful."""
        self._pass_quiet()
        await self._drained()
        for partition in self._partitions.values():
            if partition.position >= 0 and not partition.to_replay:
                partition.account()
                partition.parcel.work.clean = True
        await asyncio.gather(*(self._commit(partition) for partition in list(self._partitions.values())))

    async def _commit_once(self, partition: Partition) -> None:
        parcel, began = partition.take_parcel(), _now()
        partition.committed_s, partition.bytes_committing = began, parcel.bytes
        if parcel.dead_letters:
            reached("dead-letter")
        if parcel.work.forgotten:
            reached("expiry")
        if parcel.work.models:
            reached("swap")
        try:
            await partition.ledger.commit(parcel.work)
        except LostError as error:
            self._give_up(partition)
            self._consumer.reclaim(partition.source, lost=str(error))
        except StateError as error:
            self._give_up(partition)
            self._consumer.stop_partition(partition.source, str(error))
        else:
            self._lookout.commit(parcel, _now() - began)
            if parcel.points:
                self._on_scores(parcel.points)
        finally:
            partition.committing, partition.bytes_committing = None, 0

    async def _flush(self, partition: Partition) -> None:
        """Writes all pages that changed."""
        loop = asyncio.get_running_loop()
        while partition.shard.dirty_pages and not partition.to_replay and self._partitions.get(partition.source) is partition:
            worker = self._workers[self._worker_of[partition.source]]
            pages = await loop.run_in_executor(worker, partition.shard.snapshot, PAGES_AT_ONCE)
            if not pages:
                return  # those that are left cannot be written yet
            partition.parcel.work.pages |= pages
            partition.account()
            reached("flush")
            await self._commit(partition)

    def _pages_due(self, partition: Partition) -> int:
        """How many pages may go out with the next batch, so that all in use do once a turn."""
        room = MOST_PENDING_BYTES // 2 - partition.parcel.bytes - partition.bytes_committing
        return int(partition.allowance) if room > 0 and not partition.to_replay else 0

    def _pass_quiet(self) -> None:
        """Control records bring no batch, but a position, which must not lag behind them for ever; nor must pages of a quiet partition."""
        positions = self._consumer.positions()
        for source, partition in list(self._partitions.items()):
            if self._in_flight[self._worker_of[source]] or partition.trial is not None:
                continue
            position = max(partition.position, positions.get(source, -1))
            pages = self._pages_due(partition) if partition.shard.dirty_pages else 0
            if position > partition.position or pages:
                self._hand_over([Polled(source, (), position)])

    async def _publish(self) -> None:
        committed = {source: partition.ledger.position for source, partition in self._partitions.items()}
        await self._consumer.publish({source: position for source, position in committed.items() if position is not None})

    # --- partitions come and go -------------------------------------------------------------------------------------

    def assigned(self, sources: Collection[Source]) -> None:
        """See `Owner`."""
        for source in [source for source in self._parked if source not in sources]:
            self._let_go(self._parked.pop(source))
        self._worker_of = {source: number % len(self._workers) for number, source in enumerate(sorted(sources))}

    async def recover(self, source: Source, partitions: int) -> Recovered | None:
        """See `Owner`. What was put aside goes on from memory: if somebody had it meanwhile, its next commit will be refused."""
        if (kept := self._parked.get(source)) is not None and kept.position < 0:
            self._let_go(self._parked.pop(source))  # it knows nothing, which need not be true any more
        elif kept is not None:
            if kept.ledger.partitions != partitions:
                raise StateError(kept.ledger.repartitioned(partitions))
            self._waiting[source] = self._parked.pop(source)
            kept.read_from = kept.position
            return Recovered(kept.position, kept.ledger.position or kept.position)
        partition = Partition(source, self._make_shard(source), self._make_ledger(source))
        self._recovering.add(source)
        try:
            recovered = await partition.restore(partitions, self._workers[self._worker_of[source]])
        except BaseException:
            self._let_go(partition)
            raise
        finally:
            self._recovering.discard(source)
        self._lookout.claimed(partition)
        self._renew(partition)
        self._waiting[source] = partition
        return recovered

    def take(self, positions: Mapping[Source, int], *, begun: bool = False) -> None:
        """See `Owner`."""
        running = self._partitions.keys() - self._waiting.keys()
        for source, position in positions.items():
            partition = self._waiting.pop(source, None) or self._partitions.pop(source)
            expected = partition.position if partition.read_from is None else max(partition.read_from, partition.position)
            if expected < 0 and begun and source not in self._begun:
                # Somebody may have begun it after we had looked. A claim that finds nothing from now on is proof.
                self._begun.add(source)
                self._let_go(partition)
                self._consumer.reclaim(source)
                continue
            if expected < 0 and (begun or partition.missing) and not self._goes_on_with_nothing(partition, position):
                continue
            if 0 <= position < expected and source in running:
                self._let_go(partition)
                self._consumer.reclaim(source)
                continue
            if 0 <= position < expected:
                partition = self._begin_anew(partition, position)
            elif position > expected >= 0 and self._stop_at_gaps:
                self._let_go(partition)
                why = f"input from {expected} to {position}, which a restore needs, is no longer retained, and state.on_gap is stop"
                self._consumer.stop_partition(source, why)
                continue
            elif position > expected >= 0:
                _log.error("state_gap", topic=source.topic, partition=source.partition, first=expected, records=position - expected)
                self._metrics.gap(position - expected)
            partition.committed_s = -math.inf  # the first commit pins where we began
            self._partitions[source] = partition
            self._lookout.goes_on(partition)
            if position != partition.position:
                self._hand_over([Polled(source, (), position)])

    def _goes_on_with_nothing(self, partition: Partition, position: int) -> bool:
        """Its changelog has lost its records. What was told of series, and which alerts are open, nobody knows any more."""
        source = partition.source
        _log.error("state_missing", topic=source.topic, partition=source.partition, position=position)
        if self._stop_at_gaps:
            self._let_go(partition)
            why = (
                f"its state is gone: there was a position, and the changelog holds none; state.on_gap is stop, with continue it begins "
                f"with empty state at input offset {position}"
            )
            self._consumer.stop_partition(source, why)
        return not self._stop_at_gaps

    def _begin_anew(self, partition: Partition, position: int) -> Partition:
        """The input topic was made anew: its offsets mean other records now, and what was learned is about others."""
        source = partition.source
        _log.error("state_discarded", topic=source.topic, partition=source.partition, position=partition.position, now=position)
        fresh = Partition(source, self._make_shard(source), partition.ledger, read_from=position)
        self._renew(fresh)
        fresh.parcel.work.pages = dict.fromkeys(partition.ledger.records)
        fresh.parcel.work.anew = True
        # What was told of the old one ends; nothing will ever be heard of it again.
        for outcome in (partition.shard.process([], partition.shard.live_from), partition.shard.forget_all()):
            outcome.pages, outcome.episodes, outcome.forgotten, outcome.policies = {}, {}, {}, []
            outcome.corrections, outcome.models = [], []
            fresh.take_in(outcome, self._destinations)
        fresh.position = fresh.parcel.work.position = -1  # which is where the new topic begins; told in a moment
        return fresh

    async def release(self) -> None:
        """See `Owner`. Puts the state aside, since what moves is known only afterwards."""
        self._handing_back = True
        try:
            await self._drained()
            reached("revoke")
            await self._commit_all()
            await self._publish()
        finally:
            self._handing_back = False
            self._releases += 1
            for source, partition in self._partitions.items():
                self._metrics.revoked(*source)
                # A batch that is still under way moves the shard, and what comes of it is dropped.
                quiet = not partition.in_flight and partition.committing is None and not partition.parcel.work
                if quiet and self._failure is None:
                    self._parked[source] = partition
                else:
                    self._let_go(partition)
            self._parked |= self._waiting
            self._waiting.clear()
            self._partitions.clear()

    def _give_up(self, partition: Partition) -> None:
        """What is in memory of a partition is worth nothing any more."""
        if self._partitions.get(partition.source) is partition:
            del self._partitions[partition.source]
            self._metrics.revoked(*partition.source)
        partition.committing = None
        self._let_go(partition)

    def _let_go(self, partition: Partition) -> None:
        if partition.committing is not None:
            partition.committing.cancel()
        task = asyncio.create_task(partition.ledger.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # --- what an operator sees --------------------------------------------------------------------------------------

    @property
    def restored(self) -> bool:
        """Whether every partition that we have goes on where it was."""
        return not self._recovering and not self._waiting and not any(partition.to_replay for partition in self._partitions.values())

    def status(self) -> dict[str, Any]:
        """How far restoring is, for people."""
        replaying = {source: p for source, p in self._partitions.items() if p.to_replay}
        return {"partitions_replaying": len(replaying), "records_to_replay": sum(p.to_replay for p in replaying.values())}

    async def _look_after(self) -> None:
        while True:
            asked = _now()
            await asyncio.sleep(_TICK_S)
            self._metrics.loop_lag(_now() - asked - _TICK_S)
            for partition in self._partitions.values():
                partition.allow(_TICK_S / self._turn_s)
            self._lookout.look(self._partitions.values(), len(self._recovering | self._waiting.keys()), self._consumer.ends())

    async def _probe_in_turn(self) -> None:
        """By itself: brokers that are gone leave it waiting, and everything else that is looked after must not wait with it."""
        while True:
            await asyncio.sleep(_TICK_S)
            await self._consumer.probe()

    async def _publish_in_turn(self) -> None:
        """Likewise."""
        while True:
            await asyncio.sleep(_PUBLISH_EVERY_S)
            await self._publish()

    # --- failures ---------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _in_background(self, *works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._kept(work)) for work in works]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _kept(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            if (failure := unasked(error)) is None:
                raise
            self._fail(failure)
        except Exception as error:  # noqa: BLE001  whatever it is, it has to end the loop and not just a task
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """From here on nothing is taken in and nothing written. The first failure is the one that is told."""
        self._failure = self._failure or error
        self._landed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _now() -> float:
    """Seconds, monotonic; the simulation's loop has a clock of its own."""
    return asyncio.get_running_loop().time()
