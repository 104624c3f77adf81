"""Challenger against champion, on the same later data, both in the production engine.

A challenger passes if it forecasts the later data better, beyond doubt, and neither alarms more often nor misses more than the
champion does, beyond a stated margin and with the same certainty. What cannot be told apart changes nothing: the champion stays.

Intervals are of 95 %, bootstrapped over series, since samples of one series hang together.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, WARMUP, SampleBatch
from anomalyd.detector import Detector
from anomalyd.evaluation.measures.bootstrap import Interval, paired
from anomalyd.retrainer.injected import inject
from anomalyd.retrainer.material import LEAST_SERIES, Judged
from anomalyd.training.calibrate import openings

MOST_SERIES: Final = 512
"""Judged by; of more, so many are taken evenly."""
WORSE_ALARMS: Final = 0.25
"""A challenger may alarm more often by this share of the budget, or of the champion's rate if that is more."""
WORSE_RECALL: Final = 0.05
"""And may tell so much less of the injected incidents."""
SURPRISE: Final = "surprise"
FALSE_ALARMS: Final = "false_alarms_per_series_day"
TOLD: Final = "injected_told"
MEASURES: Final = (SURPRISE, FALSE_ALARMS, TOLD)
"""What champion and challenger are compared in."""
TAIL: Final = 3.0
"""Degrees of freedom of the likelihood: outliers count, and do not decide."""
INJECTED: Final = 512
"""Incidents in all, one at a time and at most eight a series: few series get more of them, or their recall could not be told apart."""
LATE: Final = 5
"""Samples behind an incident in which it still counts as told."""
_BLOCK: Final = 1 << 18
_MS_PER_DAY: Final = 86_400_000.0


@dataclass(frozen=True, slots=True)
class Run:
    """A model over the judged series, one figure a series, (s,)."""

    surprise: NDArray[np.float64]
    """Mean negative log likelihood of the later samples under the forecast; NaN where nothing was forecast."""
    alarms: NDArray[np.float64]
    """Episodes that opened in the later part."""
    told: NDArray[np.float64]
    """Share of the incidents injected into it that were told."""
    finite: bool
    """Whether all scores were."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it."""

    passed: bool
    reason: str
    """In one sentence."""
    figures: dict[str, Any]
    """Each measure of both, and the interval of the difference, challenger less champion."""


def compare(champion: Detector, challenger: Detector, judged: Sequence[Judged], seed: int) -> Verdict:
    """Judges a challenger.

    Args:
        champion: what scores now.
        challenger: with the same options.
        judged: series that neither saw the later part of.
        seed: of the injected incidents.
    """
    chosen = evenly(judged, MOST_SERIES)
    if len(chosen) < LEAST_SERIES:
        return Verdict(passed=False, reason=f"{len(chosen)} series to judge by, {LEAST_SERIES} are needed", figures={"series": len(chosen)})
    days = np.array([(len(series.time_ms) - series.later) * series.step_ms / _MS_PER_DAY for series in chosen])
    return decide(run(champion, chosen, seed), run(challenger, chosen, seed), days, champion.options.budget_per_day)


def decide(champion: Run, challenger: Run, days: NDArray[np.float64], budget: float) -> Verdict:
    """The rule.

    Args:
        champion: its run.
        challenger: its run over the same series.
        days: of event time judged by, for each series.
        budget: false alarms per series and day that are allowed.
    """
    rates = champion.alarms.sum() / days.sum(), challenger.alarms.sum() / days.sum()
    surprise = _difference(challenger.surprise, champion.surprise)
    # Weighed by its days, so that the mean over series is the difference of the rates.
    alarms = _difference(challenger.alarms / days.mean(), champion.alarms / days.mean())
    recall = _difference(challenger.told, champion.told)
    allowed = WORSE_ALARMS * max(budget, float(rates[0]))
    figures = {
        "series": len(days),
        "series_days": round(float(days.sum()), 2),
        SURPRISE: _figure(_mean(champion.surprise), _mean(challenger.surprise), surprise),
        FALSE_ALARMS: _figure(*rates, alarms) | {"worse_allowed": round(allowed, 4)},
        TOLD: _figure(champion.told.mean(), challenger.told.mean(), recall) | {"worse_allowed": WORSE_RECALL},
    }
    if not challenger.finite or (np.isfinite(champion.surprise) & ~np.isfinite(challenger.surprise)).any():
        return Verdict(passed=False, reason="its scores are not all finite", figures=figures)
    if surprise is None or surprise.high >= 0.0:
        return Verdict(passed=False, reason="it does not forecast the later data better beyond doubt", figures=figures)
    if alarms is None or alarms.high > allowed:
        return Verdict(passed=False, reason="it may alarm more often than the champion", figures=figures)
    if recall is None or recall.low < -WORSE_RECALL:
        return Verdict(passed=False, reason="it may miss more incidents than the champion", figures=figures)
    return Verdict(
        passed=True, reason="it forecasts the later data better, and alarms and misses no more than the champion", figures=figures
    )


def run(detector: Detector, judged: Sequence[Judged], seed: int, times: int | None = None) -> Run:
    """A model over histories, from the beginning of each, and again with incidents in them.

    Args:
        detector: the model.
        judged: the histories.
        seed: of the incidents.
        times: incidents for each; None: INJECTED in all.
    """
    clean = _scored(detector, judged, [series.value for series in judged])
    finite = all(np.isfinite(scored.score).all() for scored in clean)
    times = int(np.clip(INJECTED // len(judged), 1, 8)) if times is None else times
    told = np.zeros(len(judged))
    for number in range(times):
        injected = inject(judged, seed + number)
        disturbed = _scored(detector, judged, [one.value for one in injected])
        finite = finite and all(np.isfinite(scored.score).all() for scored in disturbed)
        told += [_opened(scored, one.begin, one.end + LATE) > 0 for scored, one in zip(disturbed, injected, strict=True)]
    alarms = [_opened(scored, series.later, len(series.time_ms)) for scored, series in zip(clean, judged, strict=True)]
    surprise = [_surprise(scored, series.later) for scored, series in zip(clean, judged, strict=True)]
    return Run(np.array(surprise), np.array(alarms, np.float64), told / max(1, times), finite)


@dataclass(frozen=True, slots=True)
class _Scored:
    """One series under one model; n samples."""

    score: NDArray[np.float64]
    """(n,)"""
    armed: NDArray[np.bool_]
    """(n,)"""
    error: NDArray[np.float64]
    """Observed less expected, NaN where there is neither, (n, F)."""
    observed: NDArray[np.float64]
    """(n, F)"""


def _scored(detector: Detector, judged: Sequence[Judged], values: Sequence[NDArray[np.float64]]) -> list[_Scored]:
    """All series through the engine, some at a time."""
    found: list[_Scored] = []
    start = 0
    while start < len(judged):
        stop, samples = start, 0
        while stop < len(judged) and (samples < _BLOCK or stop == start):
            samples += len(judged[stop].time_ms)
            stop += 1
        lengths = [len(series.time_ms) for series in judged[start:stop]]
        rows = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        times = np.concatenate([series.time_ms for series in judged[start:stop]])
        value = np.ascontiguousarray(np.concatenate(values[start:stop]))
        verdicts = detector.step(detector.new_pages(len(lengths)), SampleBatch(rows, times, value, np.arange(len(rows), dtype=np.int32)))
        armed = (verdicts.flags & ARMED > 0) & (verdicts.flags & WARMUP == 0)
        error = verdicts.observed - verdicts.expected
        end = 0
        for length in lengths:
            begin, end = end, end + length
            here = slice(begin, end)
            found.append(_Scored(verdicts.score[here], armed[here], error[here], verdicts.observed[here]))
        start = stop
    return found


def _surprise(scored: _Scored, later: int) -> float:
    """Mean negative log likelihood of the later samples: Student's t around the forecast, its scale the median error before."""
    per_feature = []
    for error, observed in zip(scored.error.T, scored.observed.T, strict=True):
        before, behind = error[later // 2 : later], error[later:]
        before, behind = before[np.isfinite(before)], behind[np.isfinite(behind)]
        if not len(before) or not len(behind):
            continue
        spread = float(np.nanstd(observed[:later]))
        # A thousandth of the spread: of series that stand still most of the time the median error is nothing.
        scale = max(1.4826 * float(np.median(np.abs(before))), 1e-3 * spread, 1e-12)
        per_feature.append(float(np.mean(np.log(scale) + (TAIL + 1) / 2 * np.log1p((behind / scale) ** 2 / TAIL))))
    return float(np.mean(per_feature)) if per_feature else float("nan")


def _opened(scored: _Scored, begin: int, end: int) -> int:
    """Episodes that open from one sample to before another."""
    return int(openings(scored.score[:, None], scored.armed[:, None], 1.0)[begin:end].sum())


def _difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Interval | None:
    def known(column: NDArray[np.float64]) -> list[float | None]:
        return [value if np.isfinite(value) else None for value in column.tolist()]

    found = paired(known(ours), known(theirs))
    return None if found is None else found.difference


def _mean(column: NDArray[np.float64]) -> np.floating[Any]:
    known = column[np.isfinite(column)]
    return known.mean() if len(known) else np.float64(np.nan)


def _figure(champion: np.floating[Any], challenger: np.floating[Any], difference: Interval | None) -> dict[str, Any]:
    rounded = None if difference is None else {name: round(value, 4) for name, value in asdict(difference).items()}
    return {"champion": round(float(champion), 4), "challenger": round(float(challenger), 4), "difference": rounded}


def evenly(judged: Sequence[Judged], most: int) -> list[Judged]:
    """At most so many of them, from all over."""
    if len(judged) <= most:
        return list(judged)
    return [judged[number] for number in np.linspace(0, len(judged) - 1, most).astype(int).tolist()]
