"""Cold starts, on evidence that is made up."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.evaluation.coldstart import ColdStart, cold_starts, ratio
from anomalyd.evaluation.readers import InputFile, Table
from anomalyd.evaluation.sets import Labelled


def labelled(*windows: tuple[int, int], rows: int = 3000) -> Labelled:
    label = np.zeros(rows, np.uint8)
    for first, last in windows:
        label[first : last + 1] = 1
    number = np.arange(rows, dtype=np.int64)
    table = Table(number, 1000 * number, np.zeros((rows, 2)), ("a", "b"), label, np.ones((300, 2)), 0)
    return Labelled(InputFile(Path("a.npz"), "a", "npz"), table, windows, ())


def starts(given: Labelled, warm: NDArray[np.float64], fresh: NDArray[np.float64], seed: int = 0) -> tuple[list[ColdStart], list[Table]]:
    """The pairs, and the parts that were streamed from a fresh state, whose evidence is `fresh` of the same rows."""
    parts: list[Table] = []

    def evidence(part: Table) -> NDArray[np.float64]:
        parts.append(part)
        return fresh[part.row]

    return list(cold_starts(given, warm, seed, evidence)), parts


def test_precision_over_the_rows_in_front_and_the_segment_is_compared_on_the_same_rows() -> None:
    given = labelled((2000, 2001))
    warm, fresh = np.zeros(3000), np.zeros(3000)
    warm[[2000, 2001]] = 2  # both rows first: 1
    fresh[[2000, 1950, 2001]] = 3, 2, 1  # the first, and the third: (1 + 2/3) / 2
    warm[10], fresh[2500] = 9, 9  # no part of the question

    (found,), (part,) = starts(given, warm, fresh)

    assert found.fresh == pytest.approx(5 / 6)
    assert found.warm == 1.0
    assert part.train is None
    assert part.row[-1] == 2001
    assert 100 <= 2000 - part.row[0] <= 500
    assert np.array_equal(part.time_ms, 1000 * part.row)


def test_starts_are_drawn_within_100_to_500_rows_and_by_the_seed() -> None:
    given = labelled((700, 705), (1500, 1500), (2000, 2400))
    draws = [[part.row[-1] - len(part) + 1 for part in starts(given, np.zeros(3000), np.zeros(3000), seed)[1]] for seed in range(200)]
    before = np.array([700, 1500, 2000]) - np.array(draws)

    assert (before.min(), before.max()) == (100, 500)
    assert len(np.unique(before)) > 200
    assert draws[0] == [part.row[0] for part in starts(given, np.zeros(3000), np.zeros(3000), 0)[1]]


def test_something_earlier_is_left_that_only_the_other_has_streamed() -> None:
    for seed in range(200):
        found, parts = starts(labelled((50, 60), (100, 101), (103, 104), (160, 170)), np.zeros(3000), np.zeros(3000), seed)

        assert len(found) == 2, "in front of the first two there are not 100 rows and one more"
        assert all(part.row[0] > 0 for part in parts)


def test_the_ratio_is_of_means() -> None:
    assert ratio([ColdStart(0.5, 1.0), ColdStart(0.01, 0.001)]) == pytest.approx(0.51 / 1.001)
    assert ratio([]) is None
