"""How unusual an alert is, in days: the calibration of the threshold, read the other way round.

On normal data the evidence E reaches a value at a rate that falls by `slope` powers of ten for each unit of E (docs/detection.md, step 6),
and the threshold T = E / score is where this rate is the alert budget. So evidence E comes once in 10^(slope (E - T)) / budget days.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple

_MOST_POWERS: Final = 300.0
"""10 to this is still a number."""


class Recurrence(NamedTuple):
    """How often normal data looks as strange as this."""

    days: float
    """Event time from one such moment to the next, in the mean."""
    at_least: bool
    """It is longer than that, nobody knows by how much."""


@dataclass(frozen=True, slots=True)
class Rarity:
    """What score and evidence mean for one stream."""

    budget_per_day: float
    """False alarms per series and day for which a score of 1 stands."""
    slope: float
    """Powers of ten by which the rate falls with each unit of evidence."""
    lowest: float
    """No threshold is lower than this; where it is the threshold, the rate there is below the budget."""

    def recurrence(self, score: float, evidence: float) -> Recurrence | None:
        """How often normal data has such a score, by the evidence behind it; None where one of them says nothing (0)."""
        if score <= 0.0 or evidence <= 0.0:
            return None
        threshold = evidence / score
        powers = min(self.slope * (evidence - threshold), _MOST_POWERS)
        return Recurrence(10.0**powers / self.budget_per_day, threshold <= self.lowest * (1 + 1e-9))
