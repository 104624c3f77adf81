"""The streams of the guard: generated, labelled, the same every time.

Single series: two weeks at 5 minutes of ten kinds, each with four incidents out of five kinds. Entities: a day of train and a day of test
at a minute, six values that follow two drivers, each with five incidents in one or two of the values.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Generator = np.random.Generator

SEED = 20
ROWS = 4032
DAY = 288
FIRST_S = 1_760_000_000 // 86_400 * 86_400
ENTITY_ROWS = 1440
FEATURES = 6
ENTITIES = 2


# --- single series ------------------------------------------------------------------------------------------------


def _wave(rng: Generator) -> Floats:
    return 100 + 20 * np.sin(2 * np.pi * (np.arange(ROWS) / DAY + rng.random())) + 2 * rng.standard_normal(ROWS)


def _working_days(rng: Generator) -> Floats:
    day = np.arange(ROWS) // DAY % 7 < 5
    shape = np.exp(1.5 * np.sin(2 * np.pi * np.arange(ROWS) / DAY) - 1.5)
    return 50 + 100 * shape * np.where(day, 1.0, 0.3) + 2 * rng.standard_normal(ROWS)


def _wandering(rng: Generator) -> Floats:
    x = np.zeros(ROWS)
    steps = rng.standard_normal(ROWS)
    for i in range(1, ROWS):
        x[i] = 0.95 * x[i - 1] + steps[i]
    return 500 + 5 * x


def _counts(rng: Generator) -> Floats:
    return rng.poisson(30 + 15 * np.sin(2 * np.pi * np.arange(ROWS) / DAY)).astype(np.float64)


def _batches(rng: Generator) -> Floats:
    return 10 + np.arange(ROWS) % 24 + 0.7 * rng.standard_normal(ROWS)


def _heavy(rng: Generator) -> Floats:
    return 20 * np.exp(0.25 * rng.standard_normal(ROWS))


def _growing(rng: Generator) -> Floats:
    return 1e9 * (1 + np.arange(ROWS) / ROWS) + 2e7 * np.sin(2 * np.pi * np.arange(ROWS) / DAY) + 4e6 * rng.standard_normal(ROWS)


def _per_cent(rng: Generator) -> Floats:
    return np.round(30 + 8 * np.sin(2 * np.pi * np.arange(ROWS) / DAY) + 2 * rng.standard_normal(ROWS))


def _switched(rng: Generator) -> Floats:
    return np.where(np.arange(ROWS) % 96 < 36, 80.0, 12.0) + rng.standard_normal(ROWS)


def _rate(rng: Generator) -> Floats:
    """Of a counter, which is summed up when the incidents are in."""
    return 3e4 + 1e4 * np.sin(2 * np.pi * np.arange(ROWS) / DAY) + 1e3 * rng.standard_normal(ROWS)


BASES: dict[str, Callable[[Generator], Floats]] = {
    "wave": _wave,
    "working-days": _working_days,
    "wandering": _wandering,
    "counts": _counts,
    "batches": _batches,
    "heavy": _heavy,
    "growing": _growing,
    "per-cent": _per_cent,
    "switched": _switched,
    "counter": _rate,
}


def _spike(x: Floats, noise: float, rng: Generator) -> Floats:
    return x + rng.uniform(12, 20) * noise


def _drop(x: Floats, _noise: float, rng: Generator) -> Floats:
    return x * rng.uniform(0.0, 0.3)


def _shift(x: Floats, noise: float, rng: Generator) -> Floats:
    return x + rng.uniform(10, 16) * noise


def _burst(x: Floats, noise: float, rng: Generator) -> Floats:
    return x + rng.uniform(6, 10) * noise * rng.standard_normal(len(x))


def _stuck(x: Floats, _noise: float, _rng: Generator) -> Floats:
    return np.full(len(x), x[0])


INCIDENTS: list[tuple[Callable[[Floats, float, Generator], Floats], tuple[int, int]]] = [
    (_spike, (2, 5)),
    (_drop, (15, 40)),
    (_shift, (40, 90)),
    (_burst, (20, 60)),
    (_stuck, (90, 150)),
]
"""What happens, and for how many rows, at least and at most."""


def single(folder: Path) -> None:
    """Writes the series into a folder."""
    for number, (name, base) in enumerate(BASES.items()):
        rng = np.random.default_rng([SEED, number])
        value = base(rng)
        noise = float(np.median(np.abs(np.diff(value)))) or 1.0
        label = np.zeros(ROWS, np.uint8)
        for k in range(4):
            change, (least, most) = INCIDENTS[(number + k) % len(INCIDENTS)]
            first = 1200 + 700 * k + int(rng.integers(300))
            rows = slice(first, first + int(rng.integers(least, most + 1)))
            value[rows] = change(value[rows], noise, rng)
            label[rows] = 1
        if name == "counter":
            value = np.cumsum(np.maximum(np.round(value), 0))
        np.savez(folder / f"{name}.npz", timestamp=FIRST_S + 300 * np.arange(ROWS), value=value, label=label)


# --- entities -----------------------------------------------------------------------------------------------------


def _drivers(rows: int, rng: Generator) -> Floats:
    """(rows, 2): a wave of four hours that is never quite the same, and load that wanders."""
    wander = np.zeros(rows)
    steps = rng.standard_normal(rows)
    for i in range(1, rows):
        wander[i] = 0.98 * wander[i - 1] + 0.2 * steps[i]
    wave = np.sin(2 * np.pi * np.cumsum(rng.uniform(0.9, 1.1, rows)) / 240)
    return np.column_stack([wave, wander])


def entities(folder: Path) -> None:
    """Writes the entities with what is known about causes into a folder."""
    causes: dict[str, list[dict[str, object]]] = {}
    for number in range(ENTITIES):
        rng = np.random.default_rng([SEED, 100 + number])
        scale = 10.0 ** np.array([0, 1, 2, 0, 3, -2])
        loadings = np.array([[1, 0.2], [0.8, -0.5], [0.1, 1], [-0.7, 0.7], [0.5, 0.5], [0, -1]])
        value = 5 + _drivers(2 * ENTITY_ROWS, rng) @ loadings.T + 0.15 * rng.standard_normal((2 * ENTITY_ROWS, FEATURES))
        train, test, label = value[:ENTITY_ROWS], value[ENTITY_ROWS:].copy(), np.zeros(ENTITY_ROWS, np.uint8)
        found = causes.setdefault(f"entity-{number}", [])
        for k in range(5):
            start = 150 + 250 * k + int(rng.integers(100))
            rows = slice(start, start + int(rng.integers(20, 45)))
            dims = np.sort(rng.choice(FEATURES, 1 + k % 2, replace=False))
            for dim in dims.tolist():
                x = test[rows, dim]
                # The value of another time: usual in itself, not beside the others. The others are to be seen in the value alone.
                wild = 0.6 * rng.standard_normal(len(x))
                test[rows, dim] = [test[: len(x), dim], x + 1.2, np.full(len(x), x[0]), 0.8 * x, x + wild][k]
            label[rows] = 1
            found.append({"start": rows.start, "end": rows.stop, "dims": [dim + 1 for dim in dims.tolist()]})
        np.savez(folder / f"entity-{number}.npz", train=scale * train, test=scale * test, label=label)
    (folder / "interpretation.json").write_text(json.dumps(causes))
