"""Two backends, one detector: the compiled step against the one in torch, on every device there is."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP, Verdicts
from anomalyd.detector import Detector, Pages, Shape
from tests.detector.population import KINDS, Floats, Step, Times, batch_of, in_torch, mixed, untrained

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
"""Where torch runs here; the compiled step is always on the CPU."""

INTEGERS = ("time", "age", "born", "late_run", "rises", "falls", "kind")
Columns = dict[str, NDArray[np.generic]]


def columns(verdicts: list[Verdicts]) -> Columns:
    """Verdicts step by step as columns (T, N, ...)."""
    return {name: np.array([getattr(v, name) for v in verdicts]) for name in Verdicts.__slots__}


def run(step: Step, pages: Pages, times: Times, values: Floats) -> Columns:
    rows = np.arange(values.shape[1])
    return columns([step(pages, batch_of(rows, t, x)) for t, x in zip(times, values, strict=True)])


def openings(verdicts: Columns) -> NDArray[np.bool_]:
    return np.asarray((verdicts["score"].astype(float) >= 1.0) & (verdicts["flags"].astype(int) & ARMED > 0))


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_backends_agree_over_a_warmed_population(detector: Detector, device: str) -> None:
    """256 series of all kinds over 400 steps, each backend with its own state: scores to 1e-3, the same openings of episodes.

    The memories are in fixed point, and a prototype is chosen by comparing distances: where two are equal to six digits, a last
    bit decides, and the two memories part ways for a while. So one sample in ten thousand may differ by more than 1e-3 (seen: by at
    most 2.6e-3, at scores far below the threshold), but no episode may open in one backend only.
    """
    times, values = mixed(256, 400)
    compiled, in_tensors = detector.new_pages(256), detector.new_pages(256)

    a = run(detector.step, compiled, times, values)
    b = run(in_torch(detector, device), in_tensors, times, values)

    difference = np.abs(a["score"].astype(float) - b["score"].astype(float))
    print(f"score difference on {device}: median {np.median(difference):.1e}, largest {difference.max():.1e}")  # noqa: T201 - for -s
    assert np.median(difference) < 1e-6
    assert (difference > 1e-3).mean() < 1e-4
    assert difference.max() < 2e-2
    assert openings(a).sum() > 100
    np.testing.assert_array_equal(openings(b), openings(a))
    # below the threshold ARMED compares two nearly equal numbers, and nobody looks at it
    armed_matters = (a["score"].astype(float) >= 1.0) * ARMED
    mask = armed_matters | WARMUP | LATE | REPEATED | COUNTER
    np.testing.assert_array_equal(b["flags"].astype(int) & mask, a["flags"].astype(int) & mask)
    for flag in (WARMUP, LATE, REPEATED, COUNTER):
        assert (a["flags"].astype(int) & flag).any(), "the population must contain every rule"
    for name in INTEGERS:
        np.testing.assert_array_equal(in_tensors.field(name), compiled.field(name), err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_one_step_from_the_same_state_agrees_in_every_column(detector: Detector, device: str) -> None:
    """Torch starts each step from the compiled step's rows, so that nothing adds up: scores to 1e-4, values to 1e-5 of the spread."""
    times, values = mixed(len(KINDS) * 8, 400, seed=7)
    rows = np.arange(values.shape[1])
    step, compiled, in_tensors = in_torch(detector, device), detector.new_pages(len(rows)), detector.new_pages(len(rows))
    for t in range(400):
        batch = batch_of(rows, times[t], values[t])
        compare = t % 5 == 0 or t in (64, 65, 100)
        in_tensors.buffer[:] = compiled.buffer
        mean, sd = compiled.field("mean").copy(), np.sqrt(compiled.field("variance")) + 1e-9
        a = detector.step(compiled, batch)
        if not compare:
            continue
        b = step(in_tensors, batch)

        np.testing.assert_allclose(b.score, a.score, rtol=0, atol=1e-4)
        np.testing.assert_allclose(b.evidence, a.evidence, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(b.observed, a.observed)
        np.testing.assert_array_equal(b.share, a.share)
        for name in ("expected", "low", "high"):
            ours, theirs = getattr(a, name), getattr(b, name)
            assert (np.abs(theirs - ours) <= 1e-5 * np.maximum(sd, 1e-4 * np.abs(mean)) + 1e-4 * np.abs(ours - mean)).all(), name
        for name in INTEGERS:
            np.testing.assert_array_equal(in_tensors.field(name), compiled.field(name), err_msg=name)


SHAPES = [
    Shape(1, 50, 2, 3, joint=False),
    Shape(3, 7, 1, 2, joint=True),
    Shape(2, 32, 1, 4, joint=False),
]
"""The same shapes as in other tests where it does not matter: each one is compiled for ten seconds, once."""


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_backends_agree_for_other_networks(shape: Shape, device: str) -> None:
    """Layout and kernels follow the artifact: other units, layers, codes and several features, joint or one by one."""
    detector = Detector(untrained(shape), "cpu")
    series, samples = 39, 300
    times, wide = mixed(series * shape.features, samples, seed=11)
    values = wide.reshape(samples, shape.features, series).transpose(0, 2, 1)
    times = times[:, :series]
    step, compiled, in_tensors = in_torch(detector, device), detector.new_pages(series), detector.new_pages(series)
    rows, a, b = np.arange(series), [], []
    for t in range(samples):
        batch = batch_of(rows, times[t], np.ascontiguousarray(values[t]))
        a.append(detector.step(compiled, batch))
        b.append(step(in_tensors, batch))

    ours, theirs = columns(a), columns(b)
    difference = np.abs(ours["score"].astype(float) - theirs["score"].astype(float))
    assert np.median(difference) < 1e-5
    assert (difference > 1e-3).mean() < 1e-3
    assert difference.max() < 2e-2
    np.testing.assert_array_equal(openings(theirs), openings(ours))
    np.testing.assert_allclose(theirs["share"].astype(float).sum(axis=2), 1.0, rtol=1e-5)
    np.testing.assert_allclose(theirs["share"].astype(float), ours["share"].astype(float), rtol=0, atol=1e-2)
    for name in INTEGERS:
        np.testing.assert_array_equal(in_tensors.field(name), compiled.field(name), err_msg=name)
