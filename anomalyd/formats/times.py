"""Event times: numbers in any unit, or ISO 8601, to milliseconds since the epoch.

Accepted are 1970-01-01 to 2099-12-31. A wrong unit lands outside (or in 1970), and one sample from the year 5000 would make everything
that a series sends later count as late.
"""

from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final, Literal

from anomalyd.formats.rejection import BAD_TIMESTAMP, RejectedError

TimestampUnit = Literal["auto", "s", "ms", "us", "ns"]
UNITS: Final[tuple[TimestampUnit, ...]] = ("auto", "s", "ms", "us", "ns")

END_MS: Final = 4_102_444_800_000
"""2100-01-01: the first time that is refused."""
BELOW_MS: Final = 10**11
"""auto: numbers below are seconds."""
BELOW_US: Final = 10**14
"""auto: numbers below are milliseconds."""
BELOW_NS: Final = 10**17
"""auto: numbers below are microseconds, others nanoseconds."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def milliseconds(raw: object, unit: TimestampUnit) -> int:
    """Event time in ms: integers are cut to whole ms, floats rounded half to even, text is ISO 8601 (UTC if it names no zone).

    Raises:
        RejectedError: neither of these, or outside 1970 to 2099.
    """
    if isinstance(raw, int) and not isinstance(raw, bool):
        time_ms = _of_integer(raw, unit)
    elif isinstance(raw, float) and isfinite(raw):
        time_ms = _of_float(raw, unit)
    elif isinstance(raw, str):
        time_ms = _of_text(raw)
    else:
        raise RejectedError(BAD_TIMESTAMP)
    return in_bounds(time_ms)


def in_bounds(time_ms: int) -> int:
    """The same time.

    Raises:
        RejectedError: outside 1970 to 2099; -1 is how Kafka says that a record has no timestamp.
    """
    if 0 <= time_ms < END_MS:
        return time_ms
    raise RejectedError(BAD_TIMESTAMP)


def unit_of(number: float) -> TimestampUnit:
    """The unit that makes this number a time of our days."""
    if number < BELOW_MS:
        return "s"
    if number < BELOW_US:
        return "ms"
    return "us" if number < BELOW_NS else "ns"


def _of_integer(number: int, unit: TimestampUnit) -> int:
    if unit == "auto":
        unit = unit_of(number)
    if unit == "s":
        return number * 1000
    if unit == "ms":
        return number
    return number // (1000 if unit == "us" else 1_000_000)


def _of_float(number: float, unit: TimestampUnit) -> int:
    if unit == "auto":
        unit = unit_of(number)
    scaled = {"s": number * 1000.0, "ms": number, "us": number / 1000.0, "ns": number / 1_000_000.0}[unit]
    return round(scaled) if isfinite(scaled) else -1


def _of_text(text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
        return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND
    except (ValueError, OverflowError):
        raise RejectedError(BAD_TIMESTAMP) from None
