"""Generated series to pretrain and to calibrate on: what metrics look like, without anybody's data.

Every series has its own sampling interval (1 minute to 1 hour) and is a sum of parts (daily shapes, other periods, trends, level
changes, noise of several kinds) put through one of the transforms that metrics go through (rates, counts, quantised, clipped).
None of it is labelled anomalous: bursts and level changes are part of normal life here, as they are in production. Calm series, which
the threshold is calibrated on, are the same without bursts and changes of level: those are what an alert is for.
"""

from typing import Final

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_DAY_S: Final = 86_400.0


def series(count: int, samples: int, seed: int, *, calm: bool = False) -> tuple[Floats, Floats]:
    """`count` series of `samples` values each.

    Returns values (count, samples) and sampling intervals in seconds (count,).
    """
    rng = np.random.default_rng(seed)
    values = np.empty((count, samples))
    steps = np.empty(count)
    for i in range(count):
        steps[i] = 10.0 ** rng.uniform(np.log10(60.0), np.log10(3600.0))
        values[i] = _one(rng, samples, steps[i], calm=calm)
    return values, steps


def entities(count: int, samples: int, features: int, seed: int) -> tuple[Floats, Floats]:
    """`count` calm entities with `features` values each, of which about half follow a common driver.

    Returns values (count, samples, features) and sampling intervals in seconds (count,).
    """
    rng = np.random.default_rng(seed)
    values = np.empty((count, samples, features))
    steps = 10.0 ** rng.uniform(np.log10(60.0), np.log10(3600.0), count)
    for i in range(count):
        driver = _standard(_one(rng, samples, steps[i], calm=True))
        for k in range(features):
            x = _one(rng, samples, steps[i], calm=True)
            values[i, :, k] = x if rng.random() < 0.5 else rng.normal() * driver + rng.uniform(0.05, 0.5) * _standard(x)
    return values, steps


def _standard(x: Floats) -> Floats:
    return np.asarray((x - x.mean()) / (x.std() + 1e-9))


def _one(rng: Generator, n: int, step_s: float, *, calm: bool) -> Floats:  # noqa: C901 - a list of independent dice, one line each
    t = np.arange(n)
    if rng.random() < 0.03:  # constant, now and then with a change of level
        x = np.full(n, rng.normal(0, 10.0))
        if rng.random() < 0.5 and not calm:
            x[rng.integers(n) :] += rng.normal()
        return x
    x = np.zeros(n)
    if rng.random() < 0.7:
        x += rng.uniform(0.3, 3.0) * _daily(rng, t, _DAY_S / step_s)
    for _ in range(rng.choice(3, p=[0.6, 0.3, 0.1])):
        x += rng.uniform(0.2, 2.0) * _periodic(rng, t / 10.0 ** rng.uniform(np.log10(6), np.log10(600)) + rng.random())
    if rng.random() < 0.3:
        x += rng.normal(0, 2.0) * t / n
    if rng.random() < 0.3 and not calm:
        for at in rng.integers(0, n, rng.integers(1, 4)):
            x[at:] += rng.normal(0, 1.5)
    if rng.random() < 0.12:
        x += rng.uniform(0.5, 2.0) * _telegraph(rng, n)
    if rng.random() < 0.2:
        x += rng.uniform(0.02, 0.2) * np.cumsum(rng.standard_normal(n))
    if rng.random() < 0.4:
        x += rng.uniform(0.2, 1.5) * _ar1(rng, n, rng.uniform(0.5, 0.99))
    x += _noise(rng, t, _DAY_S / step_s)
    if rng.random() < 0.2 and not calm:
        x += _bursts(rng, n)
    x = _transformed(rng, x)
    if rng.random() < 0.5:
        x = x * 10.0 ** rng.uniform(-2, 5) + rng.choice([0.0, 10.0 ** rng.uniform(-1, 5)])
    return x


def _periodic(rng: Generator, phase: Floats) -> Floats:
    """A shape of period 1 with amplitude about 1: sines, square, bumps, saw, pulses."""
    cycle = phase % 1.0
    match int(rng.integers(5)):
        case 0:
            weights = rng.normal(0, 1.0, 3) / np.arange(1, 4)
            return np.asarray(sum(w * np.sin(2 * np.pi * (k + 1) * (phase + rng.random())) for k, w in enumerate(weights)))
        case 1:
            return np.where(cycle < rng.uniform(0.2, 0.8), 1.0, -1.0)
        case 2:
            return np.asarray(np.exp(-0.5 * ((cycle - 0.5) / rng.uniform(0.05, 0.2)) ** 2))
        case 3:
            return np.asarray(2.0 * cycle - 1.0)
        case _:
            return np.where(cycle < rng.uniform(0.01, 0.1), rng.uniform(1.0, 4.0), 0.0)


def _daily(rng: Generator, t: NDArray[np.int64], day: float) -> Floats:
    shape = _periodic(rng, t / day + rng.random())
    if rng.random() < 0.5:
        weekend = (t / day + 7 * rng.random()) % 7 >= 5
        shape = np.where(weekend, rng.uniform(0.2, 0.9) * shape, shape)
    return shape


def _telegraph(rng: Generator, n: int) -> Floats:
    flips = rng.random(n) < 1.0 / 10.0 ** rng.uniform(1, 2.5)
    return np.asarray(np.cumsum(flips) % 2, np.float64)


def _ar1(rng: Generator, n: int, a: float) -> Floats:
    noise = rng.standard_normal(n) * np.sqrt(1.0 - a * a)
    x = np.empty(n)
    level = 0.0
    for i in range(n):
        level = a * level + noise[i]
        x[i] = level
    return x


def _noise(rng: Generator, t: NDArray[np.int64], day: float) -> Floats:
    n = len(t)
    noise = rng.standard_normal(n) if rng.random() < 0.6 else rng.standard_t(rng.uniform(2.5, 8.0), n)
    if rng.random() < 0.25:
        noise = noise * (1.0 + 0.8 * np.sin(2 * np.pi * (t / day + rng.random())))
    return np.asarray(10.0 ** rng.uniform(-2, 0) * noise)


def _bursts(rng: Generator, n: int) -> Floats:
    impulses = (rng.random(n) < 10.0 ** rng.uniform(-3, -1.7)) * rng.exponential(rng.uniform(0.5, 3.0), n)
    decay = rng.uniform(0.0, 0.9)
    kernel = decay ** np.arange(40)
    return np.asarray(np.convolve(impulses, kernel)[:n])


def _transformed(rng: Generator, x: Floats) -> Floats:  # noqa: PLR0911 - a table of transforms
    match int(rng.choice(9, p=[0.5, 0.1, 0.08, 0.06, 0.08, 0.06, 0.06, 0.03, 0.03])):
        case 0:
            return x
        case 1:
            return np.asarray(np.exp(np.clip(x, -6, 6)))
        case 2:
            return np.maximum(x, 0.0)
        case 3:
            return np.clip(x, *np.sort(np.quantile(x, rng.uniform(0, 1, 2))))
        case 4:
            return rng.poisson(np.exp(np.clip(x, -3, 5))).astype(np.float64)
        case 5:
            return np.where(rng.random(len(x)) < rng.uniform(0.02, 0.3), np.abs(x), 0.0)
        case 6:
            unit = max(float(np.std(x)), 1e-6) / rng.uniform(0.5, 4.0)
            return np.asarray(np.round(x / unit) * unit)
        case 7:  # a counter that nobody differentiated
            return np.cumsum(np.abs(x))
        case _:  # the same with restarts
            total = np.cumsum(np.abs(x))
            restarts = np.sort(rng.integers(0, len(x), rng.integers(1, 4)))
            for at in restarts:
                total[at:] -= total[at]
            return np.asarray(np.abs(total))
