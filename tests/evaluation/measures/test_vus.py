"""VUS-PR against its public implementation, and what it says about plain cases."""

from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.evaluation.measures import average_precision, vus_pr

Column = NDArray[np.float64]


def stream(seed: int, n: int, segments: list[tuple[int, int]], lift: float, steps: int) -> tuple[Column, NDArray[np.uint8]]:
    """Scores and labels: noise that remembers, raised by `lift` from a little after each segment's start to a little after its end.

    Drawn with `random.Random.random`, whose numbers Python promises to keep. Scores are multiples of 1/steps, so that many are equal.
    """
    random = Random(seed)
    labels = np.zeros(n, np.uint8)
    level, scores = 0.0, np.empty(n)
    for i in range(n):
        level = 0.8 * level + random.random() - 0.5
        scores[i] = level
    for first, last in segments:
        labels[first : last + 1] = 1
        shift = int(random.random() * 4)
        scores[first + shift : last + 1 + shift] += lift
    return np.floor(scores * steps) / steps, labels


STREAMS = {
    "both ends": (*stream(1, 1000, [(0, 9), (200, 260), (500, 503), (990, 999)], 1.5, 1000), 12),
    "sparse": (*stream(2, 4000, [(700, 730), (2100, 2105), (3000, 3200)], 0.8, 20), 60),
    "fewer rows than thresholds": (*stream(3, 180, [(40, 45), (120, 130)], 1.0, 8), 5),
    "fades that meet": (*stream(4, 2000, [(300, 304), (306, 306), (310, 311), (340, 350), (381, 390), (900, 901)], 1.2, 100), 31),
    "single rows": (*stream(5, 1500, [(i, i) for i in range(20, 1480, 23)], 2.0, 50), 24),
}

# Made with package TSB-AD 1.5 (PyPI), numpy 2.4.6: `TSB_AD.evaluation.basic_metrics.generate_curve(labels.astype(int), scores, window,
# version="opt", thre=250)[-1]`.
PUBLIC = {
    "both ends": 0.9289821892990139,
    "sparse": 0.443555006028334,
    "fewer rows than thresholds": 0.4095586719434625,
    "fades that meet": 0.5945596688178703,
    "single rows": 0.7290803045054635,
}


@pytest.mark.parametrize("name", PUBLIC)
def test_equals_the_public_implementation(name: str) -> None:
    scores, labels, window = STREAMS[name]
    assert vus_pr(scores, labels, window) == pytest.approx(PUBLIC[name], abs=1e-9)


def test_without_a_window_one_segment_leaves_average_precision() -> None:
    scores, labels = stream(6, 250, [(100, 130)], 0.7, 30)
    assert vus_pr(scores, labels, 0) == pytest.approx(average_precision(scores, labels))


def test_an_alarm_just_beside_its_segment_is_worth_more_than_one_far_away() -> None:
    labels = np.zeros(200)
    labels[100:110] = 1
    beside, away = np.zeros(200), np.zeros(200)
    beside[[105, 96]] = away[[105, 150]] = 1
    near, far = vus_pr(beside, labels, 10), vus_pr(away, labels, 10)
    assert near is not None
    assert far is not None
    assert near > far + 0.01


def test_only_the_order_of_scores_counts() -> None:
    scores, labels, window = STREAMS["sparse"]
    assert vus_pr(np.exp(scores) * 1e-9, labels, window) == vus_pr(scores, labels, window)


def test_rows_without_a_score_are_the_least_suspicious() -> None:
    scores, labels = stream(7, 300, [(100, 130)], 0.7, 30)
    missing, lowest = scores.copy(), scores.copy()
    missing[90:105], lowest[90:105] = np.nan, -1e9
    assert vus_pr(missing, labels, 10) == vus_pr(lowest, labels, 10)


def test_a_stream_that_is_anomalous_from_end_to_end_is_found() -> None:
    assert vus_pr([1.0, 3.0, 2.0], [1, 1, 1], 4) == pytest.approx(1.0)


@pytest.mark.parametrize("labels", [[0, 0, 0], []])
def test_no_anomaly_no_value(labels: list[int]) -> None:
    assert vus_pr(np.arange(len(labels)), labels, 2) is None


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        vus_pr([0.0, 1.0], [0, 1], -1)
    with pytest.raises(ValueError, match="shape"):
        vus_pr([0.0], [0, 1], 1)
