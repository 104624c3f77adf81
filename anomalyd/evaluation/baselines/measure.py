"""What a baseline is: a name, and a way to make the measure of strangeness of one series."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anomalyd.errors import ConfigError
from anomalyd.evaluation.baselines.kernels import smoothed

Floats = NDArray[np.float64]
Times = NDArray[np.int64]

SPAN = 10.0
"""Scores of several features are smoothed over so many samples: "still abnormal", not "new just now"."""


class Strangeness(NamedTuple):
    """A measure's answer, finite throughout. Letters: n samples, F features."""

    raw: Floats
    """Higher is stranger, shape (n,)."""
    expected: Floats
    """What would have been usual, or the value itself where the measure has no idea of it, shape (n, F)."""
    spread: Floats
    """How far from that would be usual too, at least 0, shape (n, F)."""
    part: Floats
    """Each feature's part of the score in any unit, at least 0; all zero where the measure cannot tell, shape (n, F)."""


class Measure(Protocol):
    """Strangeness of the samples of one series, each scored before it is learned. State is kept from call to call."""

    @property
    def blind(self) -> int:
        """Samples that it must see before it can say anything; it says 0 until then."""

    def update(self, time_ms: Times, value: Floats, /) -> Strangeness:
        """Scores the next samples: times (n,), values (n, F) within ± VALUE_LIMIT."""


Make = Callable[[int, Floats | None, int, int], Measure]
"""(features, train (m, F) if there is one, step in ms, seed) → a fresh measure."""


@dataclass(frozen=True)
class Baseline:
    """A way to score that others use, to be compared with."""

    name: str
    help: str
    """One line for people."""
    make: Make
    seeded: bool = False
    """Whether the seed makes a difference."""


class Smoothed:
    """A measure whose score is smoothed over SPAN samples."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self._level = np.zeros(1)

    @property
    def blind(self) -> int:
        """As long as what it smooths."""
        return self._measure.blind

    def update(self, time_ms: Times, value: Floats) -> Strangeness:
        """See Measure."""
        answer = self._measure.update(time_ms, value)
        smoothed(answer.raw, self._level, SPAN)
        return answer


def joint(measure: Measure, features: int) -> Measure:
    """The measure itself for one feature, smoothed for several."""
    return measure if features == 1 else Smoothed(measure)


def of_values(raw: Floats, value: Floats, part: Floats | None = None) -> Strangeness:
    """The answer of a measure that has no expectation."""
    return Strangeness(raw, value.copy(), np.zeros_like(value), np.zeros_like(value) if part is None else part)


def optional(module: str) -> Any:  # noqa: ANN401 - a module
    """A module that the extra `evaluation` brings. Raises ConfigError where it is missing."""
    try:
        return import_module(module)
    except ImportError:
        raise ConfigError(f"this detector needs {module.partition('.')[0]}: pip install 'anomalyd[evaluation]'") from None


class Lags:
    """Windows of the newest values of a series of one feature; a series of several is left as it is."""

    def __init__(self, features: int, length: int) -> None:
        self.width = length if features == 1 else features
        self._before: Floats | None = None
        self._features = features

    def windows(self, value: Floats) -> Floats:
        """The window that ends with each of `value` (n, F): shape (n, width). In front of the first value stands the first value."""
        if self._features > 1 or not len(value):
            return value
        before = np.full(self.width - 1, value[0, 0]) if self._before is None else self._before
        line = np.concatenate([before, value[:, 0]])
        self._before = line[len(line) - self.width + 1 :]
        return np.lib.stride_tricks.sliding_window_view(line, self.width)
