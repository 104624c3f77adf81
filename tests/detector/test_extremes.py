"""Any finite value at any time: every verdict is finite, the state stays finite, and the series can recover."""

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.batch import Verdicts
from anomalyd.detector import Detector, Pages
from tests.detector.population import MINUTE_MS, START_MS, Floats, Step, batch_of, every, in_torch

LARGEST, SMALLEST, SUBNORMAL = np.finfo(np.float64).max, np.finfo(np.float64).tiny, 5e-324
EDGES = [0.0, -0.0, 1.0, -1.0, 1e300, -1e300, 1e-300, LARGEST, -LARGEST, SMALLEST, SUBNORMAL, -SUBNORMAL, 1e154, 1e155, 2.0**53, 1e38, 1e39]

finite = st.one_of(st.sampled_from(EDGES), st.floats(allow_nan=False, allow_infinity=False))
YEAR_2200_MS = 7_258_118_400_000
times = st.integers(0, YEAR_2200_MS)


@cache
def shipped() -> Detector:
    """Hypothesis and fixtures of other scopes do not mix."""
    return Detector.load(device="cpu")


def assert_finite(verdicts: Verdicts, pages: Pages) -> None:
    for name in Verdicts.__slots__:
        assert np.isfinite(getattr(verdicts, name)).all(), name
    for field in pages.layout.fields.values():
        if field.dtype.kind == "f" and field.count:
            assert np.isfinite(pages.field(field.name)).all(), field.name
    assert (verdicts.score >= 0).all()


def backends(detector: Detector) -> list[Step]:
    return [detector.step, in_torch(detector)]


def series(values: list[float], repeats: int) -> Floats:
    return np.tile(np.asarray(values, np.float64), repeats)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=30), repeats=st.integers(1, 12))
@example(values=[LARGEST, -LARGEST], repeats=80)
@example(values=[0.0] * 120 + [LARGEST], repeats=1)
@example(values=[LARGEST] * 70 + [0.0] * 70, repeats=1)
@example(values=list(LARGEST * np.linspace(0, 1, 150)), repeats=1)
@example(values=list(LARGEST * np.linspace(-1, 1, 150)), repeats=1)
@example(values=[SUBNORMAL, -SUBNORMAL, 0.0], repeats=60)
def test_every_verdict_on_finite_values_is_finite(values: list[float], repeats: int) -> None:
    detector = shipped()
    pages, value = detector.new_pages(1), series(values, repeats)

    assert_finite(detector.step(pages, batch_of(0, every(len(value)), value)), pages)


@settings(max_examples=150, deadline=None)
@given(samples=st.lists(st.tuples(times, finite), min_size=1, max_size=150))
@example(samples=[(0, 0.0), (YEAR_2200_MS, 1.0), (0, 2.0)] * 40)
@example(samples=[(k, k * (LARGEST / 200)) for k in range(150)])  # a counter of which a reading a millisecond overflows the rate
def test_every_verdict_at_any_time_is_finite(samples: list[tuple[int, float]]) -> None:
    detector = shipped()
    pages = detector.new_pages(1)
    time_ms, value = np.array([t for t, _ in samples]), np.array([x for _, x in samples])

    assert_finite(detector.step(pages, batch_of(0, time_ms, value)), pages)


EXTREME: list[Floats] = [
    series([LARGEST, -LARGEST], 60),
    np.concatenate([np.zeros(110), [LARGEST], np.zeros(10)]),
    LARGEST * np.linspace(0, 1, 120),
    LARGEST * np.linspace(-1, 1, 120),
    series([SUBNORMAL, 0.0, -SUBNORMAL], 40),
    series([1e300, 1e-300, -1e300], 40),
    np.cumsum(np.full(120, 1e306)),
    np.random.default_rng(0).choice(EDGES, 120),
]


def test_backends_agree_at_the_edges_of_float64(detector: Detector) -> None:
    """Rows side by side, so that torch needs one tile a step."""
    value: NDArray[np.float64] = np.stack([v[:120] for v in EXTREME], axis=1)
    rows, results = np.arange(len(EXTREME)), []
    for step in backends(detector):
        pages, scores = detector.new_pages(len(EXTREME)), []
        for t in range(120):
            verdicts = step(pages, batch_of(rows, START_MS + MINUTE_MS * t, value[t]))
            assert_finite(verdicts, pages)
            scores.append(verdicts.score)
        results.append(np.array(scores))

    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-2)


@pytest.mark.parametrize("spike", [1e3, 1e6, 2.0**64, 1e200, LARGEST])
def test_series_recovers_from_one_absurd_value(detector: Detector, spike: float) -> None:
    """It alarms, and two days later a deviation of 30 sd scores like an alarm although the absurd value was learned."""
    rng = np.random.default_rng(1)
    value = 50.0 + rng.standard_normal(4000)
    value[1000] = spike
    value[3900] += 30.0

    verdicts = detector.step(detector.new_pages(1), batch_of(0, every(4000), value))

    assert verdicts.score[1000] > 1.0
    assert verdicts.score[3900] > 0.9  # the absurd value is in the histories: once seen, a deviation far smaller is a little less odd
    assert abs(verdicts.expected[3899, 0] - 50.0) < 3.0
