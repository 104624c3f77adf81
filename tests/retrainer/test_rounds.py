"""Whole rounds, on little data and with few steps; whatever a retrainer is fed, nothing worse than the champion passes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.detector import Detector, Options
from anomalyd.detector import artifact as artifacts
from anomalyd.retrainer.gate import compare
from anomalyd.retrainer.incidents import Incidents
from anomalyd.retrainer.material import Judged, Material, prepare
from anomalyd.retrainer.reservoir import History
from anomalyd.retrainer.rounds import Round, hold
from anomalyd.training import course, pretrain

SAMPLES = 1200


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thresholds laid on little: they come out a little high, which is no harm where nothing has to pass."""
    monkeypatch.setattr(pretrain, "CALM_SERIES", (64, 1500))
    monkeypatch.setattr(course, "GENERATED_SERIES", 32)


small = pytest.mark.usefixtures("_small")


def waves(count: int, seed: int = 0) -> list[History]:
    rng, t = np.random.default_rng(seed), np.arange(SAMPLES)
    return [History(f"m{i:02d}", 1_760_000_000_000 + 60_000 * t, _wave(rng, t)[:, None]) for i in range(count)]


def _wave(rng: np.random.Generator, t: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(100 + 20 * np.sin(2 * np.pi * (t / 60 + rng.random())) ** 3 + 10 * (t % 24 < 3) + rng.standard_normal(len(t)))


def held(detector: Detector, histories: list[History], steps: int = 12) -> tuple[Round, Material]:
    material = prepare(histories, Incidents("s"))
    return hold(detector.artifact, material, Options(), 0, steps=steps), material


def no_worse(champion: Detector, found: Round) -> bool:
    """On clean data of the same kind, which the round did not see."""
    assert found.challenger is not None
    judged = [Judged(h.key, h.time_ms, h.value, 800, 60_000.0) for h in waves(16, seed=9)]
    figures = compare(champion, Detector(found.challenger, "cpu", Options()), judged, 7).figures
    alarms, told = figures["false_alarms_per_series_day"], figures["injected_told"]
    return bool(alarms["difference"]["value"] <= alarms["worse_allowed"] and told["difference"]["value"] >= -told["worse_allowed"])


@pytest.mark.slow
def test_a_stream_of_its_own_kind_gets_a_better_model(detector: Detector) -> None:
    found, _ = held(detector, waves(16), steps=40)

    assert found.verdict.passed, found.verdict
    assert found.challenger is not None
    assert found.challenger.name == "retrained"
    assert found.challenger.parent == detector.artifact.hash
    assert found.challenger.data["first"] is not None
    assert found.challenger.metrics["surprise"] < found.verdict.figures["surprise"]["champion"]
    assert artifacts.from_bytes(found.challenger.to_bytes()).hash == found.challenger.hash
    assert no_worse(detector, found)


@small
def test_anomalies_that_nobody_was_alerted_to(detector: Detector) -> None:
    rng, histories = np.random.default_rng(5), waves(16)
    for history in histories:
        for start in rng.integers(0, SAMPLES - 40, 6).tolist():
            history.value[start : start + 30] += rng.choice([-1, 1]) * rng.uniform(20, 80)

    found, _ = held(detector, histories)

    assert not found.verdict.passed or no_worse(detector, found)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e12])
def test_constants_alone_make_no_model(detector: Detector, value: float) -> None:
    histories = [History(h.key, h.time_ms, np.full_like(h.value, value)) for h in waves(12)]

    found, _ = held(detector, histories)

    assert found.challenger is None
    assert not found.verdict.passed


def test_missing_values_alone_make_no_model(detector: Detector) -> None:
    histories = [History(h.key, h.time_ms, np.full((SAMPLES, 3), np.nan)) for h in waves(12)]

    found, _ = held(detector, histories)

    assert found.challenger is None


def test_an_empty_topic_makes_no_model(detector: Detector) -> None:
    found, material = held(detector, [])

    assert found.challenger is None
    assert not material.enough
    assert "too little" in found.verdict.reason


@small
def test_an_exploding_series_changes_nothing(detector: Detector) -> None:
    explosion = History("boom", waves(1)[0].time_ms, 10.0 ** np.linspace(0, 300, SAMPLES)[:, None])

    without, _ = held(detector, waves(12), steps=4)
    among, material = held(detector, [*waves(12), explosion], steps=4)

    assert material.broken == 1
    assert without.challenger is not None
    assert among.challenger is not None
    for name, tensor in without.challenger.tensors.items():
        np.testing.assert_array_equal(among.challenger.tensors[name], tensor)


@small
def test_a_series_that_grows_and_grows_is_no_ground_for_a_worse_model(detector: Detector) -> None:
    growing = [History(h.key, h.time_ms, h.value * 10.0 ** np.linspace(0, 12, SAMPLES)[:, None]) for h in waves(4, seed=3)]

    found, _ = held(detector, [*waves(12), *[History(f"g{h.key}", h.time_ms, h.value) for h in growing]])

    assert not found.verdict.passed or no_worse(detector, found)
