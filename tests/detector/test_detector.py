"""The detector as a library."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

import anomalyd.detector.detector
from anomalyd.batch import ARMED, WARMUP
from anomalyd.detector import Detector, Options
from anomalyd.errors import ArtifactError
from tests.detector.population import MINUTE_MS, Floats, assert_same_bits, every, feed


def noisy(count: int, seed: int = 0) -> Floats:
    return 10.0 + np.random.default_rng(seed).standard_normal(count)


def test_docstring_example_runs() -> None:
    result = doctest.testmod(anomalyd.detector.detector)

    assert result.attempted > 0
    assert result.failed == 0


def test_example_of_the_design_finds_a_spike() -> None:
    """`Detector.pretrained().update(series_keys, times, values)`: two series side by side, one with a spike."""
    detector = Detector.pretrained()
    calm, spiky = noisy(600, 1), noisy(600, 2)
    spiky[500] += 25.0
    keys = ["calm", "spiky"] * 600
    verdicts = detector.update(keys, np.repeat(every(600), 2).tolist(), np.stack([calm, spiky], axis=1).ravel())

    strange = np.flatnonzero((verdicts.score >= 1.0) & (verdicts.flags & ARMED > 0))
    np.testing.assert_array_equal(strange, [2 * 500 + 1])
    assert verdicts.observed[1001, 0] > verdicts.high[1001, 0]


def test_update_keeps_state_between_calls(detector: Detector) -> None:
    one, other = Detector(detector.artifact, "cpu"), Detector(detector.artifact, "cpu")
    value, times = noisy(300), every(300)
    whole = one.update(["x"] * 300, times.tolist(), value)
    other.update(["x"] * 120, times[:120].tolist(), value[:120])
    rest = other.update(["x"] * 180, times[120:].tolist(), value[120:])

    np.testing.assert_array_equal(rest.score, whole.score[120:])


def test_update_equals_step(detector: Detector) -> None:
    value = noisy(300)
    assert_same_bits(
        Detector(detector.artifact, "cpu").update(["x"] * 300, every(300).tolist(), value.tolist()), feed(detector, every(300), value)
    )


def test_update_takes_any_kind_of_array_without_compiling_again(detector: Detector) -> None:
    """Columns of a table, read-only arrays, other number types: the compiled step exists once."""
    wide = np.stack([noisy(200), noisy(200, 1)], axis=1)
    frozen, times = wide[:, 0].copy(), every(200)
    expected = Detector(detector.artifact, "cpu").update(["x"] * 200, times.tolist(), wide[:, 0].tolist())
    frozen.flags.writeable = times.flags.writeable = False
    for given in (wide[:, 0], frozen, wide[:, :1], frozen[:, None]):
        assert_same_bits(Detector(detector.artifact, "cpu").update(["x"] * 200, times, given), expected)  # type: ignore[arg-type] # arrays are sequences
    integers = Detector(detector.artifact, "cpu").update(["x"] * 200, times, np.arange(200, dtype=np.int16))  # type: ignore[arg-type] # as above
    np.testing.assert_array_equal(integers.observed[:60, 0], np.arange(60.0))


def test_update_of_nothing(detector: Detector) -> None:
    assert len(Detector(detector.artifact, "cpu").update([], [], [])) == 0


@pytest.mark.parametrize(
    ("keys", "times", "values", "message"),
    [
        (["a"], [0], [float("nan")], "finite"),
        (["a"], [0], [float("inf")], "finite"),
        (["a", "b"], [0, 0], [[1.0, 2.0], [3.0, 4.0]], "2 values, the model wants 1"),
        (["a", "b"], [0], [1.0, 2.0], "2 keys, 1 times and 2 values"),
        (["a"], [0, 1], [1.0, 2.0], "1 keys, 2 times and 2 values"),
        (["a", "b"], [0, 1], [1.0], "2 keys, 2 times and 1 values"),
    ],
)
def test_update_refuses_what_it_cannot_use(
    detector: Detector, keys: list[str], times: list[int], values: list[float], message: str
) -> None:
    """And learns nothing of it: what comes after is as if it had not been."""
    one = Detector(detector.artifact, "cpu")

    with pytest.raises(ValueError, match=message):
        one.update(keys, times, values)

    assert_same_bits(one.update(["c"], [5], [2.0]), Detector(detector.artifact, "cpu").update(["c"], [5], [2.0]))


def test_update_holds_a_million_series_and_refuses_more(detector: Detector) -> None:
    one = Detector(detector.artifact, "cpu")
    many = [str(i) for i in range(1_000_001)]

    with pytest.raises(ValueError, match="more than a million series"):
        one.update(many, [0] * len(many), np.zeros(len(many)))
    assert one.update(["a"], [0], [1.0]).flags[0] & WARMUP


def test_smaller_budget_raises_the_threshold(detector: Detector) -> None:
    value = noisy(400)
    value[300] += 8.0

    def score_for(budget: float) -> float:
        return float(feed(Detector(detector.artifact, "cpu", Options(budget_per_day=budget)), every(400), value).score[300])

    assert score_for(0.01) < score_for(0.1) < score_for(1.0)


def test_budget_is_for_event_time(detector: Detector) -> None:
    """The same samples an hour apart instead of a minute: sixty times fewer tries a day, so each may alarm sooner."""
    value = noisy(400)
    value[300] += 8.0

    a_minute = feed(detector, every(400, MINUTE_MS), value).score[300]
    an_hour = feed(detector, every(400, 60 * MINUTE_MS), value).score[300]
    half_a_minute = feed(detector, every(400, MINUTE_MS // 2), value).score[300]
    a_second = feed(detector, every(400, 1000), value).score[300]

    assert an_hour > a_minute > half_a_minute
    assert a_second == half_a_minute, "samples closer than half a minute are no independent tries"


def test_verdict_has_the_shapes_it_promises(detector: Detector) -> None:
    verdicts = feed(detector, every(150), noisy(150))

    assert verdicts.score.shape == verdicts.evidence.shape == verdicts.flags.shape == (150,)
    for name in ("observed", "expected", "low", "high", "share"):
        assert getattr(verdicts, name).shape == (150, 1)
    assert (verdicts.share == 1.0).all()
    assert (verdicts.low <= verdicts.expected).all()
    assert (verdicts.expected <= verdicts.high).all()


def test_expectation_follows_a_wave(detector: Detector) -> None:
    """Once some periods were seen the forecast goes along with the wave, and nine of ten values lie in the band."""
    t = np.arange(3000)
    value = 100.0 + 20.0 * np.sin(2 * np.pi * t / 144) + 0.5 * np.random.default_rng(0).standard_normal(3000)

    verdicts = feed(detector, every(3000), value)

    late = slice(1500, None)
    expected, low, high = verdicts.expected[late, 0], verdicts.low[late, 0], verdicts.high[late, 0]
    assert np.corrcoef(expected, value[late])[0, 1] > 0.98
    assert np.abs(expected - value[late]).mean() < 1.2 * np.abs(np.diff(value[late])).mean()
    assert ((low <= value[late]) & (value[late] <= high)).mean() > 0.9
    assert (high - low).mean() < 40.0, "a band as wide as the wave says nothing"


def test_cuda_where_there_is_none_is_refused_with_what_to_do(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomalyd.detector.step_torch.cuda_available", lambda: False)

    with pytest.raises(ArtifactError, match="torch sees no GPU; use device: cpu or auto"):
        Detector(detector.artifact, "cuda")


def test_cpu_detector_never_imports_torch() -> None:
    """Half a gigabyte and two seconds that a daemon on CPU does not pay."""
    code = (
        "import sys; from anomalyd.detector import Detector; d = Detector.load(device='cpu'); d.update(['a'], [0], [1.0]);"
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=100).returncode == 0
