"""Samples of several features of which some are missing: what is not there is no news, good or bad."""

import numpy as np
import pytest

from anomalyd.batch import REPEATED
from anomalyd.detector import Artifact, Detector, Options, Shape
from tests.detector.population import Floats, batch_of, every, in_torch, untrained

SHAPES = [Shape(3, 7, 1, 2, joint=True), Shape(3, 32, 1, 4, joint=False)]
OF_THE_SECOND = ("seen", "mean", "variance", "step_size", "low", "high", "born", "run", "kind", "error", "error_square")
T = 300


@pytest.fixture(scope="module")
def shipped(detector: Detector) -> Artifact:
    """The artifact of the package."""
    return detector.artifact


def course(samples: int = T) -> Floats:
    """Three features (samples, 3) that move together."""
    rng = np.random.default_rng(0)
    return 10 * np.sin(np.arange(samples) / 9)[:, None] + rng.standard_normal((samples, 3)) + [0, 50, 100]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_agree_where_features_are_missing(shape: Shape) -> None:
    detector = Detector(untrained(shape), "cpu")
    values = course()
    values[np.random.default_rng(1).random(values.shape) < 0.2] = np.nan
    compiled, in_tensors = detector.new_pages(1), detector.new_pages(1)
    step = in_torch(detector)
    for t, value in enumerate(values):
        batch = batch_of(np.zeros(1, np.int32), every(T)[t : t + 1], value[None])
        in_tensors.buffer[:] = compiled.buffer

        a, b = detector.step(compiled, batch), step(in_tensors, batch)

        np.testing.assert_allclose(b.evidence, a.evidence, rtol=0, atol=1e-3)
        for name in ("observed", "share", "expected", "low", "high"):
            np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-4, atol=1e-5, err_msg=name)
        for name in ("part", "error_square", "last", "mean", "born"):
            theirs, ours = (pages.field(name).astype(float) for pages in (in_tensors, compiled))
            np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nothing_is_learned_of_what_is_missing_and_its_expectation_stands(shape: Shape) -> None:
    detector = Detector(untrained(shape), "cpu")
    pages, values, times = detector.new_pages(1), course(), every(T)
    detector.step(pages, batch_of(np.zeros(T - 1, np.int32), times[:-1], values[:-1]))
    before = {name: pages.field(name)[0, 1].copy() for name in OF_THE_SECOND}
    values[-1, 1] = np.nan

    verdicts = detector.step(pages, batch_of(np.zeros(1, np.int32), times[-1:], values[-1:]))

    assert {name: pages.field(name)[0, 1] for name in OF_THE_SECOND} == before
    assert np.isnan(verdicts.observed[0]).tolist() == [False, True, False]
    assert np.isfinite(verdicts.evidence[0])
    assert verdicts.low[0, 1] < verdicts.expected[0, 1] < verdicts.high[0, 1]


def test_a_feature_that_was_never_seen_has_no_expectation_and_costs_nothing(shipped: Artifact) -> None:
    detector = Detector(shipped.for_features(3), "cpu")
    values = course()
    values[:, 2] = np.nan

    verdicts = detector.step(detector.new_pages(1), batch_of(np.zeros(T, np.int32), every(T), values))

    assert np.isnan(verdicts.expected[:, 2]).all()
    assert np.isfinite(verdicts.score).all()
    assert (verdicts.share[1:, 2] < 0.01).all()


def test_an_incident_in_what_is_there_is_found_beside_what_is_missing(shipped: Artifact) -> None:
    detector = Detector(shipped.for_features(3), "cpu")
    values = course(1000)
    values[::3, 2] = np.nan
    values[-5:, :2] += 60

    verdicts = detector.step(detector.new_pages(1), batch_of(np.zeros(1000, np.int32), every(1000), values))

    assert verdicts.score[-5:].max() > 1 > verdicts.score[100:-5].max()
    assert verdicts.share[-1, 2] < 0.2


def test_a_counter_that_was_missing_for_a_while_has_not_burst(shipped: Artifact) -> None:
    detector = Detector(shipped.for_features(2), "cpu", Options(kind="counter"))
    rng = np.random.default_rng(2)
    values = np.cumsum(rng.poisson(100, (T, 2)), axis=0).astype(float)
    values[200:290, 1] = np.nan

    verdicts = detector.step(detector.new_pages(1), batch_of(np.zeros(T, np.int32), every(T), values))

    assert verdicts.observed[290:, 1].max() < 1.5 * verdicts.observed[150:200, 1].max()
    assert verdicts.score.max() < 1


def test_the_same_sample_without_a_feature_is_still_the_same_sample(shipped: Artifact) -> None:
    detector = Detector(shipped.for_features(2), "cpu")
    pages = detector.new_pages(1)

    verdicts = detector.step(
        pages, batch_of(np.zeros(3, np.int32), np.ones(3, np.int64), np.array([[1.0, 2.0], [1.0, np.nan], [1.0, 3.0]]))
    )

    assert (verdicts.flags & REPEATED > 0).tolist() == [False, True, False]


def test_the_library_takes_missing_features_but_no_infinite_ones(shipped: Artifact) -> None:
    detector = Detector(shipped.for_features(2), "cpu")

    assert np.isnan(detector.update(["a"], [0], np.array([[1.0, np.nan]])).observed[0, 1])
    with pytest.raises(ValueError, match="finite"):
        detector.update(["a"], [1], np.array([[1.0, np.inf]]))
