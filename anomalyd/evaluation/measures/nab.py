"""The score of the Numenta Anomaly Benchmark, v1.1: early detection is worth more, and every false row costs.

Lavin and Ahmad, "Evaluating real-time anomaly detection algorithms: the Numenta Anomaly Benchmark", ICMLA 2015; constants as in the
benchmark's code. Its search for a threshold is replaced by a sweep over all: a profile's score is linear in three sums over the rows that
are detected, and those change at distinct scores only.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalyd.evaluation.measures.columns import comparable, last_of_equals

PROBATION: Final = 0.15
"""Share of a file's rows, from the first, that is not scored."""
MAX_PROBATION: Final = 750
"""Most rows of a file that are not scored."""


@dataclass(frozen=True, slots=True)
class Profile:
    """What an application pays for."""

    name: str
    tp: float
    """Worth of a window that is detected in its first row."""
    fn: float
    """Cost of a window that is not detected."""
    fp: float
    """Cost of a detected row far from any window before it."""


PROFILES: Final = (
    Profile("standard", tp=1.0, fn=1.0, fp=0.11),
    Profile("reward_low_FP_rate", tp=1.0, fn=1.0, fp=0.22),
    Profile("reward_low_FN_rate", tp=1.0, fn=2.0, fp=0.11),
)
"""The benchmark's own."""


@dataclass(frozen=True, slots=True)
class NabScore:
    """A corpus at its best threshold."""

    score: float
    """0: nothing is detected; 100: the first row of every window and nothing else."""
    threshold: float
    """Rows that score at least this are detected; the highest of those that give the score, and +inf for none at all."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A corpus at every threshold that makes a difference. Letters: k thresholds."""

    thresholds: NDArray[np.float64]
    """Falling, from +inf (nothing is detected), shape (k,)."""
    reward: NDArray[np.float64]
    """Sum over detected windows of the worth of their best row, of at most 1 each, shape (k,)."""
    cost: NDArray[np.float64]
    """Sum over detected rows outside windows of what they cost, at most 1 each, shape (k,)."""
    hits: NDArray[np.int64]
    """Windows detected, shape (k,)."""
    windows: int
    """Windows that could be detected."""

    def best(self, profile: Profile) -> NabScore | None:
        """The score as the benchmark reports it: at the best of all thresholds; None without windows."""
        if not self.windows:
            return None
        scores = self._scores(profile)
        at = int(np.argmax(scores))
        return NabScore(float(scores[at]), float(self.thresholds[at]))

    def score_at(self, threshold: float, profile: Profile) -> float | None:
        """The score where rows that score at least `threshold` are detected; None without windows."""
        if not self.windows:
            return None
        return float(self._scores(profile)[np.count_nonzero(self.thresholds[1:] >= threshold)])

    def _scores(self, profile: Profile) -> NDArray[np.float64]:
        # Σ tp·worth - Σ fp·cost - fn·(windows - hits), on the scale between nothing detected (-fn·windows) and perfect (tp·windows).
        above_null = profile.tp * self.reward - profile.fp * self.cost + profile.fn * self.hits
        return 100.0 * above_null / (self.windows * (profile.tp + profile.fn))


def sweep(files: Iterable[tuple[ArrayLike, Sequence[tuple[int, int]]]]) -> Sweep:
    """Scores a corpus at all thresholds, one for all files.

    Args:
        files: per file its scores, shape (n,), one for each row in file order, and its windows as (first, last) row, both inside. A window
            that ends in probation is left out; of one that begins there only the rows after it are scored.

    Raises:
        ValueError: windows that overlap or leave the file.
    """
    parts = [_changes(np.asarray(scores), windows) for scores, windows in files]
    # Row by row: the threshold where something changes, then how much reward, cost and hits change there.
    changes = np.concatenate([np.empty((0, 4)), *(change for change, _ in parts)])
    changes = changes[np.argsort(-changes[:, 0], kind="stable")]
    sums = np.cumsum(changes[:, 1:], axis=0)
    last = last_of_equals(changes[:, 0])
    thresholds, sums = np.append(np.inf, changes[last, 0]), np.concatenate([np.zeros((1, 3)), sums[last]])
    return Sweep(thresholds, sums[:, 0], sums[:, 1], np.rint(sums[:, 2]).astype(np.int64), sum(count for _, count in parts))


def position_worth(x: ArrayLike) -> NDArray[np.float64]:
    """The benchmark's scaled sigmoid S: from almost 1 a window's width before a window's end, by 0 at its end, to -1 beyond 3 widths."""
    position = np.asarray(x, np.float64)
    return np.where(position > 3.0, -1.0, 2.0 / (1.0 + np.exp(5.0 * np.minimum(position, 3.0))) - 1.0)


_FULL: Final = float(position_worth(-1.0))


def _changes(scores: NDArray[np.float64], windows: Sequence[tuple[int, int]]) -> tuple[NDArray[np.float64], int]:
    """What one file adds to the sums as the threshold falls, as rows of (score, reward, cost, hits), and how many windows it has."""
    n = len(scores)
    scores = comparable(scores, n)
    limits = np.array(sorted(windows), np.int64).reshape(-1, 2)
    first, last = limits.T
    if np.any(first > last) or np.any(first[1:] <= last[:-1]) or np.any(limits < 0) or np.any(limits >= n):
        raise ValueError("windows overlap or leave the file")
    width = last - first + 1
    begin = min(math.floor(PROBATION * n), MAX_PROBATION)
    rows = np.arange(begin, n)
    before = np.searchsorted(last, rows, "left") - 1
    outside = rows[np.searchsorted(first, rows, "right") - 1 == before]
    # Widths are less one here: the benchmark's way, which leaves a window of one row without a scale, so that whatever follows it is far.
    # The last of each is for rows before any window: index -1, infinitely far.
    ends, scale, nearest = np.append(last, -1), np.append(width - 1, 0), before[outside - begin]
    with np.errstate(divide="ignore"):
        cost = -position_worth((outside - ends[nearest]) / scale[nearest])
    parts = [np.stack([scores[outside], np.zeros(len(outside)), cost, np.zeros(len(outside))], axis=1)]
    scored = limits[last >= begin]
    parts += [_window_changes(scores, max(start, begin), end, end - start + 1) for start, end in scored.tolist()]
    changes = np.concatenate(parts)
    return changes[changes[:, 0] > -np.inf], len(scored)


def _window_changes(scores: NDArray[np.float64], first: int, last: int, width: int) -> NDArray[np.float64]:
    """The same for one window, of which the rows from `first` are scored.

    The best detection is the earliest, so only a row that scores higher than all before it ever is the best one.
    """
    part = scores[first : last + 1]
    record = np.flatnonzero(part > np.append(-np.inf, np.maximum.accumulate(part)[:-1]))
    worth = position_worth(-(last - (first + record) + 1) / width) / _FULL
    reward = worth - np.append(worth, 0.0)[1:]
    hits = (np.arange(len(record)) == len(record) - 1).astype(np.float64)
    return np.stack([part[record], reward, np.zeros(len(record)), hits], axis=1)
