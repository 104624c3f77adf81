"""Which model scores each stream of a running daemon: what the models topic says, or the pin; made ready away from the event loop.

No model ever stops the daemon. One that is missing, damaged, foreign to a stream or that cannot be made ready is told of, and the last good
one stays at work. The kernels of a shape that is new to the process are compiled in a process of their own, at low priority, into the cache
that this one then loads them from: compiling here would hold the interpreter, and heartbeats, for half a minute.
"""

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Protocol

import msgspec
import structlog

from anomalyd.batch import LogRecord, Source
from anomalyd.detector import Artifact, Detector, Options, Shape
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import AnomalydError, ArtifactError, ConfigError, KafkaRefusedError, KafkaUnavailableError
from anomalyd.jit import keeps_code
from anomalyd.kafka.client import Backoff
from anomalyd.kafka.models import ModelsLog, roll_back, take
from anomalyd.kafka.registry import Registry
from anomalyd.settings import SHIPPED, Settings, StreamSettings
from anomalyd.stream_model import suited
from anomalyd.telemetry.metrics import Metrics
from anomalyd.unless import unasked
from anomalyd.warmup import filler, warm_up

FOLLOW_S: Final = 0.5
"""Between looks at the models topic; each costs two small requests."""

COMPILE_S: Final = 900.0
"""Longer than this no compiler takes, on however busy a machine."""

ON_TRIAL: Final = frozenset({"promote", "retrain"})
"""Reasons for which a model comes that is new to a stream. Whoever goes back, or pins, has chosen, often in the middle of an incident: were
that on trial too, the alerts of the incident would undo it, and models would go to and fro."""

THREAD: Final = "worker-models"
"""Its name begins as those do that the end of the process does not wait for."""

_log = structlog.get_logger(__name__)


class Swapping(Protocol):
    """Whoever hands a model to the partitions of a stream."""

    def swap(self, stream: str, detector: Detector, *, on_trial: bool = False) -> None:
        """This one scores the stream from now on; on trial: unless it goes by rule."""

    def shade(self, stream: str, challenger: Detector | None) -> None:
        """This one scores the stream beside the one at work, and tells nobody."""


class News(Protocol):
    """Whoever reads the models topic."""

    async def news(self) -> list[LogRecord]:
        """What was written since the last call; at the first all that there is."""

    async def close(self) -> None:
        """Reads no more."""


class Wanted(NamedTuple):
    """What should score a stream."""

    model: str
    """Its hash, or what a pin says instead."""
    why: str
    """As in `Champion.by`, or pin."""


def read_timeline(path: Path, streams: Sequence[StreamSettings]) -> dict[Source, list[tuple[int, str]]]:
    """At which input offsets the models of partitions change, oldest first.

    Args:
        path: of a file of JSON lines with topic, partition, offset and model; other keys are passed over.
        streams: whose topics there are.

    Raises:
        ConfigError: it can't be read, or a line is not valid.
    """
    topics = [topic for stream in streams for topic in stream.topics]
    found: dict[Source, list[tuple[int, str]]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"models.timeline: {path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"models.timeline: {path}, line {number}"
        try:
            change = msgspec.json.decode(line, type=_Change)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: {error}") from None
        if change.topic not in topics:
            raise ConfigError(f'{where}: got topic "{change.topic}", valid are {", ".join(topics)}')
        entries = found.setdefault(Source(change.topic, change.partition), [])
        if entries and change.offset <= entries[-1][0]:
            raise ConfigError(f"{where}: got offset {change.offset}, must be greater than {entries[-1][0]}, that of the change before")
        entries.append((change.offset, change.model))
    return found


class _Change(msgspec.Struct):
    """A line of a timeline."""

    topic: str
    partition: Annotated[int, msgspec.Meta(ge=0)]
    offset: Annotated[int, msgspec.Meta(ge=0)]
    model: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{8,64}|shipped)$")]


@dataclass(slots=True)
class _Post:
    """A stream and the models that it has had."""

    settings: StreamSettings
    options: Options
    device: str
    base: Detector
    at_work: Detector
    made: dict[str, Detector] = field(default_factory=dict)
    """By hash: one object for each, which the shards compare."""
    failed: set[str] = field(default_factory=set)
    """Models that could not be made ready, until there is news: hashes, and what was wanted where that means no one model."""
    preparing: set[str] = field(default_factory=set)
    before: Detector | None = None
    """Scored before the last swap."""
    unfit: set[str] = field(default_factory=set)
    """Models that went by rule, until somebody says anew which one is champion. The rule itself, of another instance, does not count."""
    shadow: Detector | None = None
    """Scores beside the one at work."""


class Champions:
    """Follows the models topic and keeps each stream's model at work.

    Args:
        settings: the configuration.
        bases: by stream, the detector of its configuration, ready to run.
        metrics: where to count.
        log: reads the topic.
        build: makes a detector for a stream ready, like another one and with this artifact.
    """

    def __init__(
        self,
        settings: Settings,
        bases: Mapping[str, Detector],
        metrics: Metrics,
        *,
        log: News | None = None,
        build: Callable[[StreamSettings, Detector, Artifact], Detector] | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._posts = {
            stream.name: _Post(stream, base.options, base.device, base, base, {base.model.hash: base})
            for stream in settings.streams
            if (base := bases.get(stream.name)) is not None
        }
        self._registry = Registry()
        self._log: News = log or ModelsLog(settings)
        self._bench = Bench()
        self._build = build or self._bench.detector
        self._thread = ThreadPoolExecutor(1, THREAD)
        self._lock = threading.RLock()  # workers look for models while the loop takes in records
        self._pipeline: Swapping | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        for post in self._posts.values():
            self._bench.known(post.base)

    # --- at start ---------------------------------------------------------------------------------------------------

    async def begin(self, waiting: Callable[[str], None] = lambda _: None) -> dict[str, Detector]:
        """Reads the topic to its end; returns, by stream, the detector that scores. Waits for brokers.

        Args:
            waiting: told why brokers cannot be reached.

        Raises:
            KafkaRefusedError: the topic may not be read.
        """
        await self._first_news(waiting)
        for post in self._posts.values():
            await self._first_of(post)
        for name, post in self._posts.items():
            self._told(name, post.at_work)
            model = post.at_work.model
            _log.info("model_loaded", stream=name, model=model.name, version=model.version, hash=model.hash, device=post.at_work.device)
        return {name: post.at_work for name, post in self._posts.items()}

    async def _first_news(self, waiting: Callable[[str], None]) -> None:
        backoff = Backoff()
        while True:
            try:
                self._take(await self._log.news(), count=False)
                return
            except KafkaUnavailableError as error:
                delay_s = backoff.next_s()
                waiting(str(error))
                _log.warning("kafka_unreachable", reason=str(error), attempt=backoff.attempts, wait_s=round(delay_s, 2))
                await asyncio.sleep(delay_s)
            except KafkaRefusedError:
                raise
            except AnomalydError as error:
                _log.error("models_unreadable", topic=self._settings.models_topic, reason=str(error))
                return

    async def _first_of(self, post: _Post) -> None:
        """The first that can be had: what is wanted, else the champion, else the one before it, else that of the configuration."""
        for wanted in self._candidates(post):
            model = wanted.model
            try:
                model = self._resolved(post, wanted.model)
                post.at_work = await self._in_thread(partial(self.find, post.settings.name, model))
            except Exception as error:  # noqa: BLE001  no model stops the daemon, whatever is wrong with it
                self._failed(post, wanted, model, error)
            else:
                return

    def _candidates(self, post: _Post) -> Iterator[Wanted]:
        name = post.settings.name
        if self._settings.models.timeline is not None:
            return
        if (pin := self._settings.models.pinned(name)) is not None:
            yield Wanted(pin, "pin")
        if (champion := self._registry.champions.get(name)) is not None:
            yield Wanted(champion.model, champion.by)
            if champion.previous is not None:
                yield Wanted(champion.previous, "fallback")

    # --- while it runs ----------------------------------------------------------------------------------------------

    async def follow(self, pipeline: Swapping) -> None:
        """Swaps models as the topic says, until it is cancelled. Never raises anything else.

        Args:
            pipeline: who swaps.
        """
        self._pipeline = pipeline
        if self._settings.models.timeline is None:
            for name, post in self._posts.items():
                # Partitions go on with the model that they were written down with until they are told otherwise.
                pipeline.swap(name, post.at_work)
        for post in self._posts.values():
            self._begin(self._shade(post))
        backoff, told = Backoff(most_s=30.0), False
        while True:
            try:
                if news := await self._log.news():
                    self._take(news)
                    for post in self._posts.values():
                        post.failed.clear()
                        self._settle(post)
                        self._begin(self._shade(post))
                if told:
                    _log.info("models_followed", topic=self._settings.models_topic)
                backoff.reset()
                told, delay_s = False, FOLLOW_S
            except asyncio.CancelledError as error:
                if unasked(error) is None:
                    raise
                delay_s = backoff.next_s()
            except Exception as error:  # noqa: BLE001  whatever it is, streams go on with the models that they have
                delay_s = backoff.next_s()
                if not told:
                    _log.warning("models_not_followed", topic=self._settings.models_topic, reason=str(error) or repr(error))
                told = True
            await asyncio.sleep(delay_s)

    def _settle(self, post: _Post) -> None:
        """Goes over to what is wanted: at once where it is ready, else when it has been made so."""
        wanted = next(self._candidates(post), None)
        if wanted is None:
            return
        try:
            model = self._resolved(post, wanted.model)
        except ArtifactError as error:
            if wanted.model not in post.failed:
                self._failed(post, wanted, wanted.model, error)
            return
        if model == post.at_work.model.hash or model in post.failed or model in post.unfit:
            return
        if (detector := post.made.get(model)) is not None:
            self._swap(post, detector, wanted)
        elif model not in post.preparing:
            post.preparing.add(model)
            self._begin(self._prepare(post, model, wanted))

    async def _prepare(self, post: _Post, model: str, wanted: Wanted) -> None:
        _log.info("model_preparing", stream=post.settings.name, model=model)
        try:
            await self._in_thread(partial(self.find, post.settings.name, model))
        except Exception as error:  # noqa: BLE001  a fault of our own must not stop the daemon either
            self._failed(post, wanted, model, error)
        finally:
            post.preparing.discard(model)
        # Something else may be wanted by now.
        self._settle(post)

    def _swap(self, post: _Post, detector: Detector, wanted: Wanted) -> None:
        if self._pipeline is None:
            return
        before = post.at_work.model
        try:
            self._pipeline.swap(post.settings.name, detector, on_trial=wanted.why in ON_TRIAL)
        except AnomalydError as error:
            self._failed(post, wanted, detector.model.hash, error)
            return
        post.before, post.at_work = post.at_work, detector
        self._metrics.swapped(post.settings.name, wanted.why)
        self._told(post.settings.name, detector)
        model = detector.model
        _log.info(
            "model_swapped", stream=post.settings.name, model=model.hash, version=model.version, before=before.hash, reason=wanted.why
        )

    async def _shade(self, post: _Post) -> None:
        """Gives a stream the challenger that the configuration names, as soon as it can be had."""
        name = post.settings.name
        wanted = self._settings.models.shadow.get(name)
        if wanted is None or post.shadow is not None or self._pipeline is None or wanted in post.preparing:
            return
        post.preparing.add(wanted)
        try:
            challenger = await self._in_thread(partial(self.find, name, wanted))
            self._pipeline.shade(name, challenger)
        except Exception as error:  # noqa: BLE001  whatever it is, the stream goes on without it
            self._failed(post, Wanted(wanted, "shadow"), wanted, error)
            return
        finally:
            post.preparing.discard(wanted)
        post.shadow = challenger
        _log.info("model_shadowing", stream=name, model=challenger.model.hash, version=challenger.model.version)

    def unfit(self, stream: str, detector: Detector, why: str) -> None:
        """A model went by rule, and the pipeline has gone back to the one before: all instances are to do so.

        Args:
            stream: its name.
            detector: the one that went.
            why: for people.
        """
        post = self._posts[stream]
        post.unfit.add(detector.model.hash)
        if post.before is not None:
            post.at_work, post.before = post.before, None
        self._metrics.swapped(stream, "rule")
        self._told(stream, post.at_work)
        if self._settings.models.pinned(stream) is None:
            self._begin(self._publish(stream, detector.model.hash, why))

    async def _publish(self, stream: str, model: str, why: str) -> None:
        """Says in the topic that a model went, until that is done or somebody has said anew which one is champion."""
        backoff = Backoff(most_s=60.0)
        while model in self._posts[stream].unfit:
            try:
                await roll_back(self._settings, stream, why, by="rule", of=model)
            except Exception as error:  # noqa: BLE001  whatever it is, this instance has gone back
                delay_s = backoff.next_s()
                _log.warning(
                    "rollback_not_published", stream=stream, model=model, reason=str(error) or repr(error), wait_s=round(delay_s, 2)
                )
                if isinstance(error, ArtifactError):  # there is none to go back to: trying again changes nothing
                    return
                await asyncio.sleep(delay_s)
            else:
                return

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failed(self, post: _Post, wanted: Wanted, model: str, error: Exception) -> None:
        """Tells of a model, and leaves it alone until there is news: under its hash, or as it was wanted where that means none."""
        post.failed.add(model)
        self._metrics.swap_failed(post.settings.name)
        _log.error(
            "model_unusable",
            stream=post.settings.name,
            model=wanted.model,
            reason=str(error) or repr(error),
            at_work=post.at_work.model.hash,
        )

    def _told(self, stream: str, detector: Detector) -> None:
        model = detector.model
        self._metrics.model(stream, model.name, model.version, model.hash, detector.artifact.created_s)

    def _take(self, news: list[LogRecord], *, count: bool = True) -> None:
        before, champions = dict(self._registry.decisions), dict(self._registry.champions)
        with self._lock:
            take(self._registry, news, self._settings.models_topic)
        for name, post in self._posts.items():
            champion = self._registry.champions.get(name)
            if champion != champions.get(name) and (champion is None or champion.by != "rule"):
                post.unfit.clear()
        for (stream, model), decision in self._registry.decisions.items():
            if count and stream in self._posts and before.get((stream, model)) != decision and decision.verdict != "base":
                self._metrics.decided(stream, decision.verdict)

    # --- models -----------------------------------------------------------------------------------------------------

    def find(self, stream: str, model: str) -> Detector:
        """The detector of a model for a stream, ready to run; for any thread but the loop's, since it may take as long as a compiler.

        Args:
            stream: its name.
            model: hash, or the beginning of one that is in the topic, or `shipped`.

        Raises:
            ArtifactError: it cannot be had, is damaged or foreign to the stream.
        """
        post = self._posts[stream]
        hash_ = self._resolved(post, model)
        if (made := post.made.get(hash_)) is not None:
            return made
        detector = self._build(post.settings, post.base, suited(self._artifact(post, hash_), post.settings))
        with self._lock:
            return post.made.setdefault(hash_, detector)

    def _resolved(self, post: _Post, model: str) -> str:
        """The hash that a pin or a prefix means."""
        if model == SHIPPED:
            return _shipped().hash
        with self._lock:
            known = {*self._registry.models(), *post.made, _shipped().hash}
        found = sorted(name for name in known if name.startswith(model))
        if len(found) > 1:
            raise ArtifactError(
                f"{model} is the beginning of {len(found)} models: {', '.join(name[:16] for name in found)}; give more of it"
            )
        return found[0] if found else model

    def _artifact(self, post: _Post, model: str) -> Artifact:
        """The shipped model, that of the configuration, or one of the topic, with this hash."""
        for artifact in (_shipped(), post.base.artifact):
            if artifact.hash == model:
                return artifact
        with self._lock:
            content = self._registry.content(model)
        artifact = artifacts.from_bytes(content, f"the model {model[:12]}")
        if artifact.hash != model:
            raise ArtifactError(f"the model {model[:12]} is another one: {artifact.hash[:12]}")
        return artifact

    async def _in_thread(self, work: Callable[[], Detector]) -> Detector:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def close(self) -> None:
        """Ends what is under way."""
        self._bench.close()
        for task in self._tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        await self._log.close()


@cache
def _shipped() -> Artifact:
    """The model that comes with the package."""
    return artifacts.load(shipped())


class Bench:
    """Makes detectors ready: kernels of shapes that are new here are compiled by another process first."""

    def __init__(self) -> None:
        self._shapes: set[Shape] = set()
        self._compiler: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()  # one compiler at a time: there may be one core

    def known(self, detector: Detector) -> None:
        """The kernels of this one are loaded."""
        self._shapes.add(detector.layout.shape)

    def detector(self, stream: StreamSettings, like: Detector, artifact: Artifact) -> Detector:
        """A detector with the options and on the device of another one.

        Args:
            stream: that it is for.
            like: the other one.
            artifact: its model, suited to the stream.

        Raises:
            ArtifactError: it cannot be made ready.
        """
        with self._lock:
            fresh = artifact.shape not in self._shapes
            if fresh and like.device == "cpu":
                self._compile(stream, artifact)
            detector = Detector(artifact, "cuda" if like.device == "cuda" else "cpu", like.options)
            if fresh:
                warm_up(detector, [stream.format], several=stream.features is not None)
                self.known(detector)
        return detector

    def _compile(self, stream: StreamSettings, artifact: Artifact) -> None:
        if not keeps_code():
            raise ArtifactError(
                "its shape needs machine code that this process has not, and no folder can be written for it: set NUMBA_CACHE_DIR to one"
            )
        command = filler(artifact.shape, stream.format, several=stream.features is not None)
        began_s = time.monotonic()
        if self._closed:
            raise ArtifactError("the daemon is being stopped")
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as compiler:
            self._compiler = compiler
            try:
                _, errors = compiler.communicate(timeout=COMPILE_S)
            except subprocess.TimeoutExpired:
                compiler.kill()
                raise ArtifactError(f"its machine code was not there after {COMPILE_S:g} s") from None
            finally:
                self._compiler = None
        if compiler.returncode:
            told = errors.decode(errors="replace").strip().splitlines()
            raise ArtifactError(f"its machine code could not be made (exit code {compiler.returncode}): {told[-1] if told else 'no word'}")
        _log.info("model_compiled", stream=stream.name, model=artifact.hash, seconds=round(time.monotonic() - began_s, 1))

    def close(self) -> None:
        """Ends the compiler."""
        self._closed = True
        if (compiler := self._compiler) is not None:
            compiler.kill()
