"""`anomalyd retrain`: the process. It reads the inputs and the alerts, holds rounds when they are due, and publishes what passed."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import structlog
import torch

from anomalyd import __version__
from anomalyd.alerts.mutes import Mute
from anomalyd.app import WORKER, completed, mute_of, stream_plan, until_signal
from anomalyd.batch import Source
from anomalyd.detector import Artifact, Detector, Options
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import AnomalydError, ArtifactError, ConfigError, KafkaUnavailableError, StateError
from anomalyd.evaluation.measures.bootstrap import paired
from anomalyd.formats import FormatOptions, make_decoder
from anomalyd.kafka import models
from anomalyd.kafka.client import Backoff, pause
from anomalyd.kafka.intake import Intake, Taken
from anomalyd.kafka.registry import Champion, Decision, Packed
from anomalyd.retrainer.gate import MEASURES, evenly
from anomalyd.retrainer.gate import run as judged_by
from anomalyd.retrainer.incidents import Incidents
from anomalyd.retrainer.material import LEAST_SERIES, Judged, prepare
from anomalyd.retrainer.reservoir import Reservoir
from anomalyd.retrainer.rounds import Round, hold
from anomalyd.settings import Settings, StreamSettings
from anomalyd.stream_model import artifact_of, suited
from anomalyd.telemetry.retraining import RetrainMetrics
from anomalyd.telemetry.server import HttpServer
from anomalyd.training.folder import writable
from anomalyd.training.trainer import device_for

KEEP_EVERY_S: Final = 60.0
"""So often is what was kept written down."""
MOST_SERIES_FOR_DRIFT: Final = 64
"""Whose forecasts drift is measured by."""
QUIET_INTERVALS: Final = 7
"""When somebody has gone back to a model, by command or by rule, nothing is published for so many intervals."""
_GONE_MS: Final = 8 * 86_400_000
"""A series without a sample for so long makes room for others."""
_BETWEEN_S: Final = 1.0

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Stream:
    """One stream: what is kept of it, and when it was judged last.

    Args:
        settings: the configuration.
        configured: the stream's part of it.
    """

    def __init__(self, settings: Settings, configured: StreamSettings) -> None:
        policy = settings.policy(configured)
        plan = stream_plan(configured, policy)
        self.name = configured.name
        self.configured = configured
        self.names = None if configured.features is None else configured.features.names
        self.options = Options(budget_per_day=policy.budget, kind=configured.kind)
        self.decoder = make_decoder(configured.format, FormatOptions(configured.timestamp_unit))
        mutes: tuple[Mute, ...] = (*plan.policy.mutes, *map(mute_of, settings.retrain.leave_out))
        self.incidents = Incidents(configured.name, mutes)
        try:
            self.reservoir = Reservoir(
                settings.retrain.memory_mb << 20, settings.retrain.samples, settings.retrain.seed, plan.select, plan.entities
            )
        except ValueError as error:
            raise ConfigError(f"retrain.memory_mb: {error}") from None
        self.round_s = time.time()
        """When the last round ended, or this began, in seconds since the epoch."""
        self.rounds = 0
        """How many were held."""
        self.checked_s = time.monotonic()
        self.tried_s = 0.0
        """When a round was begun last."""
        self.surprise: dict[str, float] = {}
        """How surprised the champion was by each series when it was looked at first."""
        self.surprised = ""
        """Hash of that champion."""
        self.drift = 0.0
        """How much more it is surprised now, in nats a sample, at least."""
        self.tolerated = 0.0
        """What of that the last round, which found nothing better, could not mend."""

    def take(self, taken: Taken) -> int:
        """Records of an input topic."""
        records = taken.records
        return self.reservoir.take(self.decoder, [record.value for record in records], lambda number: records[number].timestamp)

    @property
    def about(self) -> dict[str, Any]:
        """What of it survives a restart, beside the samples."""
        return {
            "names": self.names,
            "round_s": self.round_s,
            "tried_s": self.tried_s,
            "rounds": self.rounds,
            "surprise": self.surprise,
            "surprised": self.surprised,
            "tolerated": self.tolerated,
            "incidents": self.incidents.spans,
        }

    def resume(self, about: Mapping[str, Any]) -> None:
        """Takes up what `about` said. A clock that was ahead puts off nothing."""
        now_s = time.time()
        self.round_s, self.tried_s = (min(now_s, float(about[key])) for key in ("round_s", "tried_s"))
        self.rounds, self.surprised = int(about["rounds"]), str(about["surprised"])
        self.surprise = {str(key): float(value) for key, value in about["surprise"].items()}
        self.tolerated = float(about["tolerated"])
        self.incidents.resume(about["incidents"])


class Retrainer:
    """The process.

    Args:
        settings: the configuration.

    Raises:
        ConfigError: it cannot work with it.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._retrain = settings.retrain
        self._device = device_for(settings.device)
        self.metrics = RetrainMetrics(measures=MEASURES)
        self.streams = [Stream(settings, configured) for configured in settings.streams]
        self._by_topic = {topic: stream for stream in self.streams for topic in stream.configured.topics}
        self._inputs = Intake(
            settings.kafka,
            list(self._by_topic),
            settings.retrain_group,
            round((time.time() - settings.retrain.reread_s) * 1000),
        )
        self._alerts = Intake(settings.kafka, [settings.alerts.topic], None, ours=True)
        self._stop = asyncio.Event()
        # Of its own: the end of the event loop waits for the usual ones, and a round takes minutes.
        self._worker = ThreadPoolExecutor(1, f"{WORKER}-rounds")
        self._reading = False
        self._alerts_known = False  # up to when it began: before that, incidents would be learned
        self._kept_s = time.monotonic()
        self.port: int | None = None
        """Of the HTTP server, once it listens."""

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks `run` to write down what was kept and return; a round under way is given up."""
        self._stop.set()

    async def run(self) -> None:
        """Reads and retrains until `stop`.

        Raises:
            AnomalydError: what the operator has to change.
        """
        for stream in self.streams:
            artifact_of(stream.configured)  # what cannot be used is told at once
            self.metrics.begin(stream.name)
        self._restore()
        server = HttpServer(self._retrain.http, self.metrics.registry, health=lambda: (True, {}), ready=self._ready, where="retrain.http")
        self.port = await server.start()
        _log.info(
            "retrain_starting",
            version=__version__,
            streams=[stream.name for stream in self.streams],
            most_series=[stream.reservoir.most_series for stream in self.streams],
            device=self._device,
        )
        _log.info("http_listening", host=self._retrain.http.host, port=self.port)
        rounds = asyncio.create_task(self._rounds())
        try:
            await self._read(rounds)
        finally:
            rounds.cancel()
            await asyncio.gather(rounds, return_exceptions=True)
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._keep()
            await self._inputs.close()
            await self._alerts.close()
            await server.stop()
        _log.info("stopped")

    def _ready(self) -> tuple[bool, Mapping[str, Any]]:
        return self._reading, {"streams": {stream.name: stream.reservoir.kept().samples for stream in self.streams}}

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, rounds: "asyncio.Task[None]") -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            if rounds.done():
                rounds.result()
            try:
                # Alerts first: what is known to be an incident should not be learned in the meantime.
                for taken in await self._alerts.poll(0 if self._alerts_known else None):
                    for record in taken.records:
                        for stream in self.streams:
                            stream.incidents.take(record.value)
                self._alerts_known = self._alerts_known or await self._alerts.caught_up()
                # Taken at once: positions never say more than the sample knows.
                for taken in await self._inputs.poll():
                    stream = self._by_topic[taken.source.topic]
                    stream.take(taken)
                    self.metrics.taken(stream.name, len(taken.records))
            except KafkaUnavailableError as error:
                self._reading = False
                await pause(error, backoff, self._stop)
                continue
            backoff.reset()
            self._reading = True
            self.metrics.lag(await self._inputs.lag())
            if time.monotonic() - self._kept_s >= KEEP_EVERY_S:
                self._keep()
                try:
                    await self._inputs.commit()
                except AnomalydError as error:  # only those who watch the lag miss it
                    _log.info("retrain_offsets_not_committed", reason=str(error))
            self._look()

    def _look(self) -> None:
        for stream in self.streams:
            kept = stream.reservoir.kept()
            self.metrics.kept(stream.name, kept.series, kept.samples, kept.bytes, len(stream.incidents))

    # --- over a restart ---------------------------------------------------------------------------------------------

    def _file(self, stream: Stream) -> Path | None:
        return None if self._retrain.folder is None else self._retrain.folder / f"{stream.name}.npz.zst"

    def _restore(self) -> None:
        """What is in the folder; what of it cannot be used is told and begun anew."""
        positions: dict[Source, int] = {}
        for stream in self.streams:
            file = self._file(stream)
            if file is None or not file.exists():
                continue
            try:
                stored = stream.reservoir.read(file.read_bytes())
                about = stored.about
                if about["stream"]["names"] != (None if stream.names is None else list(stream.names)):
                    raise StateError("it is about other features")
                begins = {Source(topic, int(number)): int(at) for topic, number, at in about["positions"]}
                stream.resume(about["stream"])
                stream.reservoir.fill(stored)
                positions |= begins
            except (OSError, StateError, KeyError, TypeError, ValueError) as error:
                _log.warning("retrain_state_unusable", stream=stream.name, file=str(file), reason=str(error) or repr(error))
        self._inputs.begin(positions)

    def _keep(self) -> None:
        """Writes down what was kept, with the positions behind it, so that both are always of the same moment."""
        self._kept_s = time.monotonic()
        for stream in self.streams:
            if (now_ms := stream.reservoir.now_ms) is not None:
                stream.reservoir.forget(now_ms, _GONE_MS)
                if (oldest_ms := stream.reservoir.oldest_ms) is not None:
                    stream.incidents.forget(oldest_ms, now_ms)
            file = self._file(stream)
            if file is None:
                continue
            positions = [[s.topic, s.partition, at] for s, at in self._inputs.positions.items() if self._by_topic[s.topic] is stream]
            fresh = file.with_suffix(".new")
            try:
                fresh.write_bytes(stream.reservoir.dump({"stream": stream.about, "positions": positions}))
                fresh.replace(file)
            except OSError as error:
                _log.error("retrain_state_unwritable", file=str(file), reason=error.strerror or str(error))

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def _rounds(self) -> None:
        """One after the other, each when it is due."""
        pinned = [stream.name for stream in self.streams if self._settings.models.pinned(stream.name) is not None]
        if pinned:
            _log.info("retrain_pinned", streams=pinned)
        while True:
            await asyncio.sleep(_BETWEEN_S)
            for stream in self.streams:
                if not self._alerts_known or stream.name in pinned:
                    continue
                now = time.time()
                try:
                    due = now - stream.round_s >= self._retrain.interval_s or await self._drifted(stream)
                    if due and now - stream.tried_s >= self._retrain.interval_s / 10:
                        stream.tried_s = now
                        await self._round(stream)
                except Exception as error:  # noqa: BLE001  one stream must not end the rounds of all; it is tried again later
                    stream.tried_s = now
                    self.metrics.failed(stream.name)
                    _log.warning(
                        "retrain_failed",
                        stream=stream.name,
                        reason=str(error) or repr(error),
                        exc_info=not isinstance(error, AnomalydError),
                    )

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def _champion(self, stream: Stream) -> tuple[Artifact, Champion | None]:
        """What scores the stream now: of the models topic, else of the configuration. A damaged one is as none."""
        base = artifact_of(stream.configured)
        registry = await models.read(self._settings)
        present = registry.champions.get(stream.name)
        if present is None:
            return base, None
        try:
            return suited(artifacts.from_bytes(registry.content(present.model)), stream.configured), present
        except ArtifactError as error:
            _log.warning("retrain_champion_unusable", stream=stream.name, model=present.model[:12], reason=str(error))
            return base, present

    async def _round(self, stream: Stream) -> None:
        began = time.monotonic()
        self.metrics.running(stream.name, on=True)
        try:
            champion, _ = await self._champion(stream)
            material = prepare(stream.reservoir.histories(), stream.incidents)
            seed = self._retrain.seed + stream.rounds
            found = await self._aside(
                partial(hold, champion, material, stream.options, seed, names=stream.names, steps=self._retrain.steps, device=self._device)
            )
            verdict = await self._conclude(stream, champion, found)
        finally:
            self.metrics.running(stream.name, on=False)
        if found.challenger is None and not material.enough:
            _log.info("retrain_waiting", stream=stream.name, reason=found.verdict.reason)
            return
        stream.rounds += 1
        stream.round_s = time.time()
        stream.tolerated = stream.drift
        self.metrics.round(stream.name, verdict, found.verdict.figures, time.monotonic() - began, stream.round_s)
        model = None if found.challenger is None else found.challenger.hash
        _log.info(
            "retrain_round", stream=stream.name, model=model, verdict=verdict, reason=found.verdict.reason, figures=found.verdict.figures
        )
        self._keep()

    async def _conclude(self, stream: Stream, champion: Artifact, found: Round) -> str:
        """Writes the decision down, and publishes a challenger that passed."""
        challenger, verdict = found.challenger, found.verdict
        if challenger is None:
            return "rejected"
        reason, publish = verdict.reason, verdict.passed and self._retrain.publish
        if publish and (objection := await self._objection(stream, champion)):
            reason, publish = f"{reason}; not published: {objection}", False
        passed = "published" if publish else "better"
        decision = Decision(passed if verdict.passed else "rejected", reason, verdict.figures, champion.hash)
        if publish:
            # As it lies there: for a stream of entities it is used in another shape than it has.
            content = artifacts.packed_folder(stream.configured.model or shipped())
            base = Packed(artifact_of(stream.configured).hash, content)
            await models.publish(self._settings, challenger, stream.name, decision, base=base)
        else:
            # One that passed can be promoted, or be looked at as a shadow.
            await models.decide(self._settings, challenger.hash, stream.name, decision, challenger if verdict.passed else None)
        return decision.verdict

    async def _objection(self, stream: Stream, champion: Artifact) -> str:
        """Why a challenger that passed should not take over now; empty: nothing speaks against it."""
        present, record = await self._champion(stream)
        if present.hash != champion.hash:
            return f"the champion is {present.hash[:12]} by now"
        if record is None or record.by not in {"rollback", "rule"}:
            return ""
        left_s = datetime.fromisoformat(record.since).timestamp() + QUIET_INTERVALS * self._retrain.interval_s - time.time()
        return f"somebody has gone back to the champion; promote it by hand, or wait for {left_s:.0f} s" if left_s > 0 else ""

    # --- drift ------------------------------------------------------------------------------------------------------

    async def _drifted(self, stream: Stream) -> bool:
        """Whether the champion forecasts worse than it did at first, beyond doubt, and than when the last round found nothing better."""
        every_s = self._retrain.drift_check_s
        if not every_s or time.monotonic() - stream.checked_s < every_s:
            return self._worse(stream)
        stream.checked_s = time.monotonic()
        try:
            champion, _ = await self._champion(stream)
        except KafkaUnavailableError:
            return False
        judged = evenly(prepare(stream.reservoir.histories(), stream.incidents).judged, MOST_SERIES_FOR_DRIFT)
        now = await self._aside(partial(_surprises, champion, stream.options, judged))
        both = sorted(stream.surprise.keys() & now.keys())
        if stream.surprised != champion.hash or len(both) < LEAST_SERIES:
            stream.surprise, stream.surprised = now, champion.hash  # what later looks are held against
            stream.drift = stream.tolerated = 0.0
            return False
        found = paired([now[key] for key in both], [stream.surprise[key] for key in both])
        stream.drift = found.difference.low if found is not None else 0.0
        self.metrics.drift(stream.name, stream.drift)
        if self._worse(stream):
            _log.info("retrain_drift", stream=stream.name, nats=round(stream.drift, 3), series=len(both))
        return self._worse(stream)

    def _worse(self, stream: Stream) -> bool:
        return stream.drift > stream.tolerated + self._retrain.drift


def _surprises(champion: Artifact, options: Options, judged: Sequence[Judged]) -> dict[str, float]:
    if not judged:
        return {}
    surprise = judged_by(Detector(champion, "cpu", options), judged, seed=0, times=0).surprise
    return {series.key: float(value) for series, value in zip(judged, surprise, strict=True) if np.isfinite(value)}


# --- the process ----------------------------------------------------------------------------------------------------


def run(settings: Settings) -> int:
    """Runs the retrainer until SIGTERM or SIGINT; the second one does not wait. Returns the exit code.

    Raises:
        AnomalydError: what the operator has to change.
    """
    os.nice(settings.retrain.nice)
    torch.set_num_threads(settings.retrain.threads)
    if settings.retrain.folder is not None:
        writable(settings.retrain.folder, "retrain.folder:")
    return completed(until_signal(Retrainer(settings)))
