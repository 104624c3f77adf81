"""What values are may be given for a stream instead of guessed for each series: `Options.kind`."""

from typing import get_args

import numpy as np
import pytest

from anomalyd.batch import ARMED, COUNTER, WARMUP
from anomalyd.detector import Detector, Options
from anomalyd.detector.detector import Kind
from anomalyd.detector.layout import COUNTER_KIND, GAUGE_KIND
from anomalyd.detector.recipe import WARMUP_SAMPLES
from anomalyd.settings import StreamSettings
from tests.detector.population import Floats, assert_same_bits, every, feed, in_torch, mixed
from tests.detector.test_backends import run

STEP_MS = 10_000


def fixed(detector: Detector, kind: Kind) -> Detector:
    return Detector(detector.artifact, "cpu", Options(kind=kind))


def total(count: int, seed: int = 3) -> Floats:
    """A counter of about 200 a second, read every ten seconds."""
    return np.cumsum(np.random.default_rng(seed).poisson(2000, count)).astype(np.float64)


def test_settings_and_detector_know_the_same_kinds() -> None:
    assert get_args(StreamSettings.model_fields["kind"].annotation) == get_args(Kind)


def test_gauge_that_only_rises_stays_a_gauge(detector: Detector) -> None:
    pages, values = detector.new_pages(1), total(300)

    verdicts = feed(fixed(detector, "gauge"), every(300, STEP_MS), values, pages)

    assert not (verdicts.flags & COUNTER).any()
    np.testing.assert_array_equal(verdicts.observed[:, 0], values)
    assert pages.field("kind")[0, 0] == GAUGE_KIND


def test_delta_is_judged_as_it_is(detector: Detector) -> None:
    """Deltas that happen to rise are no counter, and a zero is a value: nothing happened."""
    values = np.concatenate([np.arange(100.0), np.zeros(50)])

    verdicts = feed(fixed(detector, "delta"), every(150), values)

    assert_same_bits(verdicts, feed(fixed(detector, "gauge"), every(150), values))
    np.testing.assert_array_equal(verdicts.observed[:, 0], values)


def test_counter_is_one_from_its_second_sample(detector: Detector) -> None:
    values = total(400)

    verdicts = feed(fixed(detector, "counter"), every(400, STEP_MS), 1e9 + values)

    assert (verdicts.flags & COUNTER).all()
    assert verdicts.observed[0, 0] == 0.0
    np.testing.assert_allclose(verdicts.observed[1:, 0], np.diff(values) / 10)
    assert (verdicts.expected[2:, 0] > 100.0).all()
    assert ((verdicts.flags & WARMUP > 0) == (np.arange(400) < WARMUP_SAMPLES)).all()


@pytest.mark.parametrize("rest", [0.0, 0.4, 0.9, 0.999])
def test_counter_that_falls_has_begun_anew_however_far_it_fell(detector: Detector, rest: float) -> None:
    """How long it counted since nobody knows, so its rate is taken to be the one before."""
    values = total(600)
    values[400:] += rest * values[399] - values[400]

    verdicts = feed(fixed(detector, "counter"), every(600, STEP_MS), values)

    assert (verdicts.flags & COUNTER).all()
    assert verdicts.observed[400, 0] == verdicts.observed[399, 0]
    assert not ((verdicts.score >= 1.0) & (verdicts.flags & ARMED > 0)).any()


def test_counter_that_seldom_counts_is_one_all_the_same(detector: Detector) -> None:
    """Left alone it would be taken for a gauge, because it rises too seldom."""
    values = np.cumsum(np.arange(300) % 10 == 0).astype(np.float64)

    assert not (feed(detector, every(300, STEP_MS), values).flags & COUNTER).any()
    assert (feed(fixed(detector, "counter"), every(300, STEP_MS), values).observed[1:, 0] <= 0.1).all()


def test_another_kind_has_the_series_learn_anew_and_keeps_its_episode(detector: Detector) -> None:
    pages, values = detector.new_pages(1), 50 + np.random.default_rng(1).standard_normal(400)
    feed(detector, every(400, STEP_MS), values, pages)
    pages.episodes[0] = 7

    verdicts = feed(fixed(detector, "counter"), every(401, STEP_MS)[400:], values[:1] + 100, pages)

    assert verdicts.flags[0] & (WARMUP | COUNTER) == WARMUP | COUNTER
    assert verdicts.observed[0, 0] == pytest.approx((values[0] + 100 - values[399]) / 10)
    assert (pages.field("age")[0, 0], pages.field("kind")[0, 0]) == (1, COUNTER_KIND)
    assert (pages.episodes[0] == 7).all()


def test_the_kind_that_a_series_has_anyway_changes_nothing(detector: Detector) -> None:
    pages, others, values = detector.new_pages(1), detector.new_pages(1), total(300)
    feed(detector, every(200, STEP_MS), values[:200], pages)
    others.buffer[:] = pages.buffer

    later = every(300, STEP_MS)[200:]
    assert_same_bits(feed(fixed(detector, "counter"), later, values[200:], pages), feed(detector, later, values[200:], others))
    assert bytes(pages.buffer) == bytes(others.buffer)


@pytest.mark.parametrize("kind", ["gauge", "counter", "delta"])
def test_backends_agree(detector: Detector, kind: Kind) -> None:
    """Over series of all kinds, most of which are not of this one."""
    chosen = fixed(detector, kind)
    times, values = mixed(26, 110)
    compiled, in_tensors = chosen.new_pages(26), chosen.new_pages(26)

    a = run(chosen.step, compiled, times, values)
    b = run(in_torch(chosen), in_tensors, times, values)

    np.testing.assert_allclose(b["observed"].astype(float), a["observed"].astype(float), rtol=1e-12)
    np.testing.assert_allclose(b["score"].astype(float), a["score"].astype(float), atol=5e-3)
    for name in ("time", "age", "born", "kind", "late_run"):
        np.testing.assert_array_equal(in_tensors.field(name), compiled.field(name), err_msg=name)
