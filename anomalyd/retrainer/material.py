"""What a round trains on and what it judges by, out of the histories in the reservoir."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.retrainer.incidents import Incidents
from anomalyd.retrainer.reservoir import History
from anomalyd.training.history import LEAST_TRAIN

LATER: Final = 1 / 3
"""Share of each history, its newest part, that a round judges by and never trains on."""
LEAST_JUDGED: Final = 100
"""Samples of the later part; series with fewer say nothing."""
LEAST_SERIES: Final = 8
"""To judge by: fewer give no error bars."""
LARGEST: Final = 1e30
"""A value beyond it, or one that is not finite, is a broken series, and the whole of it is left out."""


class Judged(NamedTuple):
    """A series for the gate."""

    key: str
    time_ms: NDArray[np.int64]
    """(n,), what was left out is not in it."""
    value: NDArray[np.float64]
    """(n, F)"""
    later: int
    """From this sample on it is judged by."""
    step_ms: float
    """Median distance of its samples."""


class Piece(NamedTuple):
    """Some of a history without a hole, to train on."""

    time_ms: NDArray[np.int64]
    """(n,)"""
    value: NDArray[np.float64]
    """(n, F)"""


class Material(NamedTuple):
    """Of one round."""

    pieces: list[Piece]
    """To train on."""
    judged: list[Judged]
    """To judge by."""
    left_out: int
    """Samples inside of incidents."""
    broken: int
    """Series that are not used: not finite, exploding, or constant."""

    @property
    def enough(self) -> bool:
        """Whether there is something to train on and something to judge by."""
        return bool(self.pieces) and len(self.judged) >= LEAST_SERIES


def prepare(histories: Sequence[History], incidents: Incidents) -> Material:
    """Cuts histories into an earlier part to train on and a later one to judge by.

    What lies inside of an incident is taken out of both, and no window reaches over the place. A constant series is judged by, too: it must
    not begin to alarm.

    Args:
        histories: of the reservoir.
        incidents: what is left out.
    """
    pieces: list[Piece] = []
    judged: list[Judged] = []
    left_out = broken = 0
    for key, time_ms, value in histories:
        if not _sound(value):
            broken += 1
            continue
        kept = ~incidents.inside(key, time_ms)
        left_out += len(kept) - int(kept.sum())
        later_from = len(time_ms) - round(LATER * len(time_ms))
        earlier = int(kept[:later_from].sum())
        if int(kept.sum()) - earlier >= LEAST_JUDGED and earlier >= LEAST_TRAIN:
            step_ms = float(np.median(np.diff(time_ms)))
            judged.append(Judged(key, time_ms[kept], value[kept], earlier, step_ms))
        if not _varied(value[:later_from][kept[:later_from]]):
            broken += 1
            continue
        pieces += [Piece(time_ms[part], value[part]) for part in _stretches(kept[:later_from])]
    return Material(pieces, judged, left_out, broken)


def _sound(value: NDArray[np.float64]) -> bool:
    """Infinite and enormous values break a series; missing ones do not."""
    return not np.isinf(value).any() and not (np.abs(value[~np.isnan(value)]) > LARGEST).any()


def _varied(value: NDArray[np.float64]) -> bool:
    known = value[~np.isnan(value)]
    return bool(len(known)) and bool(known.min() < known.max())


def _stretches(kept: NDArray[np.bool_]) -> list[slice]:
    """Where nothing is left out, and which are long enough to train on."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
    return [slice(int(begin), int(end)) for begin, end in edges.reshape(-1, 2) if end - begin >= LEAST_TRAIN]
