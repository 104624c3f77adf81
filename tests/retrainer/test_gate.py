import numpy as np
import pytest

from anomalyd.detector import Detector, Options
from anomalyd.retrainer.gate import Run, compare, decide
from anomalyd.retrainer.injected import inject
from anomalyd.retrainer.material import Judged

DAYS = np.ones(50)


def ran(surprise: float, alarms: float = 0.0, told: float = 0.6, spread: float = 0.01, *, finite: bool = True) -> Run:
    rng = np.random.default_rng(1)
    return Run(surprise + spread * rng.standard_normal(50), rng.poisson(alarms, 50).astype(float), np.full(50, told), finite)


def test_better_forecasts_alone_pass() -> None:
    verdict = decide(ran(1.0), ran(0.8), DAYS, budget=0.1)

    assert verdict.passed
    assert verdict.figures["surprise"]["difference"]["high"] < 0


@pytest.mark.parametrize(
    ("challenger", "why"),
    [
        (ran(1.0), "forecast"),
        (ran(1.2), "forecast"),
        (ran(0.999, spread=1.0), "alarm|forecast"),
        (ran(0.8, alarms=0.5), "alarm"),
        (ran(0.8, told=0.5), "miss"),
        (ran(0.8, finite=False), "finite"),
        (ran(float("nan")), "finite"),
    ],
)
def test_a_challenger_that_is_worse_in_anything_or_no_better_is_rejected(challenger: Run, why: str) -> None:
    champion = ran(1.0, spread=0.0) if why == "alarm|forecast" else ran(1.0)

    verdict = decide(champion, challenger, DAYS, budget=0.1)

    assert not verdict.passed
    assert any(word in verdict.reason for word in why.split("|"))


def waves(count: int, samples: int = 1000) -> list[Judged]:
    rng, t = np.random.default_rng(3), np.arange(samples)
    values = [100 + 20 * np.sin(2 * np.pi * (t / 60 + rng.random())) + rng.standard_normal(samples) for _ in range(count)]
    return [Judged(f"m{i}", 1_760_000_000_000 + 60_000 * t, value[:, None], 700, 60_000.0) for i, value in enumerate(values)]


def test_the_champion_does_not_beat_itself(detector: Detector) -> None:
    own = Detector(detector.artifact, "cpu", Options())

    verdict = compare(own, own, waves(10), seed=0)

    assert not verdict.passed
    assert verdict.figures["surprise"]["difference"]["value"] == 0
    assert verdict.figures["injected_told"]["champion"] > 0.2


def test_few_series_are_no_ground_for_a_verdict(detector: Detector) -> None:
    verdict = compare(detector, detector, waves(3), seed=0)

    assert not verdict.passed
    assert "3 series" in verdict.reason


def test_incidents_lie_in_the_later_part_and_are_the_same_for_all_models() -> None:
    judged = waves(40)

    one, other = inject(judged, 5), inject(judged, 5)

    for series, a, b in zip(judged, one, other, strict=True):
        assert series.later <= a.begin < a.end <= len(series.value)
        np.testing.assert_array_equal(a.value, b.value)
        changed = np.flatnonzero((a.value != series.value).any(axis=1))
        assert len(changed)
        assert a.begin <= changed.min() <= changed.max() < a.end
