"""VUS-PR: area under a precision-recall curve whose labels fade out around each segment, averaged over the widths of that fade.

Paparrizos et al., "Volume Under the Surface", VLDB 2022, in the variant of the TSB-AD benchmark (package TSB-AD 1.5, `generate_curve` with
`version="opt"`), which fixes what the paper leaves open. Followed to the letter, since published figures are made with it:

- A fade of width w reaches w // 2 rows to each side, and there still weighs √(1 - (w//2)/w) ≥ 0.7: it ends in a cliff.
- Where the fades of two segments meet, weights add up, to at most 1.
- Recall divides by the mean of the number of anomalous rows and of that number plus the faded weight *that was found*, so that the same
  rows can be worth more or less recall at another threshold.
- Recall is multiplied by the share of segments found, and segments whose fades share a row count as one; touching fades do not.
- Thresholds are scores at evenly spaced ranks, the highest and the lowest among them, not evenly spaced scores; with fewer rows than
  thresholds some repeat, which changes nothing.
- Rows outside every fade count as false as ever, and the curve is summed in steps.

There, a stream that is anomalous from end to end raises an error; here it is one segment.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anomalyd.evaluation.measures.columns import anomalous, comparable, segments

THRESHOLDS: Final = 250
"""As TSB-AD has it."""


def vus_pr(scores: ArrayLike, labels: ArrayLike, window: int, thresholds: int = THRESHOLDS) -> float | None:
    """Volume under the precision-recall surface.

    Args:
        scores: shape (n,), higher is stranger; NaN for a row without one.
        labels: shape (n,), not zero for an anomalous row.
        window: widest fade, in rows; widths are 0 to this. By our convention the rows of an hour.
        thresholds: at how many scores the curve is taken.

    Returns:
        0 to 1; None where no row is anomalous.

    Raises:
        ValueError: a negative window, or no threshold.
    """
    if window < 0 or thresholds < 1:
        raise ValueError("a window has no less than 0 rows, and a curve no less than one threshold")
    truth = anomalous(labels)
    column = comparable(scores, len(truth))
    ranges = segments(truth)
    if not len(ranges):
        return None
    # Everything a threshold changes is a count over the rows that it calls anomalous; so each row needs only the first that calls it.
    ranks = np.linspace(0, len(column) - 1, thresholds).astype(np.int64)
    rising = np.sort(column)
    called_from = thresholds - np.searchsorted(rising[::-1][ranks][::-1], column, "right")
    found = _cumulated(called_from[truth], thresholds)
    called = _cumulated(called_from, thresholds)
    rows, nearest, second = _distances(truth, ranges, window // 2)
    near_from = called_from[rows]
    areas = []
    for width in range(window + 1):
        reach = width // 2
        near = nearest <= reach
        # No fade weighs less than √½: two of them on one row are always a full label.
        weight = np.where(second[near] <= reach, 1.0, np.sqrt(1.0 - nearest[near] / max(width, 1)))
        faded = _cumulated(near_from[near], thresholds, weight)
        if width % 2 == 0:
            seen = _seen(called_from, ranges, reach, thresholds)
        true = found + faded
        recall = np.minimum(true / (found[-1] + faded / 2.0), 1.0) * seen
        areas.append(np.dot(np.diff(recall, prepend=0.0), true / called))
    return float(np.mean(areas))


def _cumulated(called_from: NDArray[np.int64], thresholds: int, weight: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Sum over the rows called anomalous, at each threshold, shape (k,)."""
    return np.cumsum(np.bincount(called_from, weight, minlength=thresholds), dtype=np.float64)


def _distances(
    truth: NDArray[np.bool_], ranges: NDArray[np.int64], reach: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The unlabelled rows within reach of a segment, and how far it is from each to the nearest segment and to the second nearest."""
    first, last = ranges.T
    # Segments that do not exist are out of any reach.
    never = len(truth) + reach + 1
    first, last = np.append(first, [never, never]), np.append([-never, -never], last)
    rows = np.flatnonzero(~truth)
    after = np.searchsorted(first, rows)
    nearby = np.stack([rows - last[after], rows - last[after + 1], first[after] - rows, first[after + 1] - rows])
    nearest, second = np.partition(nearby, 1, axis=0)[:2]
    near = nearest <= reach
    return rows[near], nearest[near], second[near]


def _seen(called_from: NDArray[np.int64], ranges: NDArray[np.int64], reach: int, thresholds: int) -> NDArray[np.float64]:
    """Share of segments, widened by `reach` to each side and joined where they overlap, with a row called anomalous: shape (k,)."""
    first, last = np.maximum(ranges[:, 0] - reach, 0), np.minimum(ranges[:, 1] + reach, len(called_from) - 1)
    apart = last[:-1] < first[1:]
    joined = np.stack([first[np.append(True, apart)], last[np.append(apart, True)] + 1], axis=1)
    # `reduceat` takes the end of one segment to the start of the next as a part too; the row appended makes the last end a valid index.
    earliest = np.minimum.reduceat(np.append(called_from, thresholds), joined.ravel())[::2]
    return _cumulated(earliest, thresholds) / len(joined)
