"""How far a figure depends on which streams happened to be in the set: streams drawn again and again with replacement (Efron 1979).

Rows of one stream hang together, so streams are drawn and never rows. With fewer than about ten streams such an interval is too narrow;
it still says more than none.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDS: Final = 10_000
"""Sets of streams that are drawn."""
CONFIDENCE: Final = 95.0
"""Per cent of them whose figure is within an interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and where it would be with other streams of the same kind."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Paired:
    """One detector against another on the same streams."""

    difference: Interval
    """Mean over streams of ours less theirs."""
    won: float
    """Share of streams on which ours is larger; equal ones count half."""
    streams: int
    """How many have the measure under both."""


def ratio_of_sums(numerators: ArrayLike, denominators: ArrayLike, seed: int = 0) -> Interval | None:
    """Σ numerators ÷ Σ denominators over streams: false episodes a day, events told per event; with ones below, a mean.

    Args:
        numerators: shape (s,).
        denominators: shape (s,); streams with none (no quiet day, no event) are left out.
        seed: of the draw.

    Returns:
        The ratio and its interval; None where no stream is left.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    above, below = above[below > 0], below[below > 0]
    if not len(below):
        return None
    drawn = _draws(len(below), seed)
    return _interval(float(above.sum() / below.sum()), above[drawn].sum(axis=1) / below[drawn].sum(axis=1))


def paired(ours: Sequence[float | None], theirs: Sequence[float | None], seed: int = 0) -> Paired | None:
    """Compares two detectors stream by stream.

    Args:
        ours: a measure for each stream, the larger the better; None where it is not defined.
        theirs: the same measure of the same streams.
        seed: of the draw.

    Returns:
        Differences over the streams that have the measure under both; None if there is none.
    """
    both = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    if not both:
        return None
    difference = np.array([a - b for a, b in both])
    means = difference[_draws(len(both), seed)].mean(axis=1)
    won = float(np.mean((np.sign(difference) + 1.0) / 2.0))
    return Paired(_interval(float(difference.mean()), means), won, len(both))


def _draws(streams: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(streams, size=(ROUNDS, streams))


def _interval(value: float, drawn: NDArray[np.float64]) -> Interval:
    tail = (100.0 - CONFIDENCE) / 2.0
    low, high = np.percentile(drawn, [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))
