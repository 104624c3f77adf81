"""Average precision and best F1: by hand, and against their definitions threshold by threshold."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.evaluation.measures import BestF1, average_precision, best_f1, segments

SCORES = [0.1, 0.4, 0.35, 0.8]
LABELS = [0, 0, 1, 1]


def test_average_precision_by_hand() -> None:
    # At 0.8: recall 1/2, precision 1. At 0.35: recall 1, precision 2/3.
    assert average_precision(SCORES, LABELS) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_best_f1_by_hand() -> None:
    assert best_f1(SCORES, LABELS) == BestF1(f1=0.8, threshold=0.35, precision=2 / 3, recall=1.0)


def test_equal_scores_are_one_threshold_whatever_their_order() -> None:
    assert average_precision([1.0] * 5, [1, 0, 0, 0, 0]) == pytest.approx(0.2)
    assert average_precision([1.0] * 5, [0, 0, 0, 0, 1]) == pytest.approx(0.2)


def test_of_equally_good_thresholds_the_highest_is_told() -> None:
    # One found of one called, and two found of four called, are both F1 2/3.
    best = best_f1([9.0, 3.0, 2.0, 1.0], [1, 0, 0, 1])
    assert best == BestF1(f1=2 / 3, threshold=9.0, precision=1.0, recall=0.5)


def test_rows_without_a_score_come_last_together() -> None:
    scores = [math.nan, 1.0, math.nan, 0.5]
    assert average_precision(scores, [1, 1, 0, 0]) == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert average_precision([math.nan] * 4, [1, 0, 0, 0]) == pytest.approx(0.25)
    best = best_f1([math.nan] * 2, [1, 0])
    assert best is not None
    assert best.threshold == -math.inf


@pytest.mark.parametrize("labels", [[0, 0], []])
def test_without_an_anomaly_there_is_no_value(labels: list[int]) -> None:
    assert average_precision(np.zeros(len(labels)), labels) is None
    assert best_f1(np.zeros(len(labels)), labels) is None


def test_columns_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        average_precision([0.0, 1.0], [1])
    with pytest.raises(ValueError, match="shape"):
        best_f1([[0.0]], [[1]])


@given(
    rows=st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40).filter(lambda rows: any(truth for _, truth in rows))
)
@settings(max_examples=100, deadline=None)
def test_equals_the_definition(rows: list[tuple[int, bool]]) -> None:
    positives = sum(truth for _, truth in rows)
    area, before, best = 0.0, 0.0, 0.0
    for threshold in sorted({score for score, _ in rows}, reverse=True):
        called = [truth for score, truth in rows if score >= threshold]
        precision, recall = sum(called) / len(called), sum(called) / positives
        area += (recall - before) * precision
        before = recall
        if called.count(True):
            best = max(best, 2 * precision * recall / (precision + recall))
    scores, labels = zip(*rows, strict=True)
    assert average_precision(scores, labels) == pytest.approx(area)
    found = best_f1(scores, labels)
    assert found is not None
    assert found.f1 == pytest.approx(best)


def test_segments_have_both_their_ends() -> None:
    assert segments(np.array([1, 1, 0, 1, 0, 0, 1], np.uint8)).tolist() == [[0, 1], [3, 3], [6, 6]]
    assert segments([]).tolist() == segments([0, 0]).tolist() == []
