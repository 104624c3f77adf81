"""An incident counts as one: the next one like it is told, what comes again and again becomes usual, and what lasts is learned."""

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.detector import Detector
from anomalyd.detector.recipe import CLUSTER_PACE
from tests.detector.population import Floats
from tests.detector.test_behaviour import verdicts_of

SERIES = 40
FIRST = 2000
LASTS = 30


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(device="cpu")


def busy(samples: int, seed: int = 3) -> Floats:
    """Series with a cycle and noise around a level, (T, N)."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)[:, None]
    cycle = 10 * np.sin(2 * np.pi * (time / rng.choice([360, 720], SERIES) + rng.random(SERIES)))
    value: Floats = 100 + cycle + 3 * rng.standard_normal((samples, SERIES))
    return value


def told(openings_: NDArray[np.bool_], start: int) -> float:
    """Share of the series that tell of what begins there."""
    return float(openings_[start : start + LASTS].any(axis=0).mean())


def test_an_outage_is_told_though_there_was_one_like_it_hours_before(detector: Detector) -> None:
    value = busy(3200)
    rng = np.random.default_rng(5)
    starts = [FIRST, FIRST + 300, FIRST + 900]
    for start in starts:
        value[start : start + LASTS] = rng.random((LASTS, SERIES))

    _, found = verdicts_of(detector, value)

    first, second, third = (told(found, start) for start in starts)
    assert first == 1.0
    assert second >= 0.5
    assert third >= 0.5


def test_what_comes_every_hour_is_usual_after_some_times(detector: Detector) -> None:
    value = busy(5000)
    starts = range(FIRST, 4900, 60)
    for start in starts:
        value[start : start + 3] += 60.0

    _, found = verdicts_of(detector, value)

    assert told(found, FIRST) >= 0.9
    assert np.mean([told(found, start) for start in list(starts)[20:]]) < 0.05


def test_what_lasts_is_learned(detector: Detector) -> None:
    """A level that a series goes over to is an incident once, and then where it lives."""
    value = busy(FIRST + 1500)
    value[FIRST:] += 80.0

    _, found = verdicts_of(detector, value)

    assert told(found, FIRST) == 1.0
    assert found[FIRST:].sum(axis=0).mean() < 1.5
    assert not found[FIRST + 2 * CLUSTER_PACE + 500 :].any(axis=0).mean() > 0.2
