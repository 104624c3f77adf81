"""Many records at once, from bytes to columns.

A compiled scanner reads what is plain, without the interpreter: columns of samples with a hash of the bytes that identify each series. What
it declines, and every record with a series whose spelling is not yet known, is read exactly, in Python; that reading is the truth, and the
scanner's is only a faster way to the same. So the samples, their order and the rows they get are those of reading record after record.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.formats.parsed import Parse, Parsed, parse_safely
from anomalyd.formats.rejection import MALFORMED, TOO_LARGE, RejectedError
from anomalyd.formats.times import TimestampUnit, in_bounds
from anomalyd.series import EXCLUDED, FULL, UNKNOWN, KeyTooLongError, SeriesIndex


@dataclass(frozen=True, slots=True)
class Decoded:
    """What became of some records."""

    batch: SampleBatch
    """Samples in the order of the records, F = 1."""
    rejected: list[tuple[int, str]]
    """Index and reason of each record of which something was not used, ascending; it may have good samples in the batch."""
    consumed: int
    """How many records this is about: all, or those before the one that needs a row when none is free (step, evict, decode the rest)."""


class Decoder(Protocol):
    """A wire format."""

    def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
        """Decode record values; `timestamp_ms` gives a record's Kafka timestamp, for samples without their own. Never raises."""


ABSENT: Final = -1
"""In place of an event time: the sample brings none."""


class Scanned(NamedTuple):
    """What a scanner read, in the order of the records; n samples of m records."""

    done: NDArray[np.bool_]
    """Whether the record was read; it then has all its samples here, (m,)."""
    first: NDArray[np.int64]
    """Index of each record's first sample, and n, (m + 1,)."""
    record: NDArray[np.int32]
    """(n,)"""
    time_ms: NDArray[np.int64]
    """Or ABSENT, where the Kafka timestamp of the record counts, (n,)."""
    value: NDArray[np.float64]
    """(n,)"""
    hashes: NDArray[np.uint64]
    """Two halves of a hash over the bytes that identify the series, (n, 2)."""


Scan = Callable[[Sequence[bytes | None], TimestampUnit], Scanned]


def scan_nothing(values: Sequence[bytes | None], _: TimestampUnit) -> Scanned:
    """A scanner that declines every record: with it, decoding is the exact reading of record after record."""
    m = len(values)
    return Scanned(
        np.zeros(m, np.bool_),
        np.zeros(m + 1, np.int64),
        np.empty(0, np.int32),
        np.empty(0, np.int64),
        np.empty(0),
        np.empty((0, 2), np.uint64),
    )


class BulkDecoder:
    """A wire format made of an exact reading and a scanner. Keeps nothing between calls, so threads may share it.

    An index must be used with one format only: its spellings are those of that format's scanner.
    """

    def __init__(self, parse: Parse, scan: Scan, unit: TimestampUnit) -> None:
        self._parse = parse
        self._scan = scan
        self._unit = unit

    def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
        """See `Decoder`."""
        scanned = self._scan(values, self._unit)
        _complete_times(scanned, timestamp_ms)
        rows = np.empty(len(scanned.record), np.int32)
        index.aliases.find(scanned.hashes, rows)
        exact = _Exact()
        consumed = self._read_exactly(values, timestamp_ms, index, scanned, rows, exact)
        return Decoded(_merge(scanned, rows, exact, consumed), exact.rejected, consumed)

    def _read_exactly(
        self,
        values: Sequence[bytes | None],
        timestamp_ms: Callable[[int], int],
        index: SeriesIndex,
        scanned: Scanned,
        rows: NDArray[np.int32],
        exact: "_Exact",
    ) -> int:
        """Settle what the scanner declined and what it found unknown, in the order of the records; returns how many were consumed."""
        unsettled = ~scanned.done
        unsettled[scanned.record[rows == UNKNOWN]] = True
        learned: dict[tuple[int, int], int] = {}
        consumed = len(values)
        for record in np.flatnonzero(unsettled).tolist():
            own = slice(scanned.first[record], scanned.first[record + 1])
            spellings = [(first, second) for first, second in scanned.hashes[own].tolist()] if scanned.done[record] else []
            if spellings:
                known = [learned.get(hashes, row) for hashes, row in zip(spellings, rows[own].tolist(), strict=True)]
                if UNKNOWN not in known:
                    rows[own] = known
                    continue
            parsed = parse_safely(self._parse, values[record], self._unit, partial(timestamp_ms, record))
            resolved = _rows_of(parsed, index)
            if resolved is None:
                consumed = record
                break
            if parsed.reason is not None:
                exact.rejected.append((record, parsed.reason))
            if spellings and parsed.reason is None and len(resolved) == len(spellings):
                rows[own] = resolved
                learned.update(zip(spellings, resolved, strict=True))
            else:
                rows[own] = EXCLUDED
                exact.append(record, parsed, resolved)
        if learned:
            index.aliases.add(np.array(list(learned), np.uint64), np.array(list(learned.values()), np.int32))
        return consumed


def _complete_times(scanned: Scanned, timestamp_ms: Callable[[int], int]) -> None:
    """Give samples without a time that of their record; where that is none, leave the record to the exact reading."""
    absent = scanned.time_ms == ABSENT
    if not absent.any():
        return
    for record in np.unique(scanned.record[absent]).tolist():
        own = slice(scanned.first[record], scanned.first[record + 1])
        try:
            scanned.time_ms[own][absent[own]] = in_bounds(timestamp_ms(record))
        except RejectedError:
            scanned.done[record] = False


class _Exact:
    """Samples that only the exact reading gave, as growing columns."""

    def __init__(self) -> None:
        self.rejected: list[tuple[int, str]] = []
        self.record: list[int] = []
        self.row: list[int] = []
        self.time_ms: list[int] = []
        self.value: list[float] = []

    def append(self, record: int, parsed: Parsed, rows: list[int]) -> None:
        for sample, row in zip(parsed.samples, rows, strict=True):
            if row >= 0:
                self.record.append(record)
                self.row.append(row)
                self.time_ms.append(sample.time_ms)
                self.value.append(sample.value)


def _rows_of(parsed: Parsed, index: SeriesIndex) -> list[int] | None:
    """The row (or EXCLUDED) of each sample; None when the index is full, which then has no row more than before.

    Samples whose series cannot be kept are taken out of `parsed`, with the reason.
    """
    rows: list[int] = []
    fresh: list[int] = []
    kept = []
    for sample in parsed.samples:
        allocations = index.allocations
        try:
            row = index.row(sample.name, sample.labels)
        except KeyTooLongError:
            parsed.reject(TOO_LARGE)
            continue
        except UnicodeEncodeError:
            parsed.reject(MALFORMED)
            continue
        if row == FULL:
            index.give_back(fresh)
            if not _fits(parsed, index):
                parsed.samples = []
                parsed.reject(TOO_LARGE)
                return []
            return None
        if index.allocations > allocations:
            fresh.append(row)
        rows.append(row)
        kept.append(sample)
    parsed.samples = kept
    return rows


def _fits(parsed: Parsed, index: SeriesIndex) -> bool:
    """Whether the series of one record could all have a row at the same time."""
    return len({index.key(sample.name, sample.labels) for sample in parsed.samples} - {None}) <= index.capacity


def _merge(scanned: Scanned, rows: NDArray[np.int32], exact: _Exact, consumed: int) -> SampleBatch:
    """The samples of the first `consumed` records whose series is selected."""
    record, time_ms, value = scanned.record, scanned.time_ms, scanned.value
    keep = rows >= 0
    if consumed < len(scanned.done):
        keep[scanned.first[consumed] :] = False
    if not keep.all():
        record, rows, time_ms, value = record[keep], rows[keep], time_ms[keep], value[keep]
    if exact.record:
        record = np.concatenate([record, np.array(exact.record, np.int32)])
        order = np.argsort(record, kind="stable")
        record = record[order]
        rows = np.concatenate([rows, np.array(exact.row, np.int32)])[order]
        time_ms = np.concatenate([time_ms, np.array(exact.time_ms, np.int64)])[order]
        value = np.concatenate([value, np.array(exact.value)])[order]
    return SampleBatch(row=rows, time_ms=time_ms, value=value.reshape(-1, 1), record=record)
