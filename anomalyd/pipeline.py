"""The run loop: records of the assigned partitions through their shards, what comes out into checkpoints.

The event loop fetches, hands over and commits; worker threads decode, score and judge, most of the time in compiled code that leaves the
GIL to the loop. A partition belongs to one worker, so its records stay in order; a worker has at most two batches, so that it always finds
the next one.
"""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import structlog

from anomalyd.batch import Source
from anomalyd.errors import DeliveryError
from anomalyd.kafka.checkpoint import AlertNote, Checkpoint, Pending
from anomalyd.kafka.consumer import Owner, Polled
from anomalyd.kafka.producer import Message
from anomalyd.shard import DeadLetter, Outcome, Shard
from anomalyd.telemetry.metrics import Metrics

IN_FLIGHT: Final = 2
"""Batches handed to a worker: one that it works on and one that is waiting."""

SMALL_RECORDS: Final = 300
SMALL_BYTES: Final = 64 << 10
"""Up to here the way to the worker and back costs more than the work."""

ALERT_SPACING_S: Final = 0.05
"""Between checkpoints that alerts ask for."""

MOST_PENDING_BYTES: Final = 64 << 20
"""Of messages that brokers do not take; beyond, nothing more is read."""

STOP_DEADLINE_S: Final = 6.0
"""For the last checkpoint."""

_TICK_S: Final = 0.5
_DELIVERY_LATE_S: Final = 10.0
_REJECTED_EVERY_S: Final = 60.0
"""Between warnings about rejected records, of which there may be thousands a second."""

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


@dataclass(slots=True)
class _Job:
    """What one poll brought for one worker."""

    parts: list[tuple[Shard, Polled]]
    assignment: int
    worker: int = 0

    @property
    def small(self) -> bool:
        """Is it done before a worker would have heard of it? On a GPU nothing is: it takes one round for each sample of a series."""
        return (
            sum(len(polled.records) for _, polled in self.parts) <= SMALL_RECORDS
            and sum(len(record.value or b"") for _, polled in self.parts for record in polled.records) <= SMALL_BYTES
            and all(shard.device == "cpu" for shard, _ in self.parts)
        )

    def run(self) -> list[Outcome]:
        return [shard.process(polled.records) for shard, polled in self.parts]


class Pipeline(Owner):
    """Everything between consumer and checkpoint.

    Args:
        consumer: where records come from.
        checkpoint: where results go, with positions.
        make_shard: a new shard for a partition.
        workers: each runs its batches one after the other (one thread).
        metrics: where to count.
        alerts_topic: for alerts.
        dead_letter_topic: for records that could not be read.
        interval_s: between checkpoints.
    """

    def __init__(
        self,
        consumer: Intake,
        checkpoint: Checkpoint,
        make_shard: Callable[[Source], Shard],
        workers: Sequence[Executor],
        metrics: Metrics,
        *,
        alerts_topic: str,
        dead_letter_topic: str,
        interval_s: float = 1.0,
    ) -> None:
        self._consumer = consumer
        self._checkpoint = checkpoint
        self._make_shard = make_shard
        self._workers = workers
        self._metrics = metrics
        self._alerts_topic = alerts_topic
        self._dead_letter_topic = dead_letter_topic
        self._interval_s = interval_s
        self._shards: dict[Source, Shard] = {}
        self._parked: dict[Source, tuple[int, Shard]] = {}
        self._position: dict[Source, int] = {}  # everything in front of it is in `_pending` or durable
        self._assignment = 0  # what a batch of an older one brings is void
        self._pending = Pending()
        self._worker_of: dict[Source, int] = {}
        self._in_flight = [0] * len(workers)
        self._landed = asyncio.Event()  # a batch came back
        self._alert_waits = asyncio.Event()
        self._writing = asyncio.Lock()  # one checkpoint at a time; never held while waiting for records
        self._writing_since: float | None = None
        self._unwritten_bytes = 0
        self._held = False
        self._rejected: dict[str, Counter[str]] = {}  # by stream and reason, since it was last told
        self._rejected_told = -math.inf
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads until `stop`, then finishes what is under way and writes a last checkpoint.

        Raises:
            AnomalydError: going on would not help.
        """
        async with self._in_background(self._write_checkpoints(), self._look_after()):
            while not self._stopping.is_set():
                polled = await self._consumer.poll()
                self._raise_failure()
                self._hand_over(polled)
                await self._until(lambda: max(self._in_flight) < IN_FLIGHT)
                self._hold_or_resume()
            await self._finish()

    def stop(self) -> None:
        """Asks `run` to come to an end."""
        self._stopping.set()

    def _hand_over(self, polled: Sequence[Polled]) -> None:
        """Gives records to the workers; what is small, while they have nothing, is done at once."""
        parts = [(self._shards[part.source], part) for part in polled if part.source in self._shards]
        if not parts:
            return
        if not any(self._in_flight) and (job := _Job(parts, self._assignment)).small:
            self._settle(job, job.run)
            return
        loop = asyncio.get_running_loop()
        for number, worker in enumerate(self._workers):
            job = _Job([part for part in parts if self._worker_of[part[1].source] == number], self._assignment, number)
            if job.parts:
                self._in_flight[number] += 1
                loop.run_in_executor(worker, job.run).add_done_callback(partial(self._land, job))
        self._metrics.in_flight(sum(self._in_flight))

    def _land(self, job: _Job, done: asyncio.Future[list[Outcome]]) -> None:
        """A batch came back. Those of a worker land in their order: it is one thread, and reports through one queue."""
        self._in_flight[job.worker] -= 1
        self._metrics.in_flight(sum(self._in_flight))
        if not done.cancelled():
            self._settle(job, done.result)
        self._landed.set()

    def _settle(self, job: _Job, outcomes: Callable[[], Sequence[Outcome]]) -> None:
        """Takes in what a batch brought. Behind one that failed nothing is: its partition's next position would vouch for it."""
        try:
            brought = outcomes()
            if job.assignment == self._assignment and self._failure is None:
                self._take_in(job, brought)
        except BaseException as error:  # noqa: BLE001  raised out of a callback it would be logged at most
            self._fail(error)

    def _take_in(self, job: _Job, outcomes: Sequence[Outcome]) -> None:
        """Puts results and the positions behind them into the coming checkpoint, and counts."""
        for (shard, polled), outcome in zip(job.parts, outcomes, strict=True):
            for message, produced_ms in outcome.alerts:
                self._pending.add(Message(self._alerts_topic, polled.source.partition, message.key, message.value))
                self._pending.alerts.append(AlertNote(message.alert.status, message.alert.severity, produced_ms))
            for letter in outcome.dead_letters:
                self._pending.add(_dead_letter(self._dead_letter_topic, polled.source, letter))
                self._pending.dead_letters += 1
            self._position[polled.source] = self._pending.positions[polled.source] = polled.next_offset
            self._count(shard, outcome)
            if outcome.alerts:
                self._alert_waits.set()

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
        """While brokers take no messages, memory must not grow: nothing more is read until half of the room is free again."""
        waiting = self._pending.bytes + self._unwritten_bytes
        if not self._held and waiting > MOST_PENDING_BYTES:
            self._held = True
            self._consumer.hold()
            _log.warning("intake_held", pending_bytes=waiting)
        elif self._held and waiting < MOST_PENDING_BYTES // 2:
            self._held = False
            self._consumer.resume()
            _log.info("intake_resumed")
        self._metrics.paused(len(self._shards) if self._held else 0)

    async def _finish(self) -> None:
        """The last checkpoint, if brokers take it in time."""
        done = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_DEADLINE_S):
                await self._drained()
                done = await self._write_checkpoint()
        self._raise_failure()  # which may itself have been a TimeoutError
        if not done:
            _log.warning("stopped_uncommitted", help="nothing is lost: the records since the last checkpoint are read again")

    # --- checkpoints ------------------------------------------------------------------------------------------------

    async def _write_checkpoints(self) -> None:
        """One each interval, or at once when an alert waits."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._alert_waits.wait()
            await self._write_checkpoint()
            await asyncio.sleep(ALERT_SPACING_S)

    async def _write_checkpoint(self) -> bool:
        """Makes everything up to now durable, while the next batches run; returns whether that worked. What did not, waits for the next.

        Raises what must end the loop: behind a batch that failed, whoever asks, nothing is written any more.
        """
        async with self._writing:
            self._raise_failure()
            self._alert_waits.clear()
            self._pass_control_records()
            pending, self._pending = self._pending, Pending()
            if not pending:
                return True
            assignment, began = self._assignment, time.monotonic()
            self._writing_since, self._unwritten_bytes = began, pending.bytes
            try:
                await self._checkpoint.write(pending)
            except BaseException as error:
                if assignment == self._assignment:
                    self._pending = pending.put_before(self._pending)
                if not isinstance(error, DeliveryError):
                    raise
                self._metrics.checkpoint_failed()
                _log.warning("checkpoint_failed", reason=str(error))
                return False
            finally:
                self._writing_since, self._unwritten_bytes = None, 0
            now_s = time.time()
            self._metrics.checkpoint(
                seconds=time.monotonic() - began,
                at_s=now_s,
                alerts=Counter((note.status, note.severity) for note in pending.alerts),
                dead_letters=pending.dead_letters,
                latencies_s=[now_s - note.produced_ms / 1000 for note in pending.alerts if note.produced_ms >= 0],
            )
            return True

    def _pass_control_records(self) -> None:
        """They bring no batch, but a position, which must not lag behind them for ever."""
        if not any(self._in_flight):
            for source, position in self._consumer.positions().items():
                if position > self._position.get(source, position):
                    self._position[source] = self._pending.positions[source] = position

    # --- partitions come and go -------------------------------------------------------------------------------------

    def take(self, positions: Mapping[Source, int]) -> None:
        """Partitions are ours: with the state they had if nobody has read them since, otherwise with an empty one."""
        for source, position in positions.items():
            parked_at, shard = self._parked.pop(source, (None, None))
            if source not in self._shards:
                self._shards[source] = shard if shard is not None and parked_at == position else self._make_shard(source)
            self._position[source] = position
        self._worker_of = {source: number % len(self._workers) for number, source in enumerate(sorted(self._shards))}
        self._parked.clear()

    async def release(self) -> None:
        """The group rebalances: finishes, writes a checkpoint, and parks the state, since what moves is known only afterwards."""
        try:
            await self._drained()
            await self._write_checkpoint()
            self._parked = {source: (self._position[source], shard) for source, shard in self._shards.items()}
        finally:
            self._assignment += 1
            for source in self._shards:
                self._metrics.revoked(*source)
            self._shards.clear()
            self._position.clear()
            self._pending = Pending()

    # --- what an operator sees --------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        late_told = False
        while True:
            asked = time.monotonic()
            await asyncio.sleep(_TICK_S)
            self._metrics.loop_lag(time.monotonic() - asked - _TICK_S)
            self._show_state()
            late = self._writing_since is not None and asked - self._writing_since > _DELIVERY_LATE_S
            if late and not late_told:
                _log.warning("checkpoint_late", waited_s=round(asked - (self._writing_since or asked)), pending_bytes=self._unwritten_bytes)
            late_told = late
            self._tell_rejected()
            await self._consumer.probe()

    def _tell_rejected(self) -> None:
        """A stream configured for another format looks healthy otherwise: read, rejected, no lag."""
        if not self._rejected or time.monotonic() - self._rejected_told < _REJECTED_EVERY_S:
            return
        for stream, reasons in self._rejected.items():
            _log.warning("records_rejected", stream=stream, records=reasons.total(), reasons=dict(reasons.most_common(5)))
        self._rejected.clear()
        self._rejected_told = time.monotonic()

    def _show_state(self) -> None:
        for source, end in self._consumer.ends().items():
            if source in self._position:
                self._metrics.lag(*source, end - self._position[source])
        shards = self._shards.values()
        self._metrics.state(series=sum(shard.series for shard in shards), open_episodes=sum(shard.open_episodes for shard in shards))

    def _count(self, shard: Shard, outcome: Outcome) -> None:
        self._metrics.batch(
            records=outcome.records,
            samples=outcome.samples,
            rejected=outcome.rejected,
            late=outcome.late,
            repeated=outcome.repeated,
            evicted=outcome.evicted,
            decode_s=outcome.decode_s,
            step_s=outcome.step_s,
            episodes_s=outcome.episodes_s,
        )
        if outcome.dead_letters:
            self._rejected.setdefault(shard.stream.name, Counter()).update(outcome.rejected)
        if shard.stream_time_ms is not None:
            self._metrics.watermark(shard.stream.name, shard.stream_time_ms)

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
        except Exception as error:  # noqa: BLE001  whatever it is, it has to end the loop and not just a task
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """From here on nothing is taken in and nothing written. The first failure is the one that is told."""
        self._failure = self._failure or error
        self._landed.set()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _dead_letter(topic: str, source: Source, letter: DeadLetter) -> Message:
    """The record as it came, and in headers where from and why."""
    return Message(
        topic,
        source.partition,
        letter.record.key,
        letter.record.value or b"",
        (
            ("anomalyd-reason", letter.reason.encode()),
            ("anomalyd-topic", source.topic.encode()),
            ("anomalyd-partition", str(source.partition).encode()),
            ("anomalyd-offset", str(letter.record.offset).encode()),
        ),
        dead_letter=True,
    )
