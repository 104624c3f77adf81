"""Speed of the detector alone: samples per second by batch size and number of series, and where the time goes.

    python benchmarks/step.py [--series 10000 100000 1000000] [--batch 256 1024 4096] [--device cpu|cuda] [--json]

One core, warmed up, in-order keys, one-minute steps; process time, so that a busy machine disturbs less.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Detector, Pages, SampleBatch
from anomalyd.detector import recipe as R  # noqa: N812 - constants
from anomalyd.detector.step_cpu import LANES, build_cells, evidence, novelty, remember
from anomalyd.jit import njit

STEP_MS = 60_000
Floats = NDArray[np.float32]
Shorts = NDArray[np.int16]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--batch", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    detector = Detector.load(device=options.device)
    result: dict[str, Any] = {"device": options.device, "row_bytes": detector.layout.row_bytes, "us_per_sample": []}
    for series in options.series:
        pages = detector.new_pages(series)
        warm(detector, pages, series)
        for batch in options.batch:
            times = sorted(measure(detector, pages, series, batch) for _ in range(options.repeat))
            row = {"series": series, "batch": batch, "min": times[0], "median": times[len(times) // 2], "max": times[-1]}
            result["us_per_sample"].append(row)
            print(f"{series:>9,} series, batches of {batch:>5,}: " + spread(times), file=sys.stderr, flush=True)
    if options.device == "cpu":
        whole = min(row["min"] for row in result["us_per_sample"])
        result["stages_us"] = stages(detector, whole)
        for name, us in result["stages_us"].items():
            print(f"{name:<32} {us:6.3f} us  {us / whole:5.0%}", file=sys.stderr)
    if options.json:
        print(json.dumps(result))


def spread(times: list[float]) -> str:
    """Minimum, median and maximum as text."""
    middle = times[len(times) // 2]
    return f"{times[0]:.2f} / {middle:.2f} / {times[-1]:.2f} us a sample, {1e6 / middle:,.0f} samples/s"


def samples(rng: np.random.Generator, rows: NDArray[np.int32], tick: int) -> SampleBatch:
    """One sample of each of these rows."""
    return SampleBatch(
        rows, np.full(len(rows), tick * STEP_MS), 5.0 + rng.standard_normal((len(rows), 1)), np.arange(len(rows), dtype=np.int32)
    )


def warm(detector: Detector, pages: Pages, series: int) -> None:
    """Ages every series beyond the warm-up of the recipe, so that all stages run."""
    rng = np.random.default_rng(1)
    rows = np.arange(series, dtype=np.int32)
    for tick in range(R.WARMUP_SAMPLES + 10):
        detector.step(pages, samples(rng, rows, tick))


def measure(detector: Detector, pages: Pages, series: int, batch: int) -> float:
    """Microseconds a sample, over about 200,000 samples in batches of neighbours."""
    rng = np.random.default_rng(2)
    per_tick = max(1, series // batch)
    count = max(1, 200_000 // batch)
    batches = []
    for k in range(count):
        first = k % per_tick * batch
        rows = np.arange(first, min(first + batch, series), dtype=np.int32)
        batches.append(samples(rng, rows, measure.tick + k // per_tick))  # type: ignore[attr-defined]
    measure.tick += count // per_tick + 1  # type: ignore[attr-defined]
    began = time.process_time()
    for each in batches:
        detector.step(pages, each)
    return (time.process_time() - began) / sum(map(len, batches)) * 1e6


measure.tick = 1000  # type: ignore[attr-defined] # event time goes on from measurement to measurement


def stages(detector: Detector, whole_us: float) -> dict[str, float]:
    """Microseconds of the large parts, each alone and in cache; the rest is scaling, rules, guards, memory."""
    shape = detector.artifact.shape
    h, z = shape.units, shape.latent
    weights = detector.artifact.packed()
    layer = build_cells(h)
    x, state, gates = np.zeros((LANES, max(h, z)), np.float32), np.zeros((4, LANES, h), np.float32), np.zeros(LANES * 4 * h, np.float32)
    memories = [(np.zeros((2, n), np.float32), np.zeros((n + 1, R.PROTOTYPES), np.int16)) for n in (1 + z, 3)]
    histograms, distances = np.zeros((4, R.BINS), np.int16), np.zeros(R.PROTOTYPES, np.float32)
    noise = np.random.default_rng(3).standard_normal(4096).astype(np.float32)
    decoder = (2 + h + 1) * 4 * h + z * h + z
    no_term = np.float32(0.0)

    @njit
    def cells(n: int, w: Floats, x: Floats, state: Floats, gates: Floats) -> None:
        for _ in range(n // LANES):
            layer(w, 0, x, 2, state[0], state[1], gates)
            layer(w, decoder, x, z, state[2], state[3], gates)

    @njit
    def prototypes(n: int, noise: Floats, moments: Floats, memory: Shorts, distances: Floats) -> None:
        size = memory.shape[0] - 1
        for i in range(n):
            v = noise[i % 4000 : i % 4000 + size]
            centre, weight = memory[:size].reshape(-1), memory[size]
            distance, nearest = novelty(v, moments[1], centre, weight, distances)
            remember(v, moments[0], moments[1], centre, weight, distance, nearest, i)

    @njit
    def calibrations(n: int, noise: Floats, histograms: Shorts) -> None:
        for i in range(n):
            for channel in range(4):
                evidence(histograms[channel], abs(noise[(4 * i + channel) % 4096]), i, no_term, 0)

    def timed(run: Callable[..., None], *columns: object, n: int = 100_000) -> float:
        run(10, *columns)
        began = time.process_time()
        run(n, *columns)
        return (time.process_time() - began) / n * 1e6

    parts = {
        "LSTM encoder and decoder": timed(cells, weights, x, state, gates),
        "two prototype memories": sum(timed(prototypes, noise, *memory, distances) for memory in memories),
        "four tail calibrations": timed(calibrations, noise, histograms),
    }
    return {**parts, "scaling, rules, guards, memory": whole_us - sum(parts.values())}


if __name__ == "__main__":
    main()
