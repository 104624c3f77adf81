"""Whether the incident after an incident is told: the same one, or one six tenths as large, some samples behind the first.

    python benchmarks/next_incident.py
    python benchmarks/next_incident.py --detector no-clusters --models DIR

Generated series of a cycle and noise; the first incident comes when a series is 2,000 samples old, in all series at once. Outages that come
again and again, and spikes that come each hour, follow. A variant, as `anomalyd evaluate` has them, is calibrated first.
"""

import argparse
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Detector
from anomalyd.evaluation.ablations.models import prepared
from anomalyd.evaluation.ablations.variants import VARIANTS, VariantDetector
from anomalyd.training.calibrate import openings, stream

Floats = NDArray[np.float64]
Kind = Literal["drop", "shift", "spike"]

SERIES: Final = 60
FIRST: Final = 2000
LASTS: Final = 30
GAPS: Final = (20, 60, 240, 480, 960)


def busy(samples: int, seed: int = 3) -> tuple[Floats, Floats, Floats]:
    """Series (T, N) of cycle and noise, their levels and the standard deviations of their noise, (N,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)[:, None]
    level, noise = 10 ** rng.uniform(0, 4, SERIES), rng.uniform(0.01, 0.08, SERIES)
    cycle = rng.uniform(0, 0.5, SERIES) * np.sin(2 * np.pi * (time / rng.choice([360, 720, 1440], SERIES) + rng.random(SERIES)))
    return level * (1 + cycle + noise * rng.standard_normal((samples, SERIES))), level, level * noise


def strike(kind: Kind, start: int, size: float, value: Floats, level: Floats, noise: Floats) -> None:
    """Puts an incident in, which takes LASTS samples at most."""
    if kind == "drop":
        value[start : start + LASTS] -= size * 0.98 * level
    elif kind == "shift":
        value[start : start + LASTS] += size * (0.6 * level + 10 * noise)
    else:
        value[start : start + 6] += size * (0.8 * level + 12 * noise)


def told(detector: Detector, value: Floats, starts: list[int], step_ms: int) -> list[float]:
    """Share of the series in which an episode opens within LASTS samples of each start."""
    streamed = stream(detector, value.T[:, :, None], np.full(value.shape[1], 1.0 * step_ms))
    opened = openings(streamed.score, streamed.armed, 1.0)
    return [round(float(opened[start : start + LASTS].any(axis=0).mean()), 2) for start in starts]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="anomalyd", choices=["anomalyd", *VARIANTS])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--step", type=int, default=60, help="seconds from sample to sample")
    arguments = parser.parse_args()
    detector: Any = Detector.load(device="cpu")
    if arguments.detector != "anomalyd":
        variant = VARIANTS[arguments.detector]
        detector = VariantDetector(variant, prepared([variant], 0, arguments.models)[variant.name])
    step_ms = 1000 * arguments.step

    print(f"samples from the first incident's end to the next: {GAPS}")
    kinds: tuple[Kind, ...] = ("drop", "shift", "spike")
    for kind in kinds:
        for size in (1.0, 0.6):
            second = []
            for gap in GAPS:
                start = FIRST + LASTS + gap
                value, level, noise = busy(start + 2 * LASTS)
                strike(kind, FIRST, 1.0, value, level, noise)
                strike(kind, start, size, value, level, noise)
                second.append(told(detector, value, [start], step_ms)[0])
            print(f"{kind}, then one {size:g} times as large: {second}")

    series_of_incidents: list[tuple[str, Kind, list[int]]] = [
        ("outages at", "drop", [FIRST + after for after in (0, 300, 900, 1500, 2100)]),
        ("outages at", "drop", [FIRST + 1440 * day for day in range(5)]),
        ("spikes at", "spike", list(range(FIRST, FIRST + 1200, 60))),
    ]
    for name, kind, starts in series_of_incidents:
        value, level, noise = busy(starts[-1] + 2 * LASTS)
        for start in starts:
            strike(kind, start, 1.0, value, level, noise)
        print(f"{name} {[start - FIRST for start in starts]}: {told(detector, value, starts, step_ms)}")


if __name__ == "__main__":
    main()
