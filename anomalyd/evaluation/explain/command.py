"""Where explanations come from: a file of history, streamed twice, or the changelog of a running daemon, only read."""

import asyncio
import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.budget import MILLI
from anomalyd.alerts.messages import iso, leading
from anomalyd.alerts.text import number
from anomalyd.app import stream_plan
from anomalyd.detector import Artifact, Detector, Options
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.migrate import migrated
from anomalyd.detector.recipe import WARMUP_SAMPLES
from anomalyd.errors import AnomalydError, ConfigError, InputFileError, StateError
from anomalyd.evaluation.backtest import Bar, Engine, settings_for, stream_for
from anomalyd.evaluation.chart import Chart
from anomalyd.evaluation.explain.facts import Facts, sample_facts, state_facts
from anomalyd.evaluation.explain.picture import page
from anomalyd.evaluation.explain.told import told
from anomalyd.evaluation.explain.witness import Witness
from anomalyd.evaluation.gallery import episodes, epoch_ms
from anomalyd.evaluation.models import Models
from anomalyd.evaluation.readers import find, parse_time, read_table
from anomalyd.evaluation.replay import Replay, Trace
from anomalyd.kafka.committed import CommittedLog
from anomalyd.kafka.models import read as read_models
from anomalyd.settings import Settings, StreamSettings
from anomalyd.state.codec import Page
from anomalyd.state.inspect import Contents, Row, committed
from anomalyd.state_commands import Place, places, write
from anomalyd.stream_model import artifact_of, suited
from anomalyd.warmup import tell_of_compiling

HISTORY: Final = 500
"""Samples in front of the explained one whose states say what is usual."""
DRAWN: Final = 200
"""Samples that the picture of the series shows."""
OTHERS: Final = 1000
"""Series that a snapshot is compared with, at most."""
_NEAR: Final = 5
_COMPARED: Final = 5_000


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known, and a chart of the series where its course is."""

    facts: Facts
    chart: Chart | None = None


class Moment(NamedTuple):
    """Which sample of a file; with neither, the one with the highest score."""

    at: str | None = None
    """The newest sample not after this time: ISO 8601 or epoch."""
    row: int | None = None
    """The sample in this row or line, from 0."""


def run(
    *,
    path: Path | None,
    settings: Settings | None,
    series: str | None,
    at: str | None,
    row: int | None,
    topic: str | None,
    partition: int | None,
    report: Path | None,
    json_output: bool,
    format: str | None,  # noqa: A002  the name of the command's option
    no_fit: bool,
) -> int:
    """Explains a sample of a file, or with no file the newest state of a series; returns the exit code.

    Args:
        path: the file; None: the state in Kafka.
        settings: a configuration; None: the defaults, which will do for a file.
        series: canonical key; None: the only one of the file.
        at: which sample of the file: see Moment.
        row: likewise.
        topic: look for state in the changelog of this input only.
        partition: and in this one only.
        report: HTML file to write.
        json_output: one JSON object instead of text.
        format: of files that are neither CSV nor npz.
        no_fit: do not fit a model on train.

    Raises:
        ConfigError: there is no such series or sample, or the options do not go together.
        InputFileError: the file cannot be used.
        StateError: there is no state of the series.
        AnomalydError: Kafka cannot be read.
    """
    moment = Moment(at, row)
    _check(path, settings, series, moment, topic, partition)
    if path is not None:
        explanation = from_file(path, settings, series, moment, format=format, fit=not no_fit)
    else:
        explanation = from_state(_given(settings), series or "", topic, partition)
    if report is not None:
        try:
            report.write_text(page(explanation.facts, explanation.chart), "utf-8")
        except OSError as error:
            raise ConfigError(f"--report {report}: {error.strerror or error}") from None
    write(json.dumps(explanation.facts, ensure_ascii=False) if json_output else told(explanation.facts))
    return 0


def _check(
    path: Path | None, settings: Settings | None, series: str | None, moment: Moment, topic: str | None, partition: int | None
) -> None:
    if moment.at is not None and moment.row is not None:
        raise ConfigError("--at, --row: got both, must be one of them")
    if path is not None:
        if topic is not None or partition is not None:
            raise ConfigError("--topic, --partition: are about state in Kafka, got a file")
        return
    if settings is None:
        raise ConfigError("got neither a FILE of history nor a configuration (-c) that says where state is kept")
    if series is None:
        raise ConfigError("--series: missing; state is explained series by series, such as --series 'cpu.usage{host=\"web-01\"}'")
    if moment != Moment():
        raise ConfigError("--at, --row: want a FILE of history; state in Kafka is known as it is now")


def _given(settings: Settings | None) -> Settings:
    if settings is None:
        raise ConfigError("-c: missing")
    return settings


# --- a file -------------------------------------------------------------------------------------------------------


def from_file(path: Path, settings: Settings | None, series: str | None, moment: Moment, *, format: str | None, fit: bool) -> Explanation:  # noqa: A002  as in `run`
    """Explains a sample of a file. The engine runs over all of it, and once more to keep the states around the sample.

    Args:
        path: the file.
        settings: a configuration; None: the defaults.
        series: canonical key; None: the only one there is.
        moment: which sample.
        format: of files that are neither CSV nor npz.
        fit: fit a model on train where there is one.

    Raises:
        ConfigError: there is no such series or sample.
        InputFileError: the file cannot be used.
    """
    if path.is_dir():
        raise InputFileError(f"{path}: is a directory; explain looks at one file")
    stream = stream_for(settings, format)
    (file,) = files = find([path], lines=format is not None or settings is not None)
    table = read_table(file) if file.kind != "lines" else None
    models = Models(files, fit=fit, shared=True)  # shared: what is fitted is kept for the second run
    policy = settings or settings_for(stream)
    tell_of_compiling()
    with Bar(2) as bar:
        bar.start(file)
        replay = Engine(policy, stream, models).replay(file, table, bar)
        bar.finish(replay)
        bar.complain(file, replay, table)
        trace = replay.trace
        if not len(trace):
            raise InputFileError(f"{path}: no sample could be used: nothing was scored")
        own = np.flatnonzero(trace.series == _series(path, trace, series))
        own = own[: _chosen(path, trace, own, moment) + 1]
        before = 0 if table is None or table.train is None else len(table.train)
        watched = own[-HISTORY:] + before
        if before and len(watched) < HISTORY:  # a table is one series, and what was learned in train is its past
            watched = np.concatenate([np.arange(max(0, before - HISTORY + len(watched)), before), watched])
        made: list[Witness] = []

        def witness(*given: object) -> Detector:
            made.append(partial(Witness, wanted=watched)(*given))  # type: ignore[arg-type]  # artifact, device, options
            return made[-1]

        bar.start(file)
        Engine(policy, stream, models, witness).replay(file, table, bar)
        bar.finish(replay)
    detector = made[0]
    recorded = ("value",) if stream.features is None else stream.features.names
    facts = sample_facts(detector, trace, own, detector.rows, recorded if table is None else table.names)
    key = trace.keys[int(trace.series[own[-1]])]
    about = {"series": key, "source": {"file": str(path)}, "model": _model(detector)}
    return Explanation(about | {"alert": _alert(replay, key, int(trace.time_ms[own[-1]]))} | facts, _chart(replay, own))


def _series(path: Path, trace: Trace, key: str | None) -> int:
    """The index of a series in the trace."""
    if key is None:
        if len(trace.keys) == 1:
            return 0
        peaks = np.zeros(len(trace.keys))
        np.maximum.at(peaks, trace.series, trace.verdicts.score)
        strangest = [f"{trace.keys[i]} (highest score {number(float(peaks[i]))})" for i in np.argsort(-peaks, kind="stable")[:_NEAR]]
        raise ConfigError(f"--series: missing; {path} holds {len(trace.keys):,} series, the strangest are {', '.join(strangest)}")
    if key not in trace.keys:
        raise ConfigError(f"--series: {path} has no {key}; {near(key, trace.keys)}")
    return trace.keys.index(key)


def near(key: str, known: Iterable[str]) -> str:
    """Series that may have been meant, in words."""
    names = list(known)
    name = key.partition("{")[0]
    same = [other for other in names if other.partition("{")[0] == name]
    close = get_close_matches(key, (same or names)[:_COMPARED], _NEAR, 0.5) or same[:_NEAR] or sorted(names)[:_NEAR]
    return f"there are {', '.join(close)}" + (f" and others, {len(names):,} in all" if len(names) > len(close) else "")


def _chosen(path: Path, trace: Trace, own: NDArray[np.int64], moment: Moment) -> int:
    """Which of a series' samples is meant: an index into `own`."""
    times, rows = trace.time_ms[own], trace.row[own]
    if moment.row is not None:
        found = np.flatnonzero(rows == moment.row)
        if not len(found):
            closest = int(rows[np.abs(rows - moment.row).argmin()])
            raise ConfigError(f"--row: {path} has no sample of this series in row {moment.row}; the closest is in row {closest}")
        return int(found[-1])
    if moment.at is None:
        return int(trace.verdicts.score[own].argmax())
    at_ms = parse_time(moment.at)
    first, last = int(times.min()), int(times.max())
    if not first <= at_ms <= last:
        raise ConfigError(f"--at: got {iso(at_ms)}, the series has samples from {iso(first)} to {iso(last)} in {path}")
    return int(np.where(times <= at_ms, times, first - 1).argmax())  # the first of the newest: what follows it is late or repeated


def _alert(replay: Replay, key: str, time_ms: int) -> Facts | None:
    """The alert that covers a moment, as it was told last up to then."""
    told_of = None
    for alert in replay.alerts:
        if alert.series.key == key and epoch_ms(alert.event_time) <= time_ms:
            told_of = alert
    if told_of is None or (told_of.ends_at is not None and epoch_ms(told_of.ends_at) <= time_ms):
        return None
    return {
        "alert_id": told_of.alert_id,
        "starts_at": told_of.starts_at,
        "severity": told_of.severity,
        "description": told_of.annotations["description"],
    }


def _chart(replay: Replay, own: NDArray[np.int64]) -> Chart:
    """The samples up to the explained one, of several features that with the largest share in it."""
    trace, verdicts = replay.trace, replay.trace.verdicts
    drawn = own[-DRAWN:]
    drawn = drawn[np.argsort(trace.time_ms[drawn], kind="stable")]
    feature, key = int(leading(verdicts.share[own[-1]], verdicts.observed[own[-1]])), trace.keys[int(trace.series[own[-1]])]
    last_ms = int(trace.time_ms[drawn[-1]])
    drawn = drawn[~np.isnan(verdicts.observed[drawn, feature])]  # some samples may lack it
    alerts = [a for a in replay.alerts if a.series.key == key and epoch_ms(a.event_time) <= last_ms]
    return Chart(
        series=key,
        times_ms=trace.time_ms[drawn],
        value=verdicts.observed[drawn, feature],
        low=verdicts.low[drawn, feature],
        high=verdicts.high[drawn, feature],
        expected=verdicts.expected[drawn, feature],
        score=verdicts.score[drawn],
        episodes=tuple(episodes(alerts)),
        caption="the explained sample is the last; what came after it is not drawn",
    )


# --- state in Kafka -----------------------------------------------------------------------------------------------


class Kept(NamedTuple):
    """A series in a changelog, with others to compare it with."""

    place: Place
    row: Row
    model: str
    """Hash of the artifact whose memory it is."""
    features: str
    """Fingerprint of what its features are, empty where it has one."""
    others: Sequence[Row]
    correction: float
    """Of the partition's threshold, in powers of ten."""


def from_state(settings: Settings, series: str, topic: str | None, partition: int | None) -> Explanation:
    """Explains the newest state that the changelogs have of a series. Only reads.

    Args:
        settings: the configuration.
        series: canonical key.
        topic: this input only.
        partition: this one only.

    Raises:
        ConfigError: there is no such topic or partition, or no such series is known.
        StateError: nothing is known yet at all.
        AnomalydError: the changelogs cannot be read.
    """
    kept = asyncio.run(_find(settings, series, topic, partition))
    return explained(settings, kept, _writer(settings, kept))


async def _find(settings: Settings, series: str, topic: str | None, partition: int | None) -> Kept:
    known: list[str] = []
    for place in await places(settings, topic, partition):
        log = CommittedLog(settings.kafka, place.changelog, place.source.partition)
        try:
            contents, _ = await committed(log, transactional=settings.transactional)
        finally:
            await log.close()
        if (found := look(contents, place, series, known)) is not None:
            return found
    if not known:
        raise StateError(
            "there is no state yet: nothing was learned, or no page of it was written; anomalyd state inspect shows what there is"
        )
    raise ConfigError(f"--series: no state of {series}; {near(series, known)}")


def look(contents: Contents, place: Place, series: str, known: list[str]) -> Kept | None:
    """Looks for a series in what was read of a changelog.

    Args:
        contents: what was read.
        place: of which partition.
        series: canonical key.
        known: gets the keys that were met.

    Raises:
        StateError: an alert of the series is known, and no state yet.
    """
    own: Row | None = None
    others: list[Row] = []
    for row in contents.rows():
        known.append(row.key)
        if row.key == series:
            own = row
        elif len(others) < OTHERS and _grown_up(row):
            others.append(row)
    if own is not None:
        corrections = () if contents.position is None else contents.position.corrections
        alike = [row for row in others if row.layout == own.layout]
        return Kept(place, own, *_writer_of(contents, own), alike, corrections[-1][1] / MILLI if corrections else 0.0)
    if any(key == series for key, _, _ in contents.episodes()):
        raise StateError(f"{series} has an alert and is on no page of state yet; pages are written as the daemon goes: try again later")
    return None


def _writer(settings: Settings, kept: Kept) -> Artifact | None:
    """The model that wrote a row, if it is not that of the configuration and the models topic has it."""
    if artifact_of(_stream_of(settings, kept)).hash == kept.model:
        return None
    with contextlib.suppress(AnomalydError):
        content = asyncio.run(read_models(settings)).content(kept.model)
        return suited(artifacts.from_bytes(content), _stream_of(settings, kept))
    return None


def _stream_of(settings: Settings, kept: Kept) -> StreamSettings:
    return next(stream for stream in settings.streams if kept.place.source.topic in stream.topics)


def explained(settings: Settings, kept: Kept, writer: Artifact | None = None) -> Explanation:
    """What a state row says.

    Args:
        settings: the configuration.
        kept: the row.
        writer: the model that wrote it; None: it is seen with the one of the configuration.
    """
    stream = _stream_of(settings, kept)
    policy = settings.policy(stream)
    detector = Detector(writer or artifact_of(stream), "cpu", Options(policy.budget, stream.kind))
    if policy.budget_control:
        detector.threshold = detector.threshold_at(policy.budget, kept.correction)
    entities = stream_plan(stream, policy).entities
    same_model = kept.model == detector.model.hash
    same_features = kept.features == ("" if entities is None else entities.fingerprint)

    def ours(rows: Sequence[Row]) -> NDArray[np.uint8]:
        if not rows:
            return np.empty((0, detector.layout.row_bytes), np.uint8)
        data = np.frombuffer(b"".join(row.data for row in rows), np.uint8).reshape(len(rows), -1)
        return migrated(detector, data, kept.row.layout, same_model=same_model, same_features=same_features)

    facts = state_facts(detector, ours([kept.row])[0], ours(kept.others), () if entities is None else entities.names)
    source = {"topic": kept.place.source.topic, "partition": kept.place.source.partition, "learned_up_to": kept.row.position}
    other = f"model {kept.model[:12]}" if not same_model else "a configuration with other features" if not same_features else ""
    note = f"written by {other}; shown as a restart with this one would take it over" if other else ""
    return Explanation({"series": kept.row.key, "source": source, "model": _model(detector), "note": note} | facts)


def _grown_up(row: Row) -> bool:
    """A series in warm-up says nothing about what is usual."""
    age = np.frombuffer(row.field("age"), np.int32)
    return bool(len(age) and age[0] >= WARMUP_SAMPLES)


def _writer_of(contents: Contents, row: Row) -> tuple[str, str]:
    """Model and features of the page on which a row lies."""
    pages = (value for _, value, _ in contents.live.values() if isinstance(value, Page))
    return next(((page.model, page.features) for page in pages if page.position == row.position and row.key in page.keys), ("", ""))


def _model(detector: Detector) -> Facts:
    model = detector.model
    return {"name": model.name, "version": model.version, "hash": model.hash}
