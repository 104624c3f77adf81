"""The daemon: everything wired in one straight function, teardown registered where a thing is made and run in reverse."""

import asyncio
import contextlib
import faulthandler
import gc
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol, Self, get_args

import structlog

from anomalyd import __version__
from anomalyd.alerts.budget import Pace
from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.mutes import EVERY_DAY, Mute
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.batch import Points, Source
from anomalyd.champions import Champions, read_timeline
from anomalyd.detector import Detector, Options
from anomalyd.errors import AnomalydError, ArtifactError, KafkaUnavailableError
from anomalyd.formats import REASONS, FormatOptions, make_decoder
from anomalyd.kafka import topics
from anomalyd.kafka.changelog import ChangelogReader
from anomalyd.kafka.client import Backoff
from anomalyd.kafka.consumer import Consumer
from anomalyd.kafka.transactions import writer_of
from anomalyd.pipeline import DEADLY, MOST_PENDING_BYTES, Pipeline
from anomalyd.probation import Terms
from anomalyd.remote.series import Names
from anomalyd.remote.writer import RemoteWriter
from anomalyd.series import Entities, Selection
from anomalyd.settings import AlertPolicy, Day, MuteSettings, RemoteWriteSettings, Settings, StreamSettings
from anomalyd.shard import INTERNAL_ERROR, Observer, Shard, StreamPlan
from anomalyd.shard_models import Planned
from anomalyd.shard_scores import ScorePlan
from anomalyd.state.chain import PROCESS_BYTES
from anomalyd.state.ledger import Ledger
from anomalyd.stream_model import artifact_of
from anomalyd.telemetry.metrics import Metrics
from anomalyd.telemetry.server import HttpServer
from anomalyd.unless import unasked
from anomalyd.warmup import warm_up

_SWITCH_S: Final = 0.0005
"""How long the loop may keep the GIL from the worker, whose compiled steps are shorter than the interpreter's usual five milliseconds."""

_COLLECT_EVERY: Final = (100_000, 50, 100)
"""Records are made and dropped by the hundred thousand a second, and none is part of a cycle: collecting after every 700 objects costs
aiokafka a quarter of its speed."""

_PROCESS: Final = os.urandom(PROCESS_BYTES)

WORKER: Final = "worker"
"""What the names of worker threads begin with."""

_LEAVE_S: Final = 1.0
"""So long does the end of the process wait for workers: everything that they did for it was committed, or never will be."""

LEAST_SWEEP_RECORDS: Final = 1 << 12
"""Between looks for series that are no more."""

MOSTWORKERS: Final = 4
"""Beyond, the one thread that fetches is what limits the rate."""

_log = structlog.get_logger(__name__)


class App:
    """One instance of the daemon.

    For the command: `await App(settings).run()`. Inside another program, such as the demo and tests:

        async with App(settings, observer=look) as app:
            await app.until_ready()
            ...

    Args:
        settings: the configuration.
        observer: sees every batch with its verdicts and alerts, one at a time: large ones in a worker thread, small ones in the event
            loop's own, which it must not hold up.
        on_assembled: called once everything is made and before anything is read.
        read_again: the configuration as it is now, for `reload`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        observer: Observer | None = None,
        on_assembled: Callable[[], None] = lambda: None,
        read_again: Callable[[], Settings] | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics(reasons=(*REASONS, INTERNAL_ERROR, DEADLY))
        self.metrics.configured(time.time())
        self.port: int | None = None
        """Of the HTTP server, once it listens."""
        self._observer = observer
        self._on_assembled = on_assembled
        self._read_again = read_again
        self._reload_asked = False
        # One worker where somebody looks on: an observer need not know of threads.
        self._worker_count = max(1, min(MOSTWORKERS, len(os.sched_getaffinity(0)))) if observer is None else 1
        self._waiting: Mapping[str, Any] = {"kafka": "starting"}
        self._consumer: Consumer | None = None
        self._pipeline: Pipeline | None = None
        self._running: asyncio.Task[None] | None = None
        self.stopping = False
        self.metrics.capacity(series=settings.max_series, workers=self._worker_count, pending_bytes=MOST_PENDING_BYTES)
        self.metrics.readiness(lambda: self._ready()[0])

    # --- running ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until `stop`; however it ends, everything that was begun is undone in reverse.

        Raises:
            AnomalydError: what the operator has to change.
        """
        self._running = asyncio.current_task()
        try:
            async with contextlib.AsyncExitStack() as teardown:
                pipeline = await self._assemble(teardown)
                await pipeline.run()
        except asyncio.CancelledError as error:
            if (failure := unasked(error)) is not None:
                raise failure from error
            # stop() cancels what has not begun to read yet, such as waiting for brokers.
            if not self.stopping or self._running is None or self._running.uncancel():
                raise
        _log.info("stopped")

    async def _assemble(self, teardown: contextlib.AsyncExitStack) -> Pipeline:
        settings, metrics = self.settings, self.metrics
        _log.info("starting", version=__version__, group=settings.kafka.group_id, streams=[stream.name for stream in settings.streams])

        server = HttpServer(settings.http, metrics.registry, health=self._health, ready=self._ready)
        teardown.push_async_callback(server.stop)
        self.port = await server.start()
        _log.info("http_listening", host=settings.http.host, port=self.port)

        workers = [ThreadPoolExecutor(1, f"{WORKER}-{number}") for number in range(self._worker_count)]
        for worker in workers:
            teardown.callback(worker.shutdown, wait=False, cancel_futures=True)
        _log.info("detector_loading")
        streams = await asyncio.get_running_loop().run_in_executor(workers[0], load_streams, settings)

        await _verify_topics(settings, self._unreachable)

        champions = Champions(settings, {stream.plan.name: stream.detector for stream in streams.values()}, metrics)
        teardown.push_async_callback(champions.close)
        at_work = await champions.begin(self._unreachable)
        streams = {
            topic: replace(stream, detector=at_work[stream.plan.name], find=partial(champions.find, stream.plan.name))
            for topic, stream in streams.items()
        }
        planned = await asyncio.get_running_loop().run_in_executor(workers[0], plan_models, settings, streams)

        start_from = {topic: stream.start_from for stream in settings.streams for topic in stream.topics}
        consumer = self._consumer = Consumer(settings.kafka, start_from, metrics)
        teardown.push_async_callback(consumer.stop)
        on_scores: Callable[[Sequence[Points]], None] = _nobody
        if (remote := remote_writer(settings.remote_write, metrics)) is not None:
            teardown.push_async_callback(remote.stop)
            remote.start()
            on_scores = remote.offer
        pipeline = Pipeline(
            consumer,
            lambda source: streams[source.topic].shard(
                source, max(1, settings.max_series // max(1, consumer.partitions_of_inputs)), self._observer, planned.get(source, ())
            ),
            lambda source: make_ledger(settings, source, consumer, metrics),
            workers,
            metrics,
            alerts_topic=settings.alerts.topic,
            dead_letter_topic=settings.dead_letter_topic,
            scores_topic=settings.scores.topic or "",
            on_scores=on_scores,
            interval_s=settings.checkpoint.interval_s,
            turn_s=settings.state.turn_s,
            stop_at_gaps=settings.state.on_gap == "stop",
            probation=Terms(settings.models.most_alerts) if settings.models.most_alerts and settings.models.timeline is None else None,
            on_unfit=champions.unfit,
        )
        for stream in streams.values():
            pipeline.swap(stream.plan.name, stream.detector)
        following = asyncio.create_task(champions.follow(pipeline))
        teardown.push_async_callback(_cancelled, following)
        await consumer.start(pipeline)
        self._on_assembled()
        self._pipeline = pipeline
        if self._reload_asked:
            self.reload()
        return pipeline

    def stop(self) -> None:
        """Asks `run` to finish the batch, commit, leave the group and return."""
        self.stopping = True
        if self._pipeline is not None:
            self._pipeline.stop()
            if self._consumer is not None:
                self._consumer.interrupt()
        elif self._running is not None:
            self._running.cancel()

    def reload(self) -> None:
        """Reads the configuration again and takes over its alert policies.

        What else has changed is named in the log; it needs a restart. A configuration that is not valid changes nothing.
        """
        self._reload_asked = True
        if self._read_again is not None and self._pipeline is not None:
            plans = read_plans(self.settings, self._read_again, self.metrics)
            if plans is not None:
                self._pipeline.adopt(plans)

    # --- inside another program -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._running = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if self._running is not None:
            await self._running

    async def until_ready(self, timeout_s: float = 60.0) -> None:
        """Returns once partitions are assigned and their state is restored.

        Raises:
            AnomalydError: the daemon ended instead.
            TimeoutError: it took longer.
        """
        async with asyncio.timeout(timeout_s):
            while not self._ready()[0]:
                if self._running is None or self._running.done():
                    await (self._running or asyncio.sleep(0))
                    raise RuntimeError("the daemon was stopped before it was ready")
                await asyncio.sleep(0.02)

    # --- health -----------------------------------------------------------------------------------------------------

    def _health(self) -> tuple[bool, Mapping[str, Any]]:
        """Answering at all says that the loop turns; brokers have no part in it."""
        return True, {}

    def _unreachable(self, reason: str) -> None:
        self._waiting = {"kafka": "unreachable", "reason": reason}

    def _ready(self) -> tuple[bool, Mapping[str, Any]]:
        if self._consumer is None:
            return False, self._waiting
        if self._pipeline is None:
            return False, self._consumer.status()
        return self._consumer.ready and self._pipeline.restored, self._consumer.status() | self._pipeline.status()


@dataclass(frozen=True, slots=True)
class Stream:
    """What the shards of a stream share."""

    plan: StreamPlan
    detector: Detector
    format: str
    options: FormatOptions
    find: Callable[[str], Detector]
    """By the hash of a model that scored some of the stream, its detector; raises ArtifactError where it cannot be had."""

    series_ttl_ms: int
    reading: str
    """Fingerprint of everything that decides which series a spelling in a record stands for."""
    sweep_records: int | None = None
    """Offsets from one look for series that are no more to the next; None: as many as there may be series."""
    scores: ScorePlan | None = None
    """Whose scores are handed out; None: nobody's."""
    pace: Pace | None = None
    """How slowly thresholds give where the alert budget is not held; None: as usual."""

    def shard(self, source: Source, capacity: int, observer: Observer | None = None, plan: Sequence[Planned] = ()) -> Shard:
        """A shard for one partition; see `Shard`."""
        return Shard(
            self.plan,
            source,
            self.detector,
            make_decoder(self.format, self.options),
            capacity,
            observer=observer,
            series_ttl_ms=self.series_ttl_ms,
            sweep_records=self.sweep_records or max(LEAST_SWEEP_RECORDS, 1 << (capacity - 1).bit_length()),
            reading=self.reading,
            pace=self.pace,
            find=self.find,
            plan=plan,
            scores=self.scores,
        )


def load_streams(settings: Settings) -> dict[str, Stream]:
    """The streams by topic, their compiled parts loaded and ready to run.

    Raises:
        ArtifactError: the model cannot be used.
        ConfigError: a selector is not valid, or there is no such device.
    """
    streams: dict[str, Stream] = {}
    scores = score_plan(settings)
    for configured in settings.streams:
        policy = settings.policy(configured)
        detector = Detector(artifact_of(configured), settings.device, Options(budget_per_day=policy.budget, kind=configured.kind))
        stream = Stream(
            stream_plan(configured, policy),
            detector,
            configured.format,
            FormatOptions(configured.timestamp_unit),
            _nowhere,
            series_ttl_ms=round(settings.state.series_ttl_s * 1000),
            reading=_reading(configured),
            scores=scores,
        )
        warm_up(stream.detector, [stream.format], several=stream.plan.entities is not None)
        streams |= dict.fromkeys(configured.topics, stream)
    return streams


def plan_models(settings: Settings, streams: Mapping[str, Stream]) -> dict[Source, list[Planned]]:
    """The changes of models that `models.timeline` asks for.

    Args:
        settings: the configuration.
        streams: by topic, where they find their models.

    Raises:
        ArtifactError: a model cannot be had.
        ConfigError: the file is not valid.
    """
    if (path := settings.models.timeline) is None:
        return {}
    try:
        return {
            source: [(offset, streams[source.topic].find(model)) for offset, model in changes]
            for source, changes in read_timeline(path, settings.streams).items()
        }
    except ArtifactError as error:
        raise ArtifactError(f"models.timeline: {path}: {error}") from error


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _nobody(points: Sequence[Points]) -> None:
    """Scores that nobody asked for."""


def _nowhere(model: str) -> Detector:
    raise ArtifactError(f"nobody has looked for the model {model[:12]} yet")


def score_plan(settings: Settings) -> ScorePlan:
    """Whose scores go where."""
    scores, remote = settings.scores, settings.remote_write
    return ScorePlan(
        topic=None if scores.topic is None else Selection(scores.include, scores.exclude),
        remote=None if remote.url is None else Selection(remote.include, remote.exclude),
    )


def remote_writer(settings: RemoteWriteSettings, metrics: Metrics) -> RemoteWriter | None:
    """What writes scores to a store of time series; None: nobody asked for it."""
    if settings.url is None:
        return None
    names = settings.names
    return RemoteWriter(
        settings.url,
        names=Names(names.score, names.expected, names.low, names.high),
        labels=settings.labels,
        headers=settings.headers,
        token_file=settings.token_file,
        most_waiting=settings.queue_samples,
        most_at_once=settings.batch_samples,
        timeout_s=settings.timeout_s,
        ssl_context=settings.ssl_context(),
        metrics=metrics,
    )


def stream_plan(stream: StreamSettings, policy: AlertPolicy) -> StreamPlan:
    """A stream's settings as its shards take them.

    Raises:
        ConfigError: a selector is not valid.
    """
    return StreamPlan(
        name=stream.name,
        policy=Policy(
            min_deviation=policy.min_deviation,
            min_deviation_ratio=policy.min_deviation_ratio,
            min_duration_ms=round(policy.min_duration_s * 1000),
            reopen_after_ms=round(policy.reopen_after_s * 1000),
            resolve_after_samples=policy.resolve_after_samples,
            critical_score=policy.critical_score,
            direction=policy.direction,
            mutes=tuple(mute_of(mute) for mute in policy.mutes),
            budget_per_day=policy.budget,
            budget_control=policy.budget_control,
        ),
        select=Selection(stream.include, stream.exclude, stream.drop_labels),
        entities=None
        if stream.features is None
        else Entities(stream.features.names, stream.features.by, stream.features.name, stream.features.interval_ms),
        silence=SilencePolicy(stream.silence.enabled, stream.silence.after_steps, round(stream.silence.after_s * 1000)),
        labels=policy.labels,
        annotations=policy.annotations,
    )


def read_plans(running: Settings, read_again: Callable[[], Settings], metrics: Metrics) -> dict[str, StreamPlan] | None:
    """The plans of an instance by input topic, their policies out of the configuration as it is now; None if that is not valid.

    Args:
        running: what the instance was started with.
        read_again: reads the configuration.
        metrics: where it is told.
    """
    try:
        fresh = read_again()
        policies = {stream.name: fresh.policy(stream) for stream in fresh.streams}
        streams = [stream for stream in running.streams if stream.name in policies]
        plans = {topic: stream_plan(stream, policies[stream.name]) for stream in streams for topic in stream.topics}
    except AnomalydError as error:
        metrics.misconfigured()
        _log.error("config_reload_failed", reason=str(error))
        return None
    metrics.configured(time.time())
    _log.info("config_reloaded", streams=[stream.name for stream in streams])
    if keys := running.needs_restart(fresh):
        _log.warning("config_needs_restart", keys=keys)
    return plans


def mute_of(mute: MuteSettings) -> Mute:
    """A mute as alert policies take it."""
    if mute.start_ms is not None:
        return Mute(mute.series, start_ms=mute.start_ms, end_ms=mute.end_ms)
    days = tuple(get_args(Day).index(day) for day in mute.days) or EVERY_DAY
    return Mute(mute.series, days, mute.from_min, mute.to_min, mute.timezone)


def make_ledger(settings: Settings, source: Source, consumer: Consumer, metrics: Metrics) -> Ledger:
    """The ledger of an input partition."""

    async def is_member() -> bool:
        return await consumer.is_member(source, ledger.position)

    ledger = Ledger(
        source,
        open_writer=lambda: writer_of(settings, source, metrics),
        open_reader=lambda: ChangelogReader(settings.kafka, settings.changelog_topic(source.topic), source.partition),
        is_member=is_member,
        owner=_PROCESS + os.urandom(8),
        name=f"{settings.kafka.group_id}/{settings.kafka.group_instance_id or socket.gethostname()}",
        group=settings.kafka.group_id,
        metrics=metrics,
        transactional=settings.transactional,
    )
    return ledger


def _reading(stream: StreamSettings) -> str:
    features = stream.features
    entities = () if features is None else (features.names, features.by, features.name)
    parts = (__version__, stream.format, stream.include, stream.exclude, stream.drop_labels, *entities)
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


async def _verify_topics(settings: Settings, unreachable: Callable[[str], None]) -> None:
    """Is there somewhere to write? Waits for brokers, and says so.

    Raises:
        TopicError: no.
    """
    backoff = Backoff()
    while True:
        try:
            await topics.verify(settings)
            return
        except KafkaUnavailableError as error:
            delay_s = backoff.next_s()
            unreachable(str(error))
            _log.warning("kafka_unreachable", reason=str(error), attempt=backoff.attempts, wait_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)


# --- the process ----------------------------------------------------------------------------------------------------


def run(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Runs the daemon until SIGTERM or SIGINT; the second one does not wait. SIGHUP: see `App.reload`. Returns the exit code.

    Args:
        settings: the configuration.
        read_again: reads it as it is then.

    Raises:
        AnomalydError: what the operator has to change.
    """
    return completed(_until_signal(settings, read_again))


def completed(work: Coroutine[Any, Any, None]) -> int:
    """Does the work of a process and ends its workers; returns the exit code.

    Raises:
        AnomalydError: what the operator has to change.
    """
    code = 0
    try:
        asyncio.run(work)
    except AnomalydError:
        raise
    except Exception:  # noqa: BLE001  the last one who can say what happened
        _log.exception("crashed")
        code = 1
    _leave_workers(code)
    return code


def _leave_workers(code: int) -> None:
    """Ends the process where a worker still is at something, such as compiling: the interpreter would wait for it, for nothing."""
    until_s = time.monotonic() + _LEAVE_S
    workers = [thread for thread in threading.enumerate() if thread.name.startswith(WORKER)]
    for worker in workers:
        worker.join(max(0.0, until_s - time.monotonic()))
    if any(worker.is_alive() for worker in workers):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


async def _until_signal(settings: Settings, read_again: Callable[[], Settings]) -> None:
    app = App(settings, on_assembled=_tune_process, read_again=read_again)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, app.reload)
    stop_at_signals(app)
    await app.run()


class Stoppable(Protocol):
    """What runs until it is asked to stop."""

    @property
    def stopping(self) -> bool:
        """Whether it was."""

    def stop(self) -> None:
        """Asks."""


def stop_at_signals(running: Stoppable) -> None:
    """SIGTERM and SIGINT ask it to stop; the second one does not wait. On the event loop.

    SIGUSR1 has the interpreter write to stderr where each thread is: files, lines, functions, no values. It does so even if nothing turns.
    """
    with contextlib.suppress(OSError, ValueError):  # no stderr, or one that is no file
        faulthandler.register(signal.SIGUSR1)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, partial(_stop, running, number))


class Beside(Stoppable, Protocol):
    """A process beside the daemon."""

    async def run(self) -> None:
        """Works until it is asked to stop."""


async def until_signal(process: Beside) -> None:
    """Runs a process beside the daemon until it is told to stop.

    SIGHUP, which the daemon reads policies anew for, changes nothing in it, and does not end it.
    """
    stop_at_signals(process)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, lambda: _log.warning("config_reload_passed_over"))
    await process.run()


def _tune_process() -> None:
    sys.setswitchinterval(_SWITCH_S)
    gc.collect()
    gc.freeze()  # what is here stays: no collection has to look at it again
    gc.set_threshold(*_COLLECT_EVERY)


def _stop(running: Stoppable, number: signal.Signals) -> None:
    if running.stopping:
        os._exit(1)  # asked twice: whoever waits for us has no time for a last checkpoint
    _log.info("stopping", signal=number.name)
    running.stop()
