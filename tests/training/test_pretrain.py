"""Calibration and `anomalyd pretrain`, on sizes that take seconds."""

import re
from pathlib import Path

import numpy as np
import pytest

from anomalyd.detector import Artifact, Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.errors import ArtifactError
from anomalyd.training import generate, pretrain
from anomalyd.training.calibrate import QUIET_SAMPLES, calibrate, openings
from anomalyd.training.trainer import Plan
from tests.detector.population import every, feed


@pytest.fixture(scope="module")
def shipped() -> Artifact:
    return Detector.load(device="cpu").artifact


def test_openings_are_what_the_alert_policy_would_open() -> None:
    """Above and armed, after QUIET_SAMPLES below."""
    evidence = np.zeros((60, 1))
    evidence[[5, 6, 20, 25, 45]] = 10.0
    armed = np.ones((60, 1), bool)
    armed[45] = False

    np.testing.assert_array_equal(np.flatnonzero(openings(evidence, armed, 9.0)), [5, 20])
    assert 25 - 20 <= QUIET_SAMPLES < 20 - 6
    assert not openings(evidence, armed, 11.0).any()


def test_calibration_of_the_shipped_weights(shipped: Artifact) -> None:
    """More evidence, fewer false alarms; near the shipped line although on other, fewer series."""
    values, step_s = generate.series(160, 1500, seed=77, calm=True)

    line = calibrate(shipped, values[:, :, None], step_s * 1000.0)

    assert line.slope > 0
    assert line.lowest > 0

    def rate(intercept: float, slope: float, evidence: float) -> float:
        return intercept - slope * evidence

    for evidence in (8.0, 12.0):
        ours = rate(line.intercept, line.slope, evidence)
        assert ours == pytest.approx(rate(shipped.calibration.intercept, shipped.calibration.slope, evidence), abs=0.7)


def test_calibration_holds_on_series_it_has_not_seen(shipped: Artifact) -> None:
    """False alarms per series-day on new calm series lie within a factor of four of budgets that can be counted."""
    values, step_s = generate.series(160, 1500, seed=78, calm=True)
    line = calibrate(shipped, values[:, :, None], step_s * 1000.0)
    fresh, step_s = generate.series(160, 1500, seed=79, calm=True)

    again = calibrate(shipped, fresh[:, :, None], step_s * 1000.0)

    for evidence in (8.0, 12.0):
        assert abs((line.intercept - line.slope * evidence) - (again.intercept - again.slope * evidence)) < np.log10(4)


def test_silent_series_cannot_be_calibrated_on(shipped: Artifact) -> None:
    with pytest.raises(ArtifactError, match="cannot calibrate"):
        calibrate(shipped, np.zeros((4, 400, 1)), np.full(4, 60_000.0))


def test_pretrain_makes_an_artifact_that_loads_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretrain, "TRAINING_SERIES", (24, 192))
    monkeypatch.setattr(pretrain, "CALM_SERIES", (64, 1000))
    monkeypatch.setattr(pretrain, "CALM_ENTITIES", (24, 1000, 2))
    plan = Plan(steps=4, batch=16, stretch=64, window=4)

    assert pretrain.run(tmp_path / "one", seed=5, plan=plan) == 0
    out = capsys.readouterr().out
    artifact = artifacts.load(tmp_path / "one")

    assert re.search(rf"{re.escape(str(tmp_path / 'one'))}: pretrained \S+\+seed5 {artifact.hash}", out)
    assert artifact.shape == pretrain.SHAPE
    assert artifact.calibration.slope > 0
    assert artifact.several is not None
    assert artifact.several.slope > 0
    assert artifact.training["seed"] == 5
    assert artifact.training["steps"] == 4
    verdicts = feed(Detector(artifact, "cpu"), every(300), np.random.default_rng(0).standard_normal(300))
    assert np.isfinite(verdicts.score).all()

    pretrain.run(tmp_path / "two", seed=5, plan=plan)
    assert artifacts.load(tmp_path / "two").hash == artifact.hash, "equal seeds give equal artifacts"
