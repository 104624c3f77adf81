"""A joint model: several values of one entity in one network, fitted on their past."""

from functools import cache

import numpy as np
import pytest

from anomalyd.detector import Artifact, Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.artifact import Calibration
from anomalyd.training import joint
from anomalyd.training.joint import fit_joint
from anomalyd.training.trainer import Plan
from tests.detector.population import Floats, batch_of, every

PLAN = Plan(steps=60, batch=16, stretch=64, window=1, input_noise=0.3)
FEATURES = 3


def entity(samples: int, seed: int) -> Floats:
    """Three values that follow one driver, (samples, 3)."""
    rng = np.random.default_rng(seed)
    driver = np.sin(2 * np.pi * np.arange(samples) / 60) + 0.3 * rng.standard_normal(samples)
    return np.asarray(driver[:, None] * [1.0, -2.0, 5.0] + [0.0, 10.0, 100.0] + 0.1 * rng.standard_normal((samples, FEATURES)))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "UNITS", 7)
    monkeypatch.setattr(joint, "LATENT", 2)


@cache
def fitted() -> Artifact:
    return fit_joint([entity(1500, 1), entity(900, 2)], seed=3, plan=PLAN)


def test_fitted_model_finds_the_value_that_broke() -> None:
    """One value goes its own way: the joint score rises above all before, and the share names it."""
    detector, value = Detector(fitted(), "cpu"), entity(1500, 5)
    value[1200:1210, 1] += 200.0

    verdicts = detector.step(detector.new_pages(1), batch_of(0, every(1500), value))

    assert detector.features == FEATURES
    assert verdicts.score[1200:1210].max() > 1.1 * verdicts.score[:1200].max()
    assert verdicts.share[1200].argmax() == 1
    assert verdicts.share[1200, 1] > 0.5
    assert (verdicts.score[200:1200] >= 1.0).mean() < 0.01


def test_equal_seeds_give_equal_models() -> None:
    short = Plan(steps=3, batch=4, stretch=64, window=1)
    one, same, other = (fit_joint([entity(300, 1)], seed=seed, plan=short) for seed in (0, 0, 1))

    assert one.hash == same.hash
    assert one.hash != other.hash


def test_model_survives_saving(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("joint")

    saved = artifacts.save(fitted(), folder)

    assert saved.hash == fitted().hash
    assert isinstance(saved.calibration, Calibration)


@pytest.mark.parametrize("samples", [5, 63, 64, 200])
def test_short_histories_are_enough_to_fit(samples: int) -> None:
    artifact = fit_joint([entity(samples, 1)], plan=Plan(steps=2, batch=4, stretch=64, window=1))

    assert all(np.isfinite(tensor).all() for tensor in artifact.tensors.values())


def test_histories_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        fit_joint([entity(100, 1), entity(100, 1)[:, :2]])
