"""Alerts as people meet them: events that were told, how late, and episodes about nothing."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalyd.evaluation.measures.columns import anomalous, segments

TOLERANCE: Final = 5
"""An episode this many rows before or after an event still is about it."""
SETTLING: Final = 250
"""Episodes that open in the first rows are not held against a detector that has just met the stream."""
LONGEST_STEP: Final = 10.0
"""A step counts as time for at most this many median steps: nobody could raise a false alarm while the stream was silent."""

_DAY_MS: Final = 86_400_000.0


@dataclass(frozen=True, slots=True)
class Told:
    """A stream's episodes held against its labels. Letters: m events, k episodes."""

    events: NDArray[np.int64]
    """Segments of labels: first and last row, both inside, shape (m, 2)."""
    told_row: NDArray[np.int64]
    """First row of an event at which an episode about it was open, or the row after the event; -1 where there was none, shape (m,)."""
    delay_rows: NDArray[np.float64]
    """Rows from the event's first to `told_row`, NaN where there was none, shape (m,)."""
    delay_s: NDArray[np.float64]
    """The same in event time, shape (m,)."""
    about: NDArray[np.int64]
    """The events that each episode is about: first, and one past the last; equal for none, shape (k, 2)."""
    false: NDArray[np.bool_]
    """Episodes about nothing, those of the settling rows excepted, shape (k,)."""
    quiet_days: float
    """Event time in which a false episode could have opened."""

    @property
    def hits(self) -> int:
        """Events that were told."""
        return int(np.count_nonzero(self.told_row >= 0))

    @property
    def recall(self) -> float | None:
        """Share of events that were told; None without events."""
        return self.hits / len(self.events) if len(self.events) else None

    @property
    def false_episodes(self) -> int:
        """How many were about nothing."""
        return int(np.count_nonzero(self.false))


def judge(episodes: ArrayLike, labels: ArrayLike, time_ms: ArrayLike, settling: int = SETTLING) -> Told:
    """Holds fired episodes of one stream against its labels.

    An episode is about every event that it overlaps once the event is widened by `TOLERANCE` rows to each side. One that opened before
    its event has told it without delay.

    Args:
        episodes: row at which each fired, and its last row, shape (k, 2).
        labels: shape (n,), not zero for an anomalous row.
        time_ms: event times, shape (n,); steps backwards count as no time.
        settling: rows of grace; 0 for a stream whose earlier part was streamed before these rows.

    Raises:
        ValueError: episodes that leave the stream or end before they fired, or not one time a row.
    """
    truth = anomalous(labels)
    times = np.asarray(time_ms, np.int64)
    fired = np.asarray(episodes, np.int64).reshape(-1, 2)
    if times.shape != truth.shape:
        raise ValueError(f"times have the shape {times.shape}, not {truth.shape}")
    if np.any(fired < 0) or np.any(fired >= len(truth)) or np.any(fired[:, 0] > fired[:, 1]):
        raise ValueError("episodes leave the stream or end before they fired")
    events = segments(truth)
    first, last = events.T
    about = np.stack(
        [np.searchsorted(last + TOLERANCE, fired[:, 0], "left"), np.searchsorted(first - TOLERANCE, fired[:, 1], "right")], axis=1
    )
    told = np.full(len(events), -1)
    # The latest episode first, so that the earliest has the last word.
    for episode in np.argsort(-fired[:, 0], kind="stable").tolist():
        which = slice(*about[episode].tolist())
        told[which] = np.maximum(fired[episode, 0], first[which])
    hit = told >= 0
    delay_s = np.maximum(times[told] - times[first], 0) / 1000.0
    return Told(
        events=events,
        told_row=told,
        delay_rows=np.where(hit, told - first, np.nan),
        delay_s=np.where(hit, delay_s, np.nan),
        about=about,
        false=(about[:, 0] == about[:, 1]) & (fired[:, 0] >= settling),
        quiet_days=_quiet_days(events, times, settling),
    )


def _quiet_days(events: NDArray[np.int64], times: NDArray[np.int64], settling: int) -> float:
    """Days of the rows after the settling ones that are not within `TOLERANCE` of an event; a row's time is the step that leads to it."""
    n = len(times)
    steps = np.maximum(np.diff(times), 0)
    if not np.any(steps):
        return 0.0
    steps = np.minimum(steps, LONGEST_STEP * np.median(steps[steps > 0]))
    edges = np.zeros(n + 1, np.int64)
    np.add.at(edges, np.maximum(events[:, 0] - TOLERANCE, 0), 1)
    np.add.at(edges, np.minimum(events[:, 1] + TOLERANCE + 1, n), -1)
    quiet = np.cumsum(edges[:n]) == 0
    quiet[:settling] = False
    return float(np.sum(steps[quiet[1:]])) / _DAY_MS
