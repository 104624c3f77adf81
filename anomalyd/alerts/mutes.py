"""Mutes: windows of event time in which no alert fires for certain series.

Whether a sample is muted follows from its event time, its series and the rules of its time zone, never from the clock. Weekly windows are
meant as clocks on the wall show them: of an hour that daylight saving shows twice both are inside, and one that it leaves out is not there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.errors import ConfigError
from anomalyd.selection import Selection
from anomalyd.series.key import parse_key

DAY_MINUTES: Final = 24 * 60
EVERY_DAY: Final = (0, 1, 2, 3, 4, 5, 6)

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS: Final = -62_135_000_000_000
_LAST_MS: Final = 253_402_000_000_000
"""What a calendar of the years 1 to 9999 can show in any time zone."""

_NONE: Final = np.empty(0, np.bool_)


@dataclass(frozen=True, slots=True)
class Mute:
    """One window: a span of event time if it has a start, else a part of certain days of every week.

    Raises:
        ConfigError: a field is out of range, a selector is not valid, or there is no such time zone; the message names the field.
    """

    series: tuple[str, ...] = ()
    """Selectors, of which a series has to match one; none: all series."""
    days: tuple[int, ...] = EVERY_DAY
    """Days of the week on which the window begins, 0 is Monday."""
    from_min: int = 0
    """When it begins: minutes since midnight by the clocks of the time zone."""
    to_min: int = DAY_MINUTES
    """When it ends, itself outside; at or before `from_min`: on the next day."""
    timezone: str = "UTC"
    """IANA name."""
    start_ms: int | None = None
    """First millisecond of a span, since the epoch."""
    end_ms: int | None = None
    """Behind its last one."""

    def __post_init__(self) -> None:
        if not set(self.days) <= set(EVERY_DAY):
            raise ConfigError(f"days: got {self.days}, valid are 0 (Monday) to 6")
        if not (0 <= self.from_min < DAY_MINUTES and 0 < self.to_min <= DAY_MINUTES) or self.from_min == self.to_min:
            raise ConfigError(f"from, to: got minutes {self.from_min} and {self.to_min}, which are no part of a day")
        if (self.start_ms is None) != (self.end_ms is None):
            raise ConfigError("start, end: give both or neither")
        _selection(self.series)
        _zone(self.timezone)

    def holds(self, time_ms: int) -> bool:
        """Whether a moment lies inside."""
        if self.start_ms is not None and self.end_ms is not None:
            return self.start_ms <= time_ms < self.end_ms
        if not _FIRST_MS <= time_ms <= _LAST_MS:
            return False
        local = (_EPOCH + timedelta(milliseconds=time_ms)).astimezone(_zone(self.timezone))
        minute, day = local.hour * 60 + local.minute, local.weekday()
        if self.from_min < self.to_min:
            return day in self.days and self.from_min <= minute < self.to_min
        return (minute >= self.from_min and day in self.days) or (minute < self.to_min and (day - 1) % 7 in self.days)


class Mutes:
    """The mutes of a policy, asked about samples.

    Args:
        mutes: any of them is enough.
    """

    def __init__(self, mutes: Sequence[Mute]) -> None:
        self._mutes = tuple(mutes)
        self._selections = [_selection(mute.series) for mute in self._mutes]
        # A storm of alerts shares its moments, and its series come again with the next sample.
        self._at = lru_cache(maxsize=1 << 12)(self._find_at)
        self._about = lru_cache(maxsize=1 << 16)(self._find_about)

    def column(self, batch: SampleBatch, verdicts: Verdicts, keys: Sequence[str | None]) -> NDArray[np.bool_]:
        """Which samples are muted, (n,), or empty: none is. Those with a score below 1 are not looked at, since nothing fires with them.

        Args:
            batch: samples.
            verdicts: on them.
            keys: canonical series keys by row.
        """
        if not self._mutes:
            return _NONE
        muted = np.zeros(len(batch), np.bool_)
        hot = np.flatnonzero(verdicts.score >= 1.0)
        for i, time_ms, row in zip(hot.tolist(), batch.time_ms[hot].tolist(), batch.row[hot].tolist(), strict=True):
            active = self._at(time_ms)
            if active:
                muted[i] = not active.isdisjoint(self._about(keys[row] or ""))
        return muted

    def hold(self, key: str, time_ms: int) -> bool:
        """Whether a series, by its canonical key, is muted at a moment."""
        return bool(self._mutes) and not self._at(time_ms).isdisjoint(self._about(key))

    def _find_at(self, time_ms: int) -> frozenset[int]:
        """Numbers of the mutes that hold at a moment."""
        return frozenset(number for number, mute in enumerate(self._mutes) if mute.holds(time_ms))

    def _find_about(self, key: str) -> frozenset[int]:
        """Numbers of the mutes that are about a series."""
        name, labels = parse_key(key)
        return frozenset(number for number, selection in enumerate(self._selections) if selection.admits(name, labels))


def _selection(series: Sequence[str]) -> Selection:
    try:
        return Selection(include=series)
    except ConfigError as error:
        raise ConfigError(f"series: {str(error).removeprefix('include: ')}") from None


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    """A time zone. Raises ConfigError."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):
        raise ConfigError(f"timezone: got {name!r}, valid are names of the IANA database such as Europe/Berlin") from None
