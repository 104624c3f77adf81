"""`anomalyd evaluate`: a labelled set through the production engine, strictly online, and what the measures say."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from anomalyd.detector import Artifact, Detector, Options
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.ablations import VARIANTS, VariantDetector, prepared, table
from anomalyd.evaluation.backtest import Bar, Engine, Writer, settings_for, stream_for, write_text
from anomalyd.evaluation.baselines import BASELINES, BaselineDetector
from anomalyd.evaluation.measures import Paired, average_precision, paired
from anomalyd.evaluation.models import Models
from anomalyd.evaluation.readers import Table
from anomalyd.evaluation.replay import Replay
from anomalyd.evaluation.scorecard import SHOWN, Card, card, nab, text_of, totals, usual_step_ms
from anomalyd.evaluation.sets import Half, Labelled, LabelledSet
from anomalyd.evaluation.verdictpage import Page
from anomalyd.settings import Settings

OURS: Final = "anomalyd"
COMPARED: Final = ("vus_pr", "auc_pr", "best_f1")
"""Measures of a stream by which detectors are compared, stream by stream."""
FRESH: Final = (100, 500)
"""Rows in front of a labelled segment at which a cold start begins, at least and at most."""


@dataclass(frozen=True, slots=True)
class Result:
    """A detector on a set."""

    detector: str
    cards: tuple[Card, ...]
    measures: dict[str, float | None]
    samples: int
    samples_per_s: int


def run(
    name: str,
    data: Path,
    settings: Settings | None,
    *,
    detector: str = OURS,
    compare: Sequence[str] = (),
    out: Path | None = None,
    report: Path | None = None,
    json_output: bool = False,
    no_fit: bool = False,
    shared: bool = False,
    seed: int = 0,
    half: Half | None = None,
    cold_start: bool = False,
    ablations: bool = False,
    models: Path | None = None,
) -> int:
    """Measures detectors on a set and prints what came out; returns the exit code.

    Args:
        name: of the set.
        data: where it lies.
        settings: a configuration, for its alert policy and device; None: the defaults.
        detector: which one; `anomalyd`, or one of `BASELINES` or `VARIANTS`.
        compare: others, on the same streams; `all` for all of `BASELINES`.
        out: folder for scores and alerts.
        report: HTML file.
        json_output: one JSON object instead of tables.
        no_fit: fit nothing on train.
        shared: one joint model for the set instead of one for each file.
        seed: of what is trained or drawn.
        half: of the streams; None: all.
        cold_start: measure that too.
        ablations: compare with all of `VARIANTS`, in a table of what each of them lacks.
        models: folder that keeps what is trained and calibrated for variants.

    Raises:
        ArtifactError: a variant cannot be calibrated.
        ConfigError: no such detector, or something cannot be written.
        InputFileError: the set cannot be used.
    """
    labelled_set = LabelledSet(name, data)
    if half is not None:
        labelled_set.keep(half)
    if not labelled_set.files:
        raise InputFileError(f"{labelled_set.folder}: this half has no stream")
    stream = stream_for(settings, None)
    settings = settings or settings_for(stream)
    names = _names(detector, (*VARIANTS, *compare) if ablations else compare)
    weights = _weights(labelled_set, names, seed, models)
    page = Page(f"anomalyd evaluate {name}") if report is not None else None
    results = []
    with ExitStack() as stack:
        bar = stack.enter_context(Bar(len(labelled_set.files) * len(names)))
        for number, who in enumerate(names):
            engine = Engine(settings, stream, Models(labelled_set.files, fit=not no_fit, shared=shared, seed=seed))
            make = _maker(who, weights, engine.options, seed, fit=not no_fit)
            writer = None if out is None else stack.enter_context(Writer(out if number == 0 else out / who))
            cards, fresh = [], []
            for file in labelled_set.files:
                bar.start(file, who)
                labelled = labelled_set.read(file)
                own = make(labelled.table)
                replay = engine.replay(file, labelled.table, bar, own)
                cards.append(card(labelled, replay))
                if cold_start:
                    fresh += list(_cold_starts(engine, labelled, replay, bar, seed, own))
                bar.finish(replay)
                if writer is not None:
                    writer.write(file, replay)
                if page is not None and number == 0:
                    page.take(labelled, replay, cards[-1])
            measures = totals(cards, settings.policy(stream).budget)
            if name == "nab":
                measures = nab(cards) | measures
            if cold_start:
                measures["cold_start"] = _ratio(fresh)
            samples = sum(len(one.evidence) for one in cards)
            results.append(Result(who, tuple(cards), measures, samples, round(samples / max(engine.busy_s, 1e-9))))
    against = {other.detector: _against(results[0], other) for other in results[1:]}
    if page is not None and report is not None:
        write_text(report, page.render([(one.detector, one.measures) for one in results], results[0].cards))
    said = _ablations(results, against) if ablations else _text(results, against)
    print(*([json.dumps(_json(name, results, against))] if json_output else said), sep="\n")  # noqa: T201  the command's result
    return 0


def _names(detector: str, compare: Sequence[str]) -> list[str]:
    """Those to measure, ours or the one asked for first."""
    known = (OURS, *BASELINES, *VARIANTS)
    asked = [name for one in compare for name in ((OURS, *BASELINES) if one == "all" else (one,))]
    names = list(dict.fromkeys((detector, *asked)))
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--detector, --compare: got {unknown[0]!r}, valid are {', '.join(known)}")
    return names


def _weights(labelled_set: LabelledSet, names: Sequence[str], seed: int, models: Path | None) -> dict[str, Artifact]:
    """The artifacts of those that are variants. Raises InputFileError where a stream has several values, before anything is trained."""
    variants = [VARIANTS[who] for who in names if who in VARIANTS]
    for file in labelled_set.files if variants else ():
        if (features := labelled_set.read(file).table.value.shape[1]) > 1:
            raise InputFileError(f"{file.path}: has {features} values; {variants[0].name} is for single metrics")
    return prepared(variants, seed, models) if variants else {}


def _maker(who: str, weights: dict[str, Artifact], options: Options, seed: int, *, fit: bool) -> Callable[[Table], Detector | None]:
    """Makes the detector for a table; None stands for the engine's own."""
    if who in VARIANTS:
        variant = VariantDetector(VARIANTS[who], weights[who], options)
        return lambda _: variant
    return lambda table: None if who == OURS else _baseline(who, table, options, seed, fit=fit)


def _baseline(name: str, table: Table, options: Options, seed: int, *, fit: bool) -> BaselineDetector:
    step_ms = int(usual_step_ms(table.time_ms))
    train = table.train if fit else None
    return BaselineDetector(BASELINES[name], table.value.shape[1], train=train, step_ms=step_ms, seed=seed, options=options)


def _cold_starts(
    engine: Engine, labelled: Labelled, warm: Replay, bar: Bar, seed: int, detector: Detector | None
) -> Iterator[tuple[float, float]]:
    """Average precision around each labelled segment: of one that has just met the stream, and of one that saw all of it."""
    rng = np.random.default_rng([seed, len(labelled.table)])
    label, evidence = labelled.label, warm.trace.verdicts.evidence
    for first, last in labelled.windows:
        before = int(rng.integers(FRESH[0], FRESH[1] + 1))
        # Earlier segments would be trained on, and are no part of the question.
        rows = slice(max(0, first - before), last + 1)
        if first - rows.start < FRESH[0]:
            continue
        cold = engine.replay(labelled.file, _part(labelled.table, rows), bar, detector)
        ours = average_precision(cold.trace.verdicts.evidence, label[rows])
        theirs = average_precision(evidence[rows], label[rows])
        if ours is not None and theirs is not None:
            yield ours, theirs


def _part(table: Table, rows: slice) -> Table:
    """Some rows, without what came before."""
    label = None if table.label is None else table.label[rows]
    return replace(table, row=table.row[rows], time_ms=table.time_ms[rows], value=table.value[rows], label=label, train=None)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float | None:
    return sum(a for a, _ in pairs) / sum(b for _, b in pairs) if pairs else None


def _against(ours: Result, theirs: Result) -> dict[str, Paired]:
    found = {}
    for name in COMPARED:
        a, b = ([_float(one.figures[name]) for one in result.cards] for result in (ours, theirs))
        compared = paired(a, b)
        if compared is not None:
            found[name] = compared
    return found


def _float(value: float | str | None) -> float | None:
    return None if value is None else float(value)


# --- what comes out -----------------------------------------------------------------------------------------------


def _json(name: str, results: Sequence[Result], against: dict[str, dict[str, Paired]]) -> dict[str, Any]:
    first = results[0]
    found: dict[str, Any] = {
        "set": name,
        "detector": first.detector,
        "streams": len(first.cards),
        "samples": first.samples,
        "samples_per_s": first.samples_per_s,
        **_figures(first),
    }
    if against:
        found["compared"] = {
            other.detector: {
                **_figures(other),
                "difference": {
                    measure: {
                        "mean": round(pair.difference.value, 4),
                        "low": round(pair.difference.low, 4),
                        "high": round(pair.difference.high, 4),
                        "won": round(pair.won, 4),
                        "streams": pair.streams,
                    }
                    for measure, pair in against[other.detector].items()
                },
            }
            for other in results[1:]
        }
    return found


def _figures(result: Result) -> dict[str, Any]:
    per_stream = [{"stream": one.stream, **_rounded(one.figures)} for one in result.cards]
    return {"measures": _rounded(result.measures), "per_stream": per_stream}


def _rounded(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def _text(results: Sequence[Result], against: dict[str, dict[str, Paired]]) -> Iterator[str]:
    first = results[0]
    width = max(6, *(len(one.stream) for one in first.cards))
    yield f"{'stream':<{width}}" + "".join(f"  {name:>14}" for name in SHOWN)
    for one in first.cards:
        yield f"{one.stream:<{width}}" + "".join(f"  {text_of(one.figures[name]):>14}" for name in SHOWN)
    yield ""
    names = list(first.measures)
    wide = max(len(name) for name in names)
    yield f"{'measure':<{wide}}" + "".join(f"  {result.detector:>18}" for result in results)
    for name in names:
        yield f"{name:<{wide}}" + "".join(f"  {text_of(result.measures.get(name)):>18}" for result in results)
    for other, pairs in against.items():
        yield ""
        yield f"{first.detector} against {other}, stream by stream"
        for name, pair in pairs.items():
            interval = f"[{pair.difference.low:+.3f}, {pair.difference.high:+.3f}]"
            yield f"  {name:<10} {pair.difference.value:+.3f} {interval}, better on {pair.won:.0%} of {pair.streams}"
    yield f"{first.samples_per_s:,} samples/s"


def _ablations(results: Sequence[Result], against: dict[str, dict[str, Paired]]) -> Iterator[str]:
    yield from table(
        (results[0].detector, results[0].measures), [(one.detector, one.measures, against[one.detector]) for one in results[1:]]
    )
    yield ""
    wide = max(len(one.detector) for one in results)
    for one in results:
        if one.detector in VARIANTS:
            yield f"{one.detector:<{wide}}  {VARIANTS[one.detector].about}"
    yield f"in brackets: less or more than {results[0].detector}, mean over the streams with an anomaly and its bootstrap interval"
