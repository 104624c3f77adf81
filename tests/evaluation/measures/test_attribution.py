"""HitRate by hand."""

import math

import numpy as np
import pytest

from anomalyd.evaluation.measures import Entry, hit_rate

SHARES = np.array([[9.0, 9, 9, 9, 9, 9], [4, 3, 2, 1, 0, 0], [1, 1, 3, 0, 0, 0]])
"""Over rows 1 and 2 the sums are 5, 4, 5, 1, 0, 0."""


def test_the_top_one_and_a_half_times_as_many_features_count() -> None:
    entry = Entry(1, 3, (1, 3))
    assert hit_rate(SHARES, [entry], 100) == 0.0
    assert hit_rate(SHARES, [entry], 150) == 0.5
    # ⌈1.5 · 3⌉ = 5
    assert hit_rate(SHARES[:, [0, 1, 3, 2, 4, 5]], [Entry(1, 2, (0, 2, 3))], 150) == 1.0


def test_shares_are_summed_over_the_rows_of_an_entry_alone() -> None:
    assert hit_rate(SHARES, [Entry(1, 2, (0,))], 100) == 1.0
    assert hit_rate(SHARES, [Entry(2, 3, (0,))], 100) == 0.0


def test_the_rate_is_a_mean_over_entries() -> None:
    assert hit_rate(SHARES, [Entry(1, 2, (0,)), Entry(2, 3, (0,)), Entry(1, 3, ())], 100) == 0.5


def test_ties_count_as_by_lot_and_not_by_column() -> None:
    flat = np.ones((1, 10))
    for feature in range(10):
        assert hit_rate(flat, [Entry(0, 1, (feature,))], 150) == pytest.approx(0.2)
    # Features 0 and 2 tie for the one place.
    assert hit_rate(SHARES, [Entry(1, 3, (0,))], 100) == hit_rate(SHARES, [Entry(1, 3, (2,))], 100) == 0.5


def test_all_features_are_found_among_all() -> None:
    assert hit_rate(SHARES, [Entry(1, 3, (5, 4, 3, 2, 1))], 150) == 1.0


def test_a_share_that_is_missing_counts_as_nothing() -> None:
    shares = SHARES.copy()
    shares[1, 0] = math.nan
    assert hit_rate(shares, [Entry(1, 3, (2,))], 100) == 1.0


def test_without_entries_there_is_no_rate() -> None:
    assert hit_rate(SHARES, [], 150) is None


@pytest.mark.parametrize("entry", [Entry(2, 4, (0,)), Entry(2, 2, (0,)), Entry(-1, 2, (0,)), Entry(0, 1, (6,)), Entry(0, 1, (-1,))])
def test_an_entry_about_something_else_is_refused(entry: Entry) -> None:
    with pytest.raises(ValueError, match="not within"):
        hit_rate(SHARES, [entry], 150)
