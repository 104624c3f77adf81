"""Whether the features that an alert names are those that show the anomaly."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Entry(NamedTuple):
    """One entry of an interpretation."""

    start: int
    """First row."""
    end: int
    """One past the last row."""
    dims: tuple[int, ...]
    """The features that show it, from 0."""


def hit_rate(shares: ArrayLike, entries: Iterable[Entry], percent: int) -> float | None:
    """HitRate@P%: mean over entries of the share of the k true features among the ⌈P/100 · k⌉ features with the largest shares.

    Su et al., "Robust anomaly detection for multivariate time series through stochastic recurrent neural network", KDD 2019. Shares are
    summed over the rows of an entry. Features that tie for the last places count as often as they would if those were drawn by lot: the
    order of columns earns nothing.

    Args:
        shares: of each feature in each row's score, shape (n, F); NaN counts as nothing.
        entries: those without features are left out.
        percent: P, from 100.

    Returns:
        0 to 1; None without entries.

    Raises:
        ValueError: an entry that leaves the rows or the features, or has no row.
    """
    table = np.asarray(shares)
    rates = [_rate(table, entry, percent) for entry in entries if entry.dims]
    return float(np.mean(rates)) if rates else None


def _rate(shares: NDArray[np.floating], entry: Entry, percent: int) -> float:
    rows, features = shares.shape
    true = np.unique(entry.dims)
    if not 0 <= entry.start < entry.end <= rows or true[0] < 0 or true[-1] >= features:
        raise ValueError(f"{entry} is not within {rows} rows of {features} features")
    # In integers: 1.1 times a multiple of ten is more than it should be.
    places = min(-(-len(true) * percent // 100), features)
    total = np.nansum(shares[entry.start : entry.end], axis=0, dtype=np.float64)
    least = np.sort(total)[-places]
    above, tied = total > least, total == least
    chance = (places - np.count_nonzero(above)) / np.count_nonzero(tied)
    return float(np.mean(above[true] + chance * tied[true]))
