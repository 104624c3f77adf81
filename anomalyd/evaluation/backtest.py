"""`anomalyd backtest`: the production engine over files, each from a fresh start."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from anomalyd.app import stream_plan
from anomalyd.detector import Artifact, Detector, Options, Shape
from anomalyd.detector.detector import Device
from anomalyd.detector.recipe import WARMUP_SAMPLES
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.gallery import Gallery
from anomalyd.evaluation.models import Models
from anomalyd.evaluation.readers import InputFile, Table, find, read_table
from anomalyd.evaluation.replay import Replay, Trace, encode, ranking, replay_lines, replay_table
from anomalyd.formats import FORMATS, FormatOptions, make_decoder
from anomalyd.settings import KafkaSettings, Settings, StreamSettings
from anomalyd.shard import StreamPlan
from anomalyd.stream_model import artifact_of
from anomalyd.warmup import tell_of_compiling

STREAM: Final = "backtest"
"""Name of the stream where no configuration gives one."""


DetectorMaker = Callable[[Artifact, Device, Options], Detector]


@dataclass(frozen=True, slots=True)
class FileResult:
    """What is told about a file."""

    path: str
    series: int
    samples: int
    episodes: int


def run(
    paths: Sequence[Path],
    settings: Settings | None,
    out: Path | None,
    report: Path | None,
    *,
    json_output: bool,
    format: str | None,  # noqa: A002  the name of the command's option
    no_fit: bool,
    shared: bool,
    model: Path | None = None,
) -> int:
    """Streams files through the engine, writes what was asked for, prints a summary; returns the exit code.

    With settings, names and policies are those of the first stream with this format (without a format: of the first stream).

    Args:
        paths: files and directories.
        settings: a configuration; None: the defaults.
        out: folder for scores and alerts.
        report: HTML file.
        json_output: one JSON object instead of a table.
        format: of files that are neither CSV nor npz.
        no_fit: do not fit models on train.
        shared: one model for all files with train.
        model: folder of the artifact that scores all files; nothing is fitted then.

    Raises:
        ArtifactError: the model cannot be used.
        ConfigError: something cannot be written, or the format is none.
        InputFileError: a file cannot be used, with that model, or none has a sample.
    """
    stream = stream_for(settings, format)
    files = find(paths, lines=format is not None or settings is not None)
    engine = Engine(settings or settings_for(stream), stream, Models(files, fit=not no_fit, shared=shared, folder=model))
    results, unused = [], []
    tell_of_compiling()
    with ExitStack() as stack:
        writer = stack.enter_context(Writer(out)) if out is not None else None
        gallery = Gallery() if report is not None else None
        bar = stack.enter_context(Bar(len(files)))
        for file in files:
            bar.start(file)
            table = read_table(file) if file.kind != "lines" else None
            detector = engine.detector(file, table)
            engine.warm_up(file, table, detector)
            replay = engine.replay(file, table, bar, detector)
            results.append(FileResult(str(file.path), len(replay.trace.keys), len(replay.trace), replay.episodes))
            bar.finish(replay)
            bar.complain(file, replay, table)
            if not len(replay.trace):
                unused.append(_unused(file, replay, table))
            if writer is not None:
                writer.write(file, replay, ranking(replay.trace, detector))
            if gallery is not None:
                gallery.hang(replay, table)
    took_s = engine.busy_s
    if report is not None and gallery is not None:
        write_text(report, gallery.page([asdict(result) for result in results], took_s))
    if not any(result.samples for result in results):
        others = f", and {len(unused) - 1:,} other files" if len(unused) > 1 else ""
        raise InputFileError(f"no sample could be used, nothing was scored: {unused[0]}{others}")
    _print(results, took_s, json_output=json_output)
    if not json_output:
        written = [f"{option} {path}" for option, path in (("report:", report), ("scores and alerts:", out)) if path is not None]
        print(*(written or ["--report FILE.html shows the episodes, --out DIR writes scores and alerts"]), sep="\n")  # noqa: T201  likewise
    return 0


# --- what to run --------------------------------------------------------------------------------------------------


def stream_for(settings: Settings | None, wire_format: str | None) -> StreamSettings:
    """The stream whose names and policies count.

    Args:
        settings: a configuration; None: the defaults.
        wire_format: of files that are neither CSV nor npz; None: that of the first stream.

    Raises:
        ConfigError: there is no such format.
    """
    if wire_format is not None and wire_format not in FORMATS:
        raise ConfigError(f"--format: got {wire_format!r}, valid are {', '.join(FORMATS)}")
    if settings is None:
        return StreamSettings.model_validate({"name": STREAM, "topics": (STREAM,), "format": wire_format or "plain-json"})
    if wire_format is None:
        return settings.streams[0]
    found = next((stream for stream in settings.streams if stream.format == wire_format), None)
    return found or settings.streams[0].model_copy(update={"format": wire_format})


def settings_for(stream: StreamSettings) -> Settings:
    """Settings with all defaults, for files that come without a configuration."""
    return Settings(kafka=KafkaSettings(bootstrap_servers="localhost:9092", group_id=STREAM), streams=(stream,))


class Engine:
    """Detectors and settings that all files share.

    Args:
        settings: for policy, room and device.
        stream: whose policy counts.
        models: the weights for each file.
        make: of detectors.
    """

    def __init__(self, settings: Settings, stream: StreamSettings, models: Models, make: DetectorMaker = Detector) -> None:
        policy = settings.policy(stream)
        self._plan: StreamPlan = stream_plan(stream, policy)
        self._stream = stream
        self._decoder = make_decoder(stream.format, FormatOptions(stream.timestamp_unit))
        self._capacity = settings.max_series
        self._ttl_ms = round(settings.state.series_ttl_s * 1000)
        self._models = models
        self._make = make
        self._device = settings.device
        self.options = Options(budget_per_day=policy.budget, kind=stream.kind)
        self._detectors: dict[str, Detector] = {}
        self._warm: Shape | None = None
        self.busy_s = 0.0
        """Time spent on streaming, without reading tables and fitting models."""
        self.streamed = 0
        """Samples scored in it."""

    def warm_up(self, file: InputFile, table: Table | None, detector: Detector) -> None:
        """Has everything compiled or loaded that the file needs under this detector, so that this counts as no time of streaming."""
        if self._warm == detector.layout.shape:
            return
        if table is None:
            replay_lines(file, self._plan, detector, self._decoder, self._capacity, self._ttl_ms, _nobody, most=1)
        elif len(table):
            first = replace(table, row=table.row[:1], time_ms=table.time_ms[:1], value=table.value[:1], label=None, train=None)
            replay_table(file, first, self._plan, detector, _nobody)
        self._warm = detector.layout.shape

    def replay(self, file: InputFile, table: Table | None, bar: "Bar", detector: Detector | None = None) -> Replay:
        """A file from a fresh start, under this detector or the one that is its own."""
        detector = detector or self.detector(file, table)
        began = time.perf_counter()
        if table is None:
            replay = replay_lines(file, self._plan, detector, self._decoder, self._capacity, self._ttl_ms, bar.advance)
        else:
            bar.expect(len(table) + (0 if table.train is None else len(table.train)))
            replay = replay_table(file, table, self._plan, detector, bar.advance)
        self.busy_s += time.perf_counter() - began
        self.streamed += len(replay.trace)
        return replay

    def detector(self, file: InputFile, table: Table | None) -> Detector:
        """The one that is a file's own. State lies in the shards: a detector may serve any number of files."""
        models = self._models
        artifact = models.for_records(file, artifact_of(self._stream)) if table is None else models.for_table(file, table)
        name = f"{artifact.hash} {artifact.shape.features}"
        if name not in self._detectors:
            self._detectors = {name: self._make(artifact, self._device, self.options)}
        return self._detectors[name]


def _nobody(_: int) -> None:
    pass


# --- what comes out -----------------------------------------------------------------------------------------------


class Writer:
    """Writes scores and alerts into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._alerts: IO[bytes] = (folder / "alerts.jsonl").open("wb")
        except OSError as error:
            raise ConfigError(f"--out {folder}: {error.strerror or error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._alerts.close()

    def write(self, file: InputFile, replay: Replay, evidence: NDArray[np.float64]) -> None:
        """Adds one input's outputs, with what ranks its samples, shape (n,)."""
        path = self._folder / f"{file.name}.npz"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as opened:
                np.savez(opened, allow_pickle=False, **columns(replay.trace, evidence, lines=file.kind == "lines"))
            for alert in replay.alerts:
                self._alerts.write(encode(alert) + b"\n")
        except OSError as error:
            raise ConfigError(f"--out {path}: {error.strerror or error}") from None


def columns(trace: Trace, evidence: NDArray[np.float64], *, lines: bool = False) -> dict[str, NDArray[Any]]:
    """The arrays of an output file.

    row, score, evidence, expected, low, high; for several features share; for files of records `series`, each row's index into `keys`.
    """
    verdicts = trace.verdicts
    several = verdicts.share.shape[1] > 1
    wide = {"expected": verdicts.expected, "low": verdicts.low, "high": verdicts.high}
    arrays: dict[str, NDArray[Any]] = {"row": trace.row, "score": verdicts.score, "evidence": evidence}
    arrays |= wide | {"share": verdicts.share} if several else {name: column[:, 0] for name, column in wide.items()}
    if lines:
        arrays |= {"series": trace.series, "keys": np.array(trace.keys, dtype=np.str_)}
    return arrays


def write_text(path: Path, text: str) -> None:
    """Writes a report. Raises ConfigError."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"--report {path}: {error.strerror or error}") from None


def _print(results: Sequence[FileResult], took_s: float, *, json_output: bool) -> None:
    totals = {
        "series": sum(result.series for result in results),
        "samples": sum(result.samples for result in results),
        "episodes": sum(result.episodes for result in results),
    }
    rate = round(totals["samples"] / max(took_s, 1e-9))
    if json_output:
        lines = [json.dumps({**totals, "samples_per_s": rate, "files": [asdict(result) for result in results]})]
    else:
        lines = [*_table(results, totals), f"{rate:,} samples/s"]
    print(*lines, sep="\n")  # noqa: T201  the command's result


def _table(results: Sequence[FileResult], totals: dict[str, int]) -> Iterator[str]:
    width = max(4, *(len(result.path) for result in results))
    yield f"{'file':<{width}}  {'series':>9}  {'samples':>12}  {'episodes':>9}"
    for result in results:
        yield f"{result.path:<{width}}  {result.series:>9,}  {result.samples:>12,}  {result.episodes:>9,}"
    if len(results) > 1:
        yield f"{'total':<{width}}  {totals['series']:>9,}  {totals['samples']:>12,}  {totals['episodes']:>9,}"


class Bar:
    """Progress on a terminal, nothing elsewhere."""

    def __init__(self, files: int) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[files]}  {task.fields[samples]:,} samples  {task.fields[episodes]:,} episodes"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._files = files
        self._done = 0
        self._rows = 0.0
        self._task: TaskID = self._progress.add_task("", total=files, files="", samples=0, episodes=0)
        self._samples = self._episodes = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, file: InputFile, detector: str = "") -> None:
        """This is the next file, and the detector that it goes through where there are several."""
        self._rows = 0.0
        self._progress.update(self._task, description=f"{detector} {file.path.name}".strip(), files=f"{self._done + 1}/{self._files}")

    def expect(self, rows: int) -> None:
        """The file has this many rows."""
        self._rows = float(rows)

    def advance(self, rows: int) -> None:
        """Some of them are done."""
        self._samples += rows
        part = rows / self._rows if self._rows else 0.0
        self._progress.update(self._task, advance=part, samples=self._samples)

    def finish(self, replay: Replay | None = None) -> None:
        """The file is done."""
        self._done += 1
        self._episodes += 0 if replay is None else replay.episodes
        self._progress.update(self._task, completed=self._done, episodes=self._episodes)

    def complain(self, file: InputFile, replay: Replay, table: Table | None) -> None:
        """Says what could not be read or is not as it should be."""
        for line in complaints(replay, table):
            self._progress.console.print(f"{file.path}: {line}", highlight=False, markup=False, soft_wrap=True)


def complaints(replay: Replay, table: Table | None) -> Iterator[str]:
    """What of a file was not used, or not as its owner may think; a line each.

    Args:
        replay: what became of it.
        table: its rows; None: it holds records.
    """
    if replay.rejected:
        count = sum(replay.rejected.values())
        yield f"{_counted(count, 'record')} not used, wholly or in part: {_reasons(replay)}"
    if table is not None and table.skipped:
        yield f"{_counted(table.skipped, 'row')} without a value"
    trace = replay.trace
    if not len(trace):
        return
    if late := int(out_of_order(trace).sum()):
        what = _counted(len(trace), "sample" if table is None else "row")
        verb, scored = ("is", "it is scored as a late sample") if late == 1 else ("are", "they are scored as late samples")
        yield f"{late:,} of {what} {verb} not in time order; {scored} (docs/input-rules.md)"
    most = int(np.bincount(trace.series).max()) + (0 if table is None or table.train is None else len(table.train))
    if most <= WARMUP_SAMPLES:
        have = f"has {_counted(most, 'sample')}" if len(trace.keys) == 1 else f"no series has more than {_counted(most, 'sample')}"
        yield f"{have}: nothing could alert, since the first {WARMUP_SAMPLES} of a series never do"


def out_of_order(trace: Trace) -> NDArray[np.bool_]:
    """Which samples are older than one before them of their series, shape (n,)."""
    order = np.argsort(trace.series, kind="stable")
    series, time_ms = trace.series[order].astype(np.int64), trace.time_ms[order]
    # Series follow each other: each is lifted over those before, so that one running maximum serves all of them.
    lifted = time_ms - time_ms.min(initial=0) + series * (int(np.ptp(time_ms)) + 1)
    late = np.zeros(len(order), np.bool_)
    late[order[1:]] = lifted[1:] < np.maximum.accumulate(lifted)[:-1]
    return late


def _unused(file: InputFile, replay: Replay, table: Table | None) -> str:
    """Why a file has no sample at all."""
    if table is None:
        return f"{file.path}: {_reasons(replay) or 'no record is of a series that is wanted'}"
    what = f"column {table.names[0]} holds" if len(table.names) == 1 else f"the {len(table.names)} value columns hold"
    return f"{file.path}: {what} no number in any of the {_counted(table.skipped, 'row')}"


def _reasons(replay: Replay) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(replay.rejected.items()))


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
