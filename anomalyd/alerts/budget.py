"""Whether a partition's normal data is as strange as the calibration says, and by how much the threshold has to give.

The calibration says how often normal data crosses a level of evidence (about once in 1,000 tries, docs/detection.md, step 7). Alarms are
too few to check it by, three a month of a series; crossings of that level, of all series of a partition together, are not. They are
counted against what was expected, and what comes of it is a *correction* of the calibration's intercept, in powers of ten of the rate.

What must not move it are incidents, so it is a robust statistic of whole days:

- A series that has crossed is no try until it has been quiet for a while (`detector/recipe.py`), and crossings that alarm at once are left
  out on both sides: they may be incidents.
- An hour counts at most as much as the largest correction would explain, so that what happens to many series at once is one strange hour.
- A *day* is at least a day of the partition's event time, and long enough for a few crossings to be expected. Of its ratio, measured ÷
  expected, the logarithm is kept; of four weeks of days the median counts. Up to half of them may be anything.
- It moves only as far as the days prove: to the near end of the median's confidence interval, and not at all while that holds zero. The
  interval is that of the sign test, from order statistics: it assumes nothing of how crossings are scattered, in clusters or not.

Integers throughout: sums of them do not depend on how samples are cut into batches, and they are what is written down.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

NEVER: Final = 1 << 62
"""Behind every offset."""

UNIT: Final = 1_000_000_000
"""Expected crossings are counted in billionths."""

MILLI: Final = 1_000
"""Corrections are counted in thousandths of a power of ten."""
MOST: Final = 1_000
"""A stream that crosses ten times as often as others is another kind of data; beyond that somebody should look."""
LEAST: Final = -500
"""Fewer crossings lower the threshold to a third of the rate at most: idle series beside busy ones must not make those alarm."""
IDLE: Final = 50
"""A ninth more or less is nothing that anybody would notice."""

_CLIPPED: Final = 2_000
_MEDIAN: Final = 1 / 3
"""The median of a Poisson distribution lies a third below its mean, about (K. P. Choi, Proc. AMS 121, 1994)."""

Entry = tuple[int, int]
"""Input offset from which on a correction is in force, and the correction in thousandths."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly it moves."""

    hour_ms: int = 3_600_000
    """Event time that counts together before it is limited."""
    day_ms: int = 86_400_000
    """Event time of a day, at least."""
    expected: float = 5.0
    """Crossings to be expected of a day, at least."""
    days: int = 28
    """That are remembered."""
    doubt: float = 0.01
    """How often a median that is zero would be taken for another, each time that it is looked at."""
    samples: int = 256
    """From one look at the partition's time to the next, at least."""


class Control:
    """The correction of one partition.

    Args:
        pace: how slowly it moves.
    """

    def __init__(self, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self.correction = 0
        """In force now, in thousandths of a power of ten by which crossings are more frequent than expected."""
        self.days: list[int] = []
        """Logarithm of measured ÷ expected of each day, in thousandths, oldest first."""
        self.crossings = 0
        """Of this hour."""
        self.expected = 0
        """Of this hour, in billionths."""
        self._hour_ms = self._day_ms = -1
        self._day_crossings = self._day_expected = 0
        self._ahead: list[Entry] = []  # what a replay has not come to yet, newest first

    # --- counting ---------------------------------------------------------------------------------------------------

    def count(self, crossings: int, expected: int) -> None:
        """Samples went by: so many crossings, and so many were to be expected, in billionths."""
        self.crossings += crossings
        self.expected += expected

    @property
    def next_ms(self) -> int:
        """Event time from which on `reach` has something to do."""
        return self._hour_ms + self.pace.hour_ms if self._hour_ms >= 0 else -NEVER

    def reach(self, time_ms: int, offset: int) -> list[Entry]:
        """In front of the record at an offset the partition has come to an event time; returns a new correction, or nothing."""
        if self._hour_ms < 0:
            self._hour_ms = self._day_ms = max(0, time_ms)
        elif time_ms < self._hour_ms:  # clocks were set back
            self._hour_ms, self._day_ms = max(0, time_ms), min(self._day_ms, max(0, time_ms))
        if time_ms < self.next_ms:
            return []
        self._end_hour(time_ms)
        if time_ms - self._day_ms < self.pace.day_ms or self._day_expected < self.pace.expected * UNIT:
            return []
        self._end_day(time_ms)
        found = correction(self.days, self.pace.doubt)
        if found == self.correction:
            return []
        self.correction = found
        return [(offset, found)]

    def _end_hour(self, time_ms: int) -> None:
        likely = self.expected / UNIT * 10 ** (MOST / MILLI)
        self._day_crossings += min(self.crossings, math.ceil(likely + 3 * math.sqrt(likely)))
        self._day_expected += self.expected
        self.crossings = self.expected = 0
        self._hour_ms = time_ms

    def _end_day(self, time_ms: int) -> None:
        ratio = (self._day_crossings + _MEDIAN) / (self._day_expected / UNIT)
        self.days.append(min(max(round(MILLI * math.log10(ratio)), -_CLIPPED), _CLIPPED))
        del self.days[: -self.pace.days]
        self._day_crossings = self._day_expected = 0
        self._day_ms = time_ms

    # --- written down -----------------------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[int, ...]:
        """What was counted, for the changelog; nothing where nothing was."""
        if self._hour_ms < 0 and not self.expected and not self.crossings:
            return ()
        hour, day = (self._hour_ms, self.crossings, self.expected), (self._day_ms, self._day_crossings, self._day_expected)
        return (*hour, *day, *self.days)

    def begin(self, state: Sequence[int], entries: Sequence[Entry], offset: int) -> None:
        """Goes back to what was in force at an offset, with what was counted up to the position.

        Args:
            state: as it was written with the position.
            entries: corrections from then on, oldest first; in front of the first one nothing was corrected.
            offset: of the record that comes next.
        """
        if state:
            self._hour_ms, self.crossings, self.expected, self._day_ms, self._day_crossings, self._day_expected = state[:6]
            self.days = list(state[6:])
        self._ahead = list(reversed(entries))
        self.take_up(offset)

    @property
    def boundary(self) -> int:
        """Input offset from which on another correction is in force; NEVER: as far as is known, none is."""
        return self._ahead[-1][0] if self._ahead else NEVER

    def take_up(self, offset: int) -> bool:
        """The record at this offset is next; returns whether another correction is in force now."""
        before = self.correction
        while self._ahead and self._ahead[-1][0] <= offset:
            self.correction = self._ahead.pop()[1]
        return self.correction != before


def correction(days: Sequence[int], doubt: float) -> int:
    """How far the threshold has to give, by the days so far, in thousandths of a power of ten.

    The end next to zero of the confidence interval of their median, from order statistics; zero where that lies on both sides of it.

    Source: W. J. Conover, Practical Nonparametric Statistics, section 3.2 (Wiley, 1999).

    Args:
        days: logarithms of measured ÷ expected, in thousandths.
        doubt: one less the confidence.
    """
    rank = _rank(len(days), doubt)
    if not rank:
        return 0
    ordered = sorted(days)
    low, high = ordered[rank - 1], ordered[-rank]
    found = min(max(low, 0), MOST) if high > 0 else max(high, LEAST)
    return found if abs(found) >= IDLE else 0


@cache
def _rank(count: int, doubt: float) -> int:
    """Between the rank-th smallest and the rank-th largest of so many values lies the median, but for the doubt; 0: they are too few."""
    below = [sum(math.comb(count, k) for k in range(rank)) / 2**count for rank in range(count // 2 + 1)]
    return bisect_right(below, doubt / 2) - 1
