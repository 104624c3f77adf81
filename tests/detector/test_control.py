"""What the step counts for the alert budget: compiled, in torch, and by the rule as it is written down."""

from typing import Any

import numpy as np
import pytest

from anomalyd.batch import ARMED, LATE, REPEATED
from anomalyd.detector import Detector, Options
from anomalyd.detector import recipe as R  # noqa: N812 - constants
from tests.detector.population import KINDS, batch_of, in_torch, mixed

SAMPLES = 1_500


@pytest.mark.parametrize("correction", [0.0, 0.4])
def test_it_counts_crossings_of_rested_series_and_how_many_were_to_be_expected(detector: Detector, correction: float) -> None:
    """From what the detector says of each sample, by a second way to count."""
    times, values = mixed(2 * len(KINDS), SAMPLES, seed=5)
    series = values.shape[1]
    pages, tally, threshold = detector.new_pages(series), np.zeros(3, np.int64), detector.threshold_at(0.1, correction)
    rest, wanted = np.zeros(series, int), np.zeros(3, np.int64)
    for t in range(SAMPLES):
        verdicts = detector.step(pages, batch_of(np.arange(series), times[t], values[t]), threshold, tally)
        learned = verdicts.flags & (LATE | REPEATED) == 0
        age: Any = pages.field("age")[:, 0].astype(int) - 1
        step_ms: Any = pages.field("step_ms")[:, 0].astype(float)
        log10_rate = threshold[0] + np.log10(np.maximum(step_ms, R.TRIAL_MS))
        limit = np.maximum((threshold[1] - log10_rate) / threshold[2], threshold[3])
        young = (age >= R.WARMUP_SAMPLES) & (age < R.YOUNG_SAMPLES)
        limit[young] += R.YOUNG_DECADES / threshold[2] * np.log10(R.YOUNG_SAMPLES / age[young])
        chance = threshold[5] - threshold[6] * np.maximum(step_ms, R.TRIAL_MS)
        trial = learned & (rest == 0) & (age >= R.YOUNG_SAMPLES) & (chance > 0)
        strange, alarms = verdicts.evidence >= threshold[4], verdicts.evidence >= limit
        wanted[0] += np.count_nonzero(trial & strange & ~alarms & (verdicts.flags & ARMED > 0))
        wanted[1] += (chance * np.minimum(1.0, step_ms / R.TRIAL_MS))[trial].astype(np.int64).sum()
        wanted[2] += step_ms[learned & (age >= R.WARMUP_SAMPLES)].astype(np.int64).sum()
        after = np.where(strange, R.CONTROL_REST, np.maximum(rest - 1, 0))
        rest = np.where(learned, after, rest)

    assert wanted[0] > 5
    assert tally[0] == wanted[0]
    np.testing.assert_allclose(tally[1:], wanted[1:], rtol=1e-6)


def test_torch_counts_the_same(detector: Detector) -> None:
    times, values = mixed(len(KINDS), SAMPLES, seed=6)
    rows = np.arange(values.shape[1])
    ours, theirs = np.zeros(3, np.int64), np.zeros(3, np.int64)
    step, compiled, in_tensors = in_torch(detector, tally=theirs), detector.new_pages(len(rows)), detector.new_pages(len(rows))
    for t in range(SAMPLES):
        batch, before = batch_of(rows, times[t], values[t]), ours.copy()
        if t >= SAMPLES - 60:
            in_tensors.buffer[:] = compiled.buffer
            step(in_tensors, batch)
        detector.step(compiled, batch, None, ours)
        if t < SAMPLES - 60:
            theirs += ours - before

    assert ours[1] > 0
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


def test_the_level_stays_where_it_is_whatever_the_budget_and_the_correction(detector: Detector) -> None:
    levels = {float(detector.threshold_at(budget, correction)[4]) for budget in (0.01, 1.0) for correction in (-0.5, 0.0, 1.0)}

    assert len(levels) == 1
    assert detector.threshold_at(0.1)[5] == pytest.approx(1e9 * R.CONTROL_RATE, rel=0.1)


def test_a_correction_is_worth_as_much_as_a_smaller_budget(detector: Detector) -> None:
    strict = Detector(detector.artifact, "cpu", Options(budget_per_day=0.01)).threshold
    corrected = detector.threshold_at(0.1, 1.0)

    assert corrected[1] - corrected[0] == pytest.approx(strict[1] - strict[0])


def test_where_the_threshold_is_the_level_nothing_is_to_be_expected_below_it(detector: Detector) -> None:
    tally, threshold = np.zeros(3, np.int64), detector.threshold_at(1_000.0)
    times, values = mixed(len(KINDS), 1_200, seed=8)
    pages = detector.new_pages(values.shape[1])
    for t in range(1_200):
        detector.step(pages, batch_of(np.arange(values.shape[1]), times[t], values[t]), threshold, tally)

    assert tally[:2].tolist() == [0, 0]
    assert tally[2] > 0
