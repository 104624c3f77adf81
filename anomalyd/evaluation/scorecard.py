"""What the measures say about one stream, and about a set of them. Pure functions of a replay and its labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED
from anomalyd.evaluation.measures import (
    PROFILES,
    Told,
    average_precision,
    best_f1,
    hit_rate,
    judge,
    ratio_of_sums,
    sweep,
    vus_pr,
)
from anomalyd.evaluation.measures.events import SETTLING
from anomalyd.evaluation.readers import STEP_MS
from anomalyd.evaluation.replay import Replay
from anomalyd.evaluation.sets import Labelled

NAB_NAMES: Final = {"standard": "nab_standard", "reward_low_FP_rate": "nab_low_fp", "reward_low_FN_rate": "nab_low_fn"}
SHOWN: Final = ("events", "events_told", "false_episodes", "auc_pr", "best_f1", "vus_pr", "delay_s")
"""Figures of a stream that people are shown."""
_HOUR_MS: Final = 3_600_000


@dataclass(frozen=True, slots=True)
class Card:
    """One stream under one detector."""

    stream: str
    ranking: NDArray[np.float64]
    """How anomalous each row is, shape (n,)."""
    detection: NDArray[np.float64]
    """The same where an alert could open, -inf elsewhere, shape (n,): what NAB calls a detection is an alert."""
    windows: tuple[tuple[int, int], ...]
    fired: NDArray[np.int64]
    """Row at which each episode fired, and its last row, shape (k, 2)."""
    told: Told
    figures: dict[str, float | None]
    """By name; None where a stream cannot have the measure."""


def card(labelled: Labelled, replay: Replay, ranking: NDArray[np.float64]) -> Card:
    """Measures a stream.

    Args:
        labelled: the stream.
        replay: of all its rows.
        ranking: how anomalous each row is, shape (n,).
    """
    table, label = labelled.table, labelled.label
    verdicts = replay.trace.verdicts
    step_ms = usual_step_ms(table.time_ms)
    fired = _fired_rows(labelled, replay)
    told = judge(fired, label, table.time_ms, settling=SETTLING if table.train is None else 0)
    f1 = best_f1(ranking, label)
    figures: dict[str, float | None] = {
        "rows": len(table),
        "anomalous_rows": int(label.sum()),
        "events": len(told.events),
        "events_told": told.hits,
        "auc_pr": average_precision(ranking, label),
        "best_f1": None if f1 is None else f1.f1,
        "vus_pr": vus_pr(ranking, label, round(_HOUR_MS / step_ms)),
        "delay_s": float(np.nanmedian(told.delay_s)) if told.hits else None,
        "episodes": replay.episodes,
        "false_episodes": told.false_episodes,
        "quiet_days": round(told.quiet_days, 4),
    }
    if verdicts.share.shape[1] > 1:
        causes = labelled.causes
        figures["causes"] = sum(bool(cause.dims) for cause in causes)
        figures |= {f"hit_rate_{percent}": hit_rate(verdicts.share, causes, percent) for percent in (100, 150)}
    detection = np.where(verdicts.flags & ARMED != 0, ranking, -np.inf)
    return Card(labelled.name, ranking, detection, labelled.windows, fired, told, figures)


def totals(cards: Sequence[Card], budget: float) -> dict[str, float | None]:
    """Measures of a set, by name; None where no stream can have them.

    Args:
        cards: of its streams.
        budget: false alarms per series and day that were asked for.
    """
    figures = [one.figures for one in cards]
    found: dict[str, float | None] = {name: _mean(figures, name) for name in ("auc_pr", "best_f1", "vus_pr")}
    events, hits = sum(len(one.told.events) for one in cards), sum(one.told.hits for one in cards)
    delays = np.concatenate([np.empty(0), *(one.told.delay_s[one.told.told_row >= 0] for one in cards)])
    found["event_recall"] = hits / events if events else None
    found["median_delay_s"] = float(np.median(delays)) if len(delays) else None
    false = ratio_of_sums([one.told.false_episodes for one in cards], [one.told.quiet_days for one in cards])
    found["false_episodes_per_series_day"] = None if false is None else false.value
    found["false_episodes_per_series_day_low"] = None if false is None else false.low
    found["false_episodes_per_series_day_high"] = None if false is None else false.high
    found["false_episodes_to_budget"] = None if false is None else false.value / budget
    if any("hit_rate_150" in one for one in figures):
        found |= {f"hit_rate_{percent}": _mean_of_causes(figures, f"hit_rate_{percent}") for percent in (100, 150)}
    return found


def nab(cards: Sequence[Card]) -> dict[str, float | None]:
    """NAB's score of a corpus in its three profiles."""
    swept = sweep([(one.detection, one.windows) for one in cards])
    best = {name: swept.best(profile) for profile in PROFILES for name in (NAB_NAMES[profile.name],)}
    return {name: None if score is None else score.score for name, score in best.items()}


def text_of(value: float | str | None) -> str:
    """A figure, for people."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def usual_step_ms(time_ms: NDArray[np.int64]) -> float:
    """Median of the steps forwards in event times (n,); a minute where there is none."""
    steps = np.diff(time_ms)
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else float(STEP_MS)


def _fired_rows(labelled: Labelled, replay: Replay) -> NDArray[np.int64]:
    """Row of the table at which each episode fired, and its last row, shape (k, 2)."""
    table = labelled.table
    at = {int(row): i for i, row in enumerate(table.row.tolist())}
    open_: dict[str, int] = {}
    spans: dict[str, tuple[int, int]] = {}
    for alert in replay.alerts:
        row = at[alert.source.offset]
        if alert.status == "firing":
            open_[alert.alert_id] = row
            spans[alert.alert_id] = (row, len(table) - 1)
        elif alert.status == "resolved" and alert.alert_id in open_ and alert.ends_at is not None:
            first = open_[alert.alert_id]
            ends_ms = round(datetime.fromisoformat(alert.ends_at).timestamp() * 1000)
            # The first row behind the firing one with that time: an episode ends with the first of its quiet samples.
            later = np.flatnonzero(table.time_ms[first : row + 1] == ends_ms)
            spans[alert.alert_id] = (first, first + int(later[0]) if len(later) else row)
    return np.array(sorted(spans.values()), np.int64).reshape(-1, 2)


def _mean(figures: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [one[name] for one in figures if one.get(name) is not None]
    return math.fsum(values) / len(values) if values else None


def _mean_of_causes(figures: Sequence[dict[str, Any]], name: str) -> float | None:
    """Each entry of the interpretation counts alike, however many its stream has."""
    known = [one for one in figures if one.get(name) is not None]
    return math.fsum(one[name] * one["causes"] for one in known) / sum(one["causes"] for one in known) if known else None
