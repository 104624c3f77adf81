"""Series, batches and artifacts that the detector's tests share."""

from collections.abc import Callable, Iterable
from dataclasses import fields

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector import Artifact, Calibration, Detector, Pages, Shape
from anomalyd.detector.step_torch import TorchBackend
from anomalyd.detector.weights import tensor_shapes

Floats = NDArray[np.float64]
Times = NDArray[np.int64]
Step = Callable[[Pages, SampleBatch], Verdicts]

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000


def untrained(shape: Shape, seed: int = 0) -> Artifact:
    """An artifact of any shape with seeded random weights."""
    rng = np.random.default_rng(seed)
    bound = shape.units**-0.5
    tensors = {name: rng.uniform(-bound, bound, size).astype(np.float32) for name, size in tensor_shapes(shape).items()}
    return Artifact("untrained", "0", shape, Calibration(-1.5, 0.2, 6.0), tensors)


def every(count: int, step_ms: int = MINUTE_MS) -> Times:
    """Event times of `count` samples taken every `step_ms`."""
    return START_MS + step_ms * np.arange(count, dtype=np.int64)


def batch_of(row: NDArray[np.integer] | int, time_ms: Times | int, value: Floats | float) -> SampleBatch:
    """A batch from rows, times and values (n,) or (n, F); scalars are repeated."""
    row, time_ms = np.broadcast_arrays(np.atleast_1d(row), np.atleast_1d(time_ms))
    value = np.asarray(value, np.float64)
    # copied: what is broadcast cannot be written, and the step would be compiled again for it
    value = np.array(value if value.ndim == 2 else np.broadcast_to(value, len(row))[:, None], order="C")
    return SampleBatch(row.astype(np.int32), time_ms.astype(np.int64), value, np.arange(len(row), dtype=np.int32))


def feed(detector: Detector, time_ms: Times, value: Floats, pages: Pages | None = None, row: int = 0) -> Verdicts:
    """The verdicts on one series, given as one batch."""
    return detector.step(pages or detector.new_pages(row + 1), batch_of(row, time_ms, value))


def taken(batch: SampleBatch, which: NDArray[np.integer] | slice) -> SampleBatch:
    """Some samples of a batch."""
    return batch.part(which)


def joined(verdicts: Iterable[Verdicts]) -> Verdicts:
    """Verdicts on one batch after the other as verdicts on all of them."""
    parts = list(verdicts)
    return Verdicts(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Verdicts)))


def assert_same_bits(a: Verdicts, b: Verdicts) -> None:
    """Equal to the last bit, column by column."""
    for f in fields(Verdicts):
        assert getattr(a, f.name).tobytes() == getattr(b, f.name).tobytes(), f.name


def in_torch(detector: Detector, device: str = "cpu", tally: NDArray[np.int64] | None = None) -> Step:
    """The step of the same detector in torch; `tally` is added to."""
    rule = detector.threshold, np.zeros(3, np.int64) if tally is None else tally
    backend = TorchBackend(detector.layout, detector.artifact, device, detector.fixed_kind)

    def step(pages: Pages, batch: SampleBatch) -> Verdicts:
        n, f = len(batch), detector.features
        a, b, c, d = np.empty((4, n, f))
        verdicts = Verdicts(np.empty(n), np.empty(n), a, b, c, d, np.empty((n, f), np.float32), np.empty(n, np.uint8))
        backend.step(pages, batch, verdicts, *rule)
        return verdicts

    return step


Series = tuple[Times, Floats]


def _gaussian(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, 50 + 3 * x


def _constant(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, np.full(len(x), rng.choice([0.0, 1.0, -273.15, 1e9]))


def _intermittent(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, np.where(rng.random(len(x)) < 0.1, np.abs(x) * 100, 0.0)


def _counter(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    total = np.cumsum(rng.poisson(100, len(x))).astype(np.float64)
    for at in rng.integers(len(x) // 4, len(x), 2):
        total[at:] -= total[at]
    return times, total


def _gaps(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    pauses = np.cumsum(rng.random(len(x)) < 0.01) * 50 * step_ms
    return times + pauses, 10 * np.sin(np.arange(len(x)) / 15) + x


def _late(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    times = times - np.where(rng.random(len(x)) < 0.1, 3 * step_ms, 0)
    half = len(x) // 2
    times[half : half + 20] -= 100 * step_ms  # long enough for the clock to count as set back
    return times, x


def _repeated(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    for at in np.flatnonzero(rng.random(len(x) - 1) < 0.2) + 1:
        times[at], x[at] = times[at - 1], x[at - 1]
    return times, x


def _shifts(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, x + 10 * np.cumsum(rng.random(len(x)) < 0.01)


def _walk(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, np.cumsum(x)


def _heavy(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, rng.standard_t(2.5, len(x))


def _tiny(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, 1e-12 * x


def _offset(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, 2.0**40 + np.round(100 * x)


def _daily(rng: Generator, times: Times, x: Floats, step_ms: int) -> Series:
    return times, 20 * np.sin(2 * np.pi * np.arange(len(x)) / 144) + x


KINDS = (_gaussian, _constant, _intermittent, _counter, _gaps, _late, _repeated, _shifts, _walk, _heavy, _tiny, _offset, _daily)


def mixed(series: int, samples: int, seed: int = 0) -> Series:
    """Series of all KINDS in turn, with spikes: event times and values, both (samples, series)."""
    rng = np.random.default_rng(seed)
    time_ms, value = np.empty((samples, series), np.int64), np.empty((samples, series))
    for i in range(series):
        step_ms = int(rng.choice([1000, 10_000, MINUTE_MS, 5 * MINUTE_MS]))
        jitter = rng.integers(0, step_ms // 5, samples) if rng.random() < 0.3 else 0
        kind = KINDS[i % len(KINDS)]
        time_ms[:, i], value[:, i] = kind(rng, every(samples, step_ms) + jitter, rng.standard_normal(samples), step_ms)
        if samples > 200 and kind is not _counter:
            value[rng.integers(150, samples, 2), i] += 15 * max(float(np.std(value[:, i])), 1.0)
    return time_ms, value
