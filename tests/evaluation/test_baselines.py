"""Baselines: strict about time, and in the same loop as the detector."""

import sys
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP, SampleBatch
from anomalyd.detector import Calibration, Options
from anomalyd.errors import ConfigError
from anomalyd.evaluation.baselines import BASELINES, BaselineDetector, Measure, forecaster
from anomalyd.evaluation.baselines.detector import calibration
from anomalyd.evaluation.baselines.robust import WINDOW, RobustZ, SeasonalZ
from anomalyd.evaluation.readers import InputFile, Table
from anomalyd.evaluation.replay import replay_table
from anomalyd.shard import StreamPlan
from anomalyd.training.trainer import Plan

Floats = NDArray[np.float64]
STEP_MS = 300_000
LINE = Calibration(intercept=0.0, slope=2.0, lowest=1.2)
SPIKE = 1100
AFTER = SPIKE + 20
EVERY = pytest.mark.parametrize("name", BASELINES)
BOTH = pytest.mark.parametrize(("name", "features"), [(name, features) for name in BASELINES for features in (1, 3)])


@pytest.fixture(autouse=True)
def _short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from anomalyd.training import joint

    monkeypatch.setattr(forecaster, "SERIES", (8, 64))
    monkeypatch.setattr(forecaster, "STEPS", 2)
    # The step is compiled for every shape: this one is that of other tests, too.
    monkeypatch.setattr(joint, "PLAN", Plan(steps=2, batch=4, stretch=32, window=1))
    monkeypatch.setattr(joint, "UNITS", 7)
    monkeypatch.setattr(joint, "LATENT", 2)


@cache
def course(features: int, samples: int = 1200, seed: int = 0) -> Floats:
    """A daily wave with noise, and one incident in the first feature."""
    rng = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(samples) * STEP_MS / 86_400_000)[:, None]
    value = 100.0 + 3.0 * wave + rng.standard_normal((samples, features))
    value[SPIKE:AFTER, 0] += 60.0
    return value


def times(samples: int) -> NDArray[np.int64]:
    return 1_760_000_000_000 + STEP_MS * np.arange(samples, dtype=np.int64)


def made(name: str, features: int, seed: int = 1, train: Floats | None = None) -> Measure:
    if name == "lstm-forecaster" and features > 1 and train is None:
        train = course(features, 400, seed=9)
    return BASELINES[name].make(features, train, STEP_MS, seed)


def raw(name: str, value: Floats, cuts: tuple[int, ...] = ()) -> Floats:
    measure = made(name, value.shape[1])
    when = times(len(value))
    edges = [0, *cuts, len(value)]
    return np.concatenate([measure.update(when[a:b], value[a:b].copy()).raw for a, b in pairwise(edges)])


@BOTH
def test_what_comes_later_changes_nothing(name: str, features: int) -> None:
    value = course(features)
    other = value.copy()
    other[900:] = -7.0

    np.testing.assert_allclose(raw(name, value)[:900], raw(name, other)[:900], rtol=1e-9, atol=1e-12)


@BOTH
def test_how_a_series_is_cut_changes_nothing(name: str, features: int) -> None:
    value = course(features)

    np.testing.assert_allclose(raw(name, value), raw(name, value, (1, 2, 7, 250, 255, 600, 601, 1150)), rtol=1e-9, atol=1e-12)


@BOTH
def test_an_incident_stands_out(name: str, features: int) -> None:
    scores = raw(name, course(features))

    assert scores[SPIKE:AFTER].max() > np.quantile(scores[700:SPIKE], 0.99)


@pytest.mark.parametrize("name", ["robust-z", "seasonal-z", "online-pca", "lstm-forecaster"])
def test_a_sample_is_scored_before_it_is_learned(name: str) -> None:
    scores = raw(name, course(1))

    assert scores[SPIKE] > scores[700:SPIKE].max()


def test_a_missing_value_counts_as_the_last_known_one_and_not_as_a_later_one() -> None:
    value, known = course(3).copy(), course(3).copy()
    value[:40, 1] = value[500:520, 0] = np.nan
    known[:40, 1], known[500:520, 0] = 0.0, known[499, 0]
    detector = BaselineDetector(BASELINES["robust-z"], 3, step_ms=STEP_MS, line=LINE)
    pages, whole = detector.new_pages(1), detector.new_pages(1)

    parts = [detector.step(pages, batch(part)) for part in (value[:30], value[30:510], value[510:])]
    wanted = detector.step(whole, batch(known))

    np.testing.assert_array_equal(np.concatenate([part.evidence for part in parts]), wanted.evidence)


@EVERY
def test_nothing_is_said_before_there_is_a_past(name: str) -> None:
    measure = made(name, 1)
    scores = measure.update(times(1200), course(1)).raw

    assert (scores[: measure.blind] == 0.0).all()
    assert (scores[measure.blind :] != 0.0).any()


@pytest.mark.parametrize(
    "value", [np.zeros((700, 1)), np.full((700, 1), 1e300), np.where(np.arange(700) % 90 == 1, -1e300, 1e-300)[:, None]]
)
@EVERY
def test_everything_is_finite_whatever_the_values(name: str, value: Floats) -> None:
    detector = BaselineDetector(BASELINES[name], value.shape[1], step_ms=STEP_MS, line=LINE)

    verdicts = detector.step(detector.new_pages(1), batch(value))

    for column in ("score", "evidence", "expected", "low", "high", "share"):
        assert np.isfinite(getattr(verdicts, column)).all()
    np.testing.assert_allclose(verdicts.share.sum(axis=1), 1.0, rtol=1e-5)


@EVERY
def test_a_file_goes_through_the_loop_of_the_detector_and_the_incident_is_told_of(name: str) -> None:
    value = course(1)
    label = np.zeros(len(value), np.uint8)
    table = Table(np.arange(len(value)), times(len(value)), value, ("value",), label, None, 0)
    detector = BaselineDetector(BASELINES[name], 1, step_ms=STEP_MS, seed=1, line=LINE, options=Options(1.0))

    replay = replay_table(InputFile(Path("a.csv"), "a", "csv"), table, StreamPlan("test"), detector, lambda _: None)

    fired = [alert for alert in replay.alerts if alert.status == "firing"]
    assert any(SPIKE <= alert.source.offset < AFTER for alert in replay.alerts if alert.status != "resolved")
    assert len(fired) < 20
    assert fired[-1].model.name == name
    assert np.array_equal(replay.trace.verdicts.evidence, raw(name, value))
    assert replay.trace.verdicts.score[SPIKE:AFTER].max() >= 1.0


def batch(value: Floats, when: NDArray[np.int64] | None = None) -> SampleBatch:
    n = len(value)
    return SampleBatch(np.zeros(n, np.int32), times(n) if when is None else when, value, np.arange(n, dtype=np.int32))


def test_robust_z_is_the_distance_to_the_median_in_median_deviations() -> None:
    rng = np.random.default_rng(3)
    value = np.round(rng.standard_normal((2300, 2)) * 5)  # many ties
    value[:, 1] = np.where(rng.random(2300) < 0.3, value[:, 1], 0.0)  # more than half of them zero

    answer = RobustZ(2).update(times(2300), value)

    for i in (10, 11, 500, 999, 1000, 1001, 1700, 2299):
        past = value[max(0, i - WINDOW) : i]
        median = np.median(past, axis=0)
        mad = 1.4826 * np.median(np.abs(past - median), axis=0)
        spread = np.where(mad > 0, mad, 1.2533 * np.abs(past - median).mean(axis=0))
        np.testing.assert_allclose(answer.expected[i], median)
        np.testing.assert_allclose(answer.part[i], np.abs(value[i] - median) / spread, rtol=1e-3)
        np.testing.assert_allclose(answer.raw[i], answer.part[i].mean())


def test_of_many_features_the_five_that_stand_out_most_count_and_have_the_share() -> None:
    value = np.random.default_rng(4).standard_normal((1100, 20))
    value[1050:, 3] += 40.0
    detector = BaselineDetector(BASELINES["robust-z"], 20, step_ms=STEP_MS, line=LINE)

    verdicts = detector.step(detector.new_pages(1), batch(value))

    plain = RobustZ(20).update(times(1100), value)
    np.testing.assert_allclose(plain.raw[900], np.sort(plain.part[900])[-5:].mean())
    assert verdicts.share[1055].argmax() == 3
    assert verdicts.evidence[1050] < verdicts.evidence[1060]  # smoothed


def test_seasonal_z_knows_the_time_of_day() -> None:
    """A value that is usual at noon is strange at midnight."""
    samples = 288 * 6
    hour = np.arange(samples) * STEP_MS / 3_600_000 % 24
    value = np.where((hour >= 11) & (hour < 13), 50.0, 0.0)[:, None] + np.random.default_rng(5).standard_normal((samples, 1))
    value[288 * 5 + 12] = 50.0
    when = STEP_MS * np.arange(samples, dtype=np.int64)

    answer = SeasonalZ(1, STEP_MS).update(when, value)

    noon = 288 * 5 + 144
    assert answer.raw[288 * 5 + 12] > 5 * answer.raw[noon]
    assert abs(answer.expected[noon, 0] - 50.0) < 3.0


@pytest.mark.parametrize("name", ["online-pca", "isolation-forest", "lstm-forecaster"])
def test_what_can_be_fitted_on_train_speaks_from_the_first_rows(name: str) -> None:
    train = course(3, seed=8)[:SPIKE]

    measure = made(name, 3, train=train)

    assert measure.blind <= 1
    assert measure.update(times(20), course(3)[:20].copy()).raw[5] != 0.0


def test_rows_that_are_late_or_repeated_are_flagged_and_still_scored() -> None:
    value = course(1)[:300].copy()
    when = times(300)
    value[200], when[200] = value[199], when[199]
    when[250] = when[240]
    detector = BaselineDetector(BASELINES["robust-z"], 1, step_ms=STEP_MS, line=LINE)

    verdicts = detector.step(detector.new_pages(1), batch(value, when))

    assert verdicts.flags[200] & REPEATED
    assert verdicts.flags[250] & LATE
    assert not (np.delete(verdicts.flags, [200, 250]) & (LATE | REPEATED)).any()
    assert (verdicts.evidence[[200, 250]] > 0).all()


def test_series_that_begin_anew_know_nothing_of_before() -> None:
    detector = BaselineDetector(BASELINES["half-space-trees"], 1, step_ms=STEP_MS, line=LINE)
    pages = detector.new_pages(1)
    first = detector.step(pages, batch(course(1)))

    pages.clear(np.zeros(1, np.int32))
    again = detector.step(pages, batch(course(1)))

    assert np.array_equal(first.evidence, again.evidence)
    assert np.array_equal(first.score, again.score)
    assert again.flags[0] & WARMUP


def test_threshold_keeps_to_the_budget_on_calm_series_that_it_was_not_laid_on() -> None:
    """Within the factor that two dozen series can show: the budget asked for is a false alarm in ten days."""
    from anomalyd.training import generate
    from anomalyd.training.calibrate import openings

    values, step_s = generate.series(48, 3000, seed=77, calm=True)
    days = opened = 0.0
    for value, step in zip(values, step_s.tolist(), strict=True):
        detector = BaselineDetector(BASELINES["robust-z"], 1, step_ms=round(step * 1000), options=Options(0.1))
        when = round(step * 1000) * np.arange(3000, dtype=np.int64)
        verdicts = detector.step(detector.new_pages(1), batch(value[:, None], when))
        opened += openings(verdicts.score[:, None], (verdicts.flags & ARMED > 0)[:, None], 1.0).sum()
        days += step * 3000 / 86_400

    assert 0.02 < opened / days < 0.3


def test_calibration_is_found_once() -> None:
    assert calibration(BASELINES["robust-z"], several=False) is calibration(BASELINES["robust-z"], several=False)


@pytest.mark.parametrize(("name", "module"), [("half-space-trees", "river.anomaly"), ("online-pca", "sklearn.decomposition")])
def test_a_missing_library_is_named_with_what_to_install(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(ConfigError, match=r"anomalyd\[evaluation\]"):
        made(name, 1)
