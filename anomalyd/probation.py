"""Whether a model that has just begun to score a stream may stay.

It goes where it came from when

- one of its scores is not finite, or
- more alerts fire than k times what the alert budget allows for the time watched, or than k times what fired before the swap where that is
  more: so many that chance would bring them once in ten thousand times, and at least ten, because one incident alarms many series.

Counted is over all partitions of the stream that this instance has. When enough was seen without such a finding, the model stays.
"""

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Terms:
    """What a model has to keep to."""

    times: float = 3.0
    """k: alerts of so many budgets are too many."""
    least: int = 10
    """Fewer alerts prove nothing."""
    doubt: float = 1e-4
    """How often chance may bring as many."""
    enough: float = 20.0
    """Alerts that the budget allows in a time after which the model has proved itself."""


@dataclass(slots=True)
class _Count:
    fired: int = 0
    allowed: float = 0.0


_USUAL_AFTER: Final = 5.0
"""Alerts that the budget must have allowed before it is known how many usually fire."""


class Probation:
    """The one of a stream.

    Args:
        terms: what has to be kept to.
    """

    def __init__(self, terms: Terms | None = None) -> None:
        self.terms = terms or Terms()
        self.on = False
        """A model is being watched."""
        self._before = _Count()
        self._now = _Count()

    def begin(self) -> None:
        """Another model begins to score."""
        if not self.on:  # what one does that has not proved itself says nothing of what is usual
            self._before.fired += self._now.fired
            self._before.allowed += self._now.allowed
        self._now, self.on = _Count(), True

    def count(self, fired: int, allowed: float, unsound: int) -> str:
        """Counts what came of a batch; returns why the model must go, or nothing.

        Args:
            fired: alerts.
            allowed: by the budget, for the time watched.
            unsound: scores that are not finite.
        """
        self._now.fired += fired
        self._now.allowed += allowed
        if not self.on:
            return ""
        terms, now = self.terms, self._now
        if unsound:
            return f"{unsound} scores are not finite"
        usual = self._before.fired / self._before.allowed if self._before.allowed >= _USUAL_AFTER else 0.0
        most = terms.times * max(1.0, usual) * now.allowed
        if now.fired >= max(terms.least, math.ceil(most)) and _tail(now.fired, most) < terms.doubt:
            return f"{now.fired} alerts fired, and {most / terms.times:.3g} were to be expected"
        if now.allowed >= terms.enough:
            self.on = False
        return ""

    def end(self) -> None:
        """A model scores that is not watched. What one did that was does not count: it had not proved itself."""
        if self.on:
            self._now, self.on = _Count(), False


def _tail(count: int, mean: float) -> float:
    """How likely so many or more are of a Poisson distribution, for counts above the mean: at most its first term times a geometric sum."""
    if mean <= 0:
        return 0.0
    first = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1))
    return min(1.0, first / (1.0 - mean / (count + 1)))
