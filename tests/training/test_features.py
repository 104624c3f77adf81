"""What the network is trained on is what it is fed when it scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.detector import Detector, Shape
from anomalyd.detector.recipe import FIXED_POINT, RECENT
from anomalyd.training import generate
from anomalyd.training.features import network_inputs
from tests.detector.population import batch_of, every, untrained


def test_inputs_are_those_of_the_compiled_step() -> None:
    """Counters with restarts among them: the row keeps its last 16 inputs, to 1/2048."""
    detector, count, samples = Detector.load(device="cpu"), 60, 300
    values, step_s = generate.series(count, samples, seed=9)
    step_ms = np.round(step_s) * 1000.0
    inputs, targets = network_inputs(values[:, :, None], step_ms, detector.layout.shape)
    pages, rows = detector.new_pages(count), np.arange(count)
    for t in range(samples):
        detector.step(pages, batch_of(rows, (step_ms * t).astype(np.int64), values[:, t]))

    ring = pages.field("recent").astype(float).reshape(count, RECENT, 2) / FIXED_POINT
    age = pages.field("age")[:, 0]
    for back in range(1, RECENT + 1):
        np.testing.assert_allclose(inputs[:, samples - back], ring[rows, (age - back) % RECENT], rtol=0, atol=1 / FIXED_POINT)
    assert inputs.shape == (count, samples, 2)
    np.testing.assert_array_equal(targets[:, :, 0], inputs[:, :, 0])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_inputs_are_finite_and_limited(seed: int) -> None:
    values, step_s = generate.series(4, 200, seed)
    inputs, _ = network_inputs(values[:, :, None], step_s * 1000, Shape(1, 4, 1, 2, joint=False))

    assert np.isfinite(inputs).all()
    assert (np.abs(inputs) <= 8.0).all()


@pytest.mark.parametrize("joint", [True, False])
def test_several_features(joint: bool) -> None:
    """Joint: one network with u of all features. Not joint: as many univariate series, feature by feature."""
    values = np.random.default_rng(0).standard_normal((5, 80, 3))
    inputs, targets = network_inputs(values, np.full(5, 1000.0), Shape(3, 4, 1, 2, joint=joint))

    assert inputs.shape == ((5, 80, 3) if joint else (15, 80, 2))
    assert targets.shape == ((5, 80, 3) if joint else (15, 80, 1))


def test_joint_inputs_are_those_of_the_compiled_step() -> None:
    shape = Shape(3, 7, 1, 2, joint=True)
    detector, values = Detector(untrained(shape), "cpu"), np.random.default_rng(0).standard_normal((100, 3))
    inputs, _ = network_inputs(values[None], np.array([60_000.0]), shape)
    pages = detector.new_pages(1)

    detector.step(pages, batch_of(0, every(100), values))

    ring = pages.field("recent").astype(float).reshape(RECENT, 3) / FIXED_POINT
    for back in range(1, RECENT + 1):
        np.testing.assert_allclose(inputs[0, 100 - back], ring[(100 - back) % RECENT], rtol=0, atol=1 / FIXED_POINT)
