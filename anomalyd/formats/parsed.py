"""What the exact reading of one record gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from anomalyd.formats.rejection import RejectedError
from anomalyd.formats.times import TimestampUnit


class ParsedSample(NamedTuple):
    """One sample, not yet given a row."""

    name: str
    labels: Mapping[str, str]
    time_ms: int
    value: float


@dataclass(slots=True)
class Parsed:
    """The good samples of a record, in their order, and the first reason why something of it was not used."""

    samples: list[ParsedSample] = field(default_factory=list)
    reason: str | None = None

    def reject(self, reason: str) -> None:
        """Something was not used; only the first reason of a record counts, because a record is dead-lettered once."""
        if self.reason is None:
            self.reason = reason


class Parse(Protocol):
    """Reads one record exactly, one by one, in Python."""

    def __call__(self, value: bytes, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
        """Never raises anything but RejectedError, which means that nothing of the record can be used."""


def parse_safely(parse: Parse, value: bytes | None, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
    """The same, with a record that cannot be used at all told like any other."""
    try:
        return parse(value or b"", unit, record_time_ms)
    except RejectedError as rejection:
        return Parsed(reason=rejection.reason)
