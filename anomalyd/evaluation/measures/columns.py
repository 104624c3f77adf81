"""What every measure agrees on: how scores compare, and what a segment of labels is."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def comparable(scores: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Scores that can be ordered: a row without one (NaN) is the least suspicious of all.

    Args:
        scores: one a row, shape (n,).
        rows: how many there have to be.

    Returns:
        The scores, shape (n,); NaN has become -inf, and +inf the largest number, so that a threshold above all scores exists.

    Raises:
        ValueError: not one score a row.
    """
    column = np.asarray(scores, np.float64)
    if column.shape != (rows,):
        raise ValueError(f"scores have the shape {column.shape}, not {(rows,)}")
    return np.nan_to_num(column, nan=-np.inf, posinf=np.finfo(np.float64).max, neginf=-np.inf)


def last_of_equals(column: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the last row of each run of equal values: where a threshold lets in a whole run or nothing of it."""
    return np.flatnonzero(np.append(column[1:] != column[:-1], np.ones(len(column[:1]), np.bool_)))


def anomalous(labels: ArrayLike) -> NDArray[np.bool_]:
    """Labels as truth values, shape (n,): whatever is not zero is anomalous.

    Raises:
        ValueError: labels are no column.
    """
    column = np.asarray(labels)
    if column.ndim != 1:
        raise ValueError(f"labels have the shape {column.shape}, not (n,)")
    return column.astype(np.bool_)


def segments(labels: ArrayLike) -> NDArray[np.int64]:
    """Runs of anomalous rows.

    Args:
        labels: shape (n,).

    Returns:
        First and last row of each run, both in it, in order, shape (m, 2).
    """
    edges = np.diff(anomalous(labels).astype(np.int8), prepend=0, append=0)
    return np.stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1], axis=1)
