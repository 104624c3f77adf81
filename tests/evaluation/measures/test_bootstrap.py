"""Intervals over streams and comparisons stream by stream."""

import numpy as np
import pytest

from anomalyd.evaluation.measures import Interval, paired, ratio_of_sums


def test_streams_that_agree_leave_no_doubt() -> None:
    assert ratio_of_sums([1, 2, 4], [4, 8, 16]) == Interval(0.25, 0.25, 0.25)


def test_a_ratio_weighs_streams_by_what_they_are_counted_over() -> None:
    result = ratio_of_sums([0, 10], [90, 10])
    assert result is not None
    assert result.value == pytest.approx(0.1)
    # A quarter of all draws take one of the two twice.
    assert (result.low, result.high) == (0.0, 1.0)


def test_streams_without_time_are_left_out() -> None:
    assert ratio_of_sums([1, 7], [10, 0]) == ratio_of_sums([1], [10])
    assert ratio_of_sums([3], [0]) is None
    assert ratio_of_sums([], []) is None


def test_the_interval_is_that_of_a_mean_and_repeats_with_its_seed() -> None:
    values = np.arange(100.0)
    result = ratio_of_sums(values, np.ones(100))
    assert result is not None
    error = values.std() / 10
    assert result.low == pytest.approx(49.5 - 1.96 * error, abs=0.3)
    assert result.high == pytest.approx(49.5 + 1.96 * error, abs=0.3)
    assert result == ratio_of_sums(values, np.ones(100))
    assert result != ratio_of_sums(values, np.ones(100), seed=1)


def test_pairs_are_compared_on_the_streams_that_both_have() -> None:
    result = paired([0.5, None, 0.4, 0.3, 0.9], [0.4, 0.1, 0.4, 0.5, None])
    assert result is not None
    assert result.streams == 3
    assert result.difference.value == pytest.approx(-0.1 / 3)
    assert result.won == 0.5
    assert result.difference.low <= result.difference.value <= result.difference.high


def test_pairing_takes_out_what_streams_differ_in_anyway() -> None:
    theirs = np.linspace(0.1, 0.9, 20)
    ours = theirs + 0.01 + 0.005 * np.cos(np.arange(20))
    result = paired(ours.tolist(), theirs.tolist())
    assert result is not None
    assert result.difference.low > 0.0
    assert result.won == 1.0


def test_nothing_to_compare_is_no_comparison() -> None:
    assert paired([None, 0.5], [0.5, None]) is None
    with pytest.raises(ValueError, match="argument"):
        paired([0.5], [])
