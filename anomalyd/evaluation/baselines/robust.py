"""Robust z: how far a value lies from the median, in itself or for its time of day."""

from typing import Final

import numpy as np

from anomalyd.evaluation.baselines.kernels import LEAST, daily_residual, strongest, window_z
from anomalyd.evaluation.baselines.measure import Floats, Measure, Strangeness, Times, joint

WINDOW: Final = 1000
DAY_MS: Final = 86_400_000
BIN_MS: Final = 300_000
"""Parts of a day that are looked at by themselves, at least one step long."""
DAYS: Final = 7
BAND: Final = 3.0
"""Standard deviations of what counts as usual."""


class RobustZ:
    """|x - median| / (1.4826 MAD) over the last WINDOW samples; of several features the mean of the five largest."""

    blind = LEAST

    def __init__(self, features: int) -> None:
        self._ring, self._ordered = np.zeros((features, WINDOW)), np.zeros((features, WINDOW))
        self._count = np.zeros(1, np.int64)

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        z, centre, spread = np.empty_like(value), np.empty_like(value), np.empty_like(value)
        window_z(value, self._ring, self._ordered, self._count, z, centre, spread)
        raw = np.empty(len(time_ms))
        strongest(z, raw)
        return Strangeness(raw, centre, BAND * spread, np.abs(z))


class SeasonalZ:
    """Robust z of what is left when the usual value of the time of day is taken off: the median of that part of the day over DAYS days."""

    blind = LEAST

    def __init__(self, features: int, step_ms: int) -> None:
        self._bin_ms = max(BIN_MS, step_ms)
        bins = -(-DAY_MS // self._bin_ms)
        self._days, self._filled = np.zeros((bins, DAYS, features)), np.zeros(bins, np.int64)
        self._mean, self._current, self._count = np.zeros(features), np.zeros(features), np.zeros(3, np.int64)
        self._residual = RobustZ(features)

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        usual = np.empty_like(value)
        part_of_day = time_ms % DAY_MS // self._bin_ms
        daily_residual(value, part_of_day, self._days, self._filled, self._mean, self._current, self._count, usual)
        answer = self._residual.update(time_ms, value - usual)
        return answer._replace(expected=usual + answer.expected)


def robust_z(features: int, _train: Floats | None, _step_ms: int, _seed: int) -> Measure:
    """Makes a robust z."""
    return joint(RobustZ(features), features)


def seasonal_z(features: int, _train: Floats | None, step_ms: int, _seed: int) -> Measure:
    """Makes a seasonal z."""
    return joint(SeasonalZ(features, step_ms), features)
