"""Row by row: how well scores rank anomalous rows before the others."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalyd.evaluation.measures.columns import anomalous, comparable, last_of_equals


@dataclass(frozen=True, slots=True)
class BestF1:
    """The best that a threshold chosen with the labels in sight can do."""

    f1: float
    threshold: float
    """Rows that score at least this are called anomalous; the highest of equally good ones, and -inf for all rows, unscored ones too."""
    precision: float
    recall: float


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float | None:
    """Area under the precision-recall curve as a sum of steps, Σ (R_k - R_{k-1}) P_k over falling thresholds, equal scores together.

    Args:
        scores: shape (n,), higher is stranger; NaN for a row without one.
        labels: shape (n,), not zero for an anomalous row.

    Returns:
        0 to 1, for random scores about the share of anomalous rows; None where no row is anomalous.
    """
    _, found, called = _curve(scores, labels)
    if not len(found) or not found[-1]:
        return None
    return float(np.sum(np.diff(found, prepend=0) * (found / called)) / found[-1])


def best_f1(scores: ArrayLike, labels: ArrayLike) -> BestF1 | None:
    """The highest F1 of any threshold, row by row and without adjustment; arguments and None as in `average_precision`."""
    thresholds, found, called = _curve(scores, labels)
    if not len(found) or not found[-1]:
        return None
    f1 = 2.0 * found / (called + found[-1])
    at = int(np.argmax(f1))
    return BestF1(float(f1[at]), float(thresholds[at]), float(found[at] / called[at]), float(found[at] / found[-1]))


def _curve(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct scores, falling, and at each as a threshold: anomalous rows found, and rows called anomalous."""
    truth = anomalous(labels)
    column = comparable(scores, len(truth))
    order = np.argsort(-column, kind="stable")
    falling = column[order]
    last = last_of_equals(falling)
    return falling[last], np.cumsum(truth[order], dtype=np.int64)[last], last + 1
