"""Incidents put into real histories: whether a model would tell them is known for certain, which real incidents seldom allow."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from anomalyd.retrainer.material import Judged

KINDS: Final = ("spike", "shift", "burst", "flat")
LENGTH: Final[dict[str, int]] = {"spike": 3, "shift": 30, "burst": 30, "flat": 60}
"""In samples."""
SIZE: Final = (6.0, 16.0)
"""In units of the series' own noise."""
_BEFORE: Final = 20
"""Samples of the later part in front of one."""


class Injected(NamedTuple):
    """A history with an incident in it."""

    value: NDArray[np.float64]
    """(n, F)"""
    begin: int
    """Its first sample."""
    end: int
    """Behind its last one."""


def inject(judged: Sequence[Judged], seed: int) -> list[Injected]:
    """One incident in the later part of each history; equal seeds, equal incidents, whatever model is judged."""
    return [_injected(series, np.random.default_rng([seed, number])) for number, series in enumerate(judged)]


def _injected(series: Judged, rng: Generator) -> Injected:
    kind = KINDS[int(rng.integers(len(KINDS)))]
    n, features = series.value.shape
    length = min(LENGTH[kind], max(1, (n - series.later) // 2))
    begin = series.later + int(rng.integers(min(_BEFORE, n - series.later - length), n - series.later - length + 1))
    here = slice(begin, begin + length)
    value = series.value.copy()
    for feature in rng.permutation(features)[: int(rng.integers(1, min(3, features) + 1))].tolist():
        column = value[:, feature]
        size = float(rng.uniform(*SIZE)) * float(rng.choice([-1.0, 1.0])) * _noise(column[: series.later])
        match kind:
            case "spike" | "shift":
                column[here] += size
            case "burst":
                column[here] += size / 2 * rng.standard_normal(length)
            case _:
                column[here] = column[begin - 1]
    return Injected(value, begin, begin + length)


def _noise(earlier: NDArray[np.float64]) -> float:
    """The spread of a series from sample to sample, of a Gaussian its standard deviation; never zero."""
    known = earlier[~np.isnan(earlier)]
    steps = np.diff(known)
    spread = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / np.sqrt(2.0) if len(steps) else 0.0
    return spread or float(known.std() if len(known) else 0.0) or 1.0
