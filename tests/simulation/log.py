"""One partition's log in a model of the broker: batches as bytes, as clients get and give them, and what transactions do to them."""

import asyncio
import struct
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from aiokafka.errors import OffsetOutOfRangeError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

Marker = Literal["commit", "abort"]

_CRC_AT: Final = 17
_ATTRIBUTES_AT: Final = 21
_LAST_OFFSET_AT: Final = 23
_CONTROL: Final = 0x20


class Record(NamedTuple):
    """A record in a log."""

    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    timestamp: int


@dataclass(slots=True)
class Batch:
    """Records that were written together, or a control marker."""

    base: int
    last: int
    raw: bytes
    records: list[Record]
    producer: int = -1
    epoch: int = -1
    transactional: bool = False
    marker: Marker | None = None
    aborted: bool = False


class Fetched(NamedTuple):
    """A fetch's answer for one partition."""

    high_water: int
    lso: int
    aborted: list[tuple[int, int]]
    """Producer and first offset of aborted transactions."""
    raw: bytes


@dataclass(slots=True)
class Producing:
    """What a partition knows of a producer."""

    epoch: int
    next_sequence: int = 0
    batches: list[tuple[int, int, int]] = field(default_factory=list)
    """Base sequence, count and base offset of the newest, so that one sent twice is recognised."""


class Log:
    """One partition.

    Args:
        tp: its name.
        compacted: by key.
        max_message_bytes: largest batch.
    """

    def __init__(self, tp: TopicPartition, *, compacted: bool = False, max_message_bytes: int = 1 << 20) -> None:
        self.tp = tp
        self.compacted = compacted
        self.max_message_bytes = max_message_bytes
        self.batches: list[Batch] = []
        self.start = 0
        self.end = 0
        self.segment = 0
        """Where the active segment begins: nothing from here on is compacted."""
        self.open: dict[int, int] = {}
        """Producer -> offset of its first record in the transaction that has not ended here."""
        self.aborted: list[tuple[int, int, int]] = []
        """Producer, first offset and offset of the marker of each aborted transaction."""
        self.producing: dict[int, Producing] = {}
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def lso(self) -> int:
        """The last stable offset: behind it are transactions that have not ended."""
        return min(self.open.values(), default=self.end)

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, raw: bytes) -> Batch:
        """Takes a batch in as a producer made it."""
        parsed = DefaultRecordBatch(bytearray(raw))
        base = self.end
        records = [Record(base + record.offset, record.key, record.value, tuple(record.headers), record.timestamp) for record in parsed]
        self.end += len(records)
        batch = Batch(
            base,
            self.end - 1,
            _moved(raw, base),
            records,
            parsed.producer_id,
            parsed.producer_epoch,
            transactional=parsed.is_transactional,
        )
        self.batches.append(batch)
        return batch

    def mark(self, producer: int, epoch: int, marker: Marker) -> None:
        """Ends a transaction here."""
        first = self.open.pop(producer, None)
        if marker == "abort" and first is not None:
            self.aborted.append((producer, first, self.end))
            for batch in self.batches[self._at(first) :]:
                if batch.producer == producer and batch.marker is None and batch.transactional:
                    batch.aborted = True
        raw = build(
            [Record(0, struct.pack(">hh", 0, int(marker == "commit")), struct.pack(">hi", 0, 0), (), 0)], producer, epoch, control=True
        )
        self.batches.append(Batch(self.end, self.end, _moved(raw, self.end), [], producer, epoch, transactional=True, marker=marker))
        self.end += 1
        known = self.producing.get(producer)
        if known is None or epoch > known.epoch:
            self.producing[producer] = Producing(epoch)

    def wake(self) -> None:
        """There is something new for those who wait."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # --- reading ----------------------------------------------------------------------------------------------------

    def fetch(self, position: int, most_bytes: int, *, committed: bool) -> Fetched:
        """Whole batches from the one on that holds the position. Raises OffsetOutOfRangeError."""
        if not self.start <= position <= self.end:
            raise OffsetOutOfRangeError({self.tp: position})
        limit = self.lso if committed else self.end
        parts: list[bytes] = []
        size = 0
        for batch in self.batches[self._at(position) :]:
            if batch.base >= limit or (parts and size + len(batch.raw) > most_bytes):
                break
            parts.append(batch.raw)
            size += len(batch.raw)
        aborted = [(producer, first) for producer, first, last in self.aborted if last >= position and first < limit] if committed else []
        return Fetched(self.end, self.lso, aborted, b"".join(parts))

    def visible(self) -> list[Record]:
        """What a read_committed consumer sees that begins at the start."""
        limit = self.lso
        return [
            record
            for batch in self.batches
            if batch.base < limit and batch.marker is None and not batch.aborted
            for record in batch.records
            if record.offset >= self.start
        ]

    # --- what time does to it ---------------------------------------------------------------------------------------

    def truncate(self, start: int) -> None:
        """Retention: the log begins later."""
        self.start = max(self.start, min(start, self.lso))
        del self.batches[: self._at(self.start)]

    def roll(self) -> None:
        """A new segment begins: everything so far may be compacted from now on."""
        self.segment = self.end

    def compact(self, *, drop_markers: bool) -> int:
        """Keeps the newest of each key, and all offsets; returns how many records and markers went. Open transactions are not touched."""
        limit = min(self.segment, self.lso)
        newest: dict[bytes | None, int] = {}
        for batch in self.batches:
            if batch.last < limit and batch.marker is None and not batch.aborted:
                newest |= {record.key: record.offset for record in batch.records}
        kept, gone = [], 0
        for batch in self.batches:
            if batch.last >= limit:
                kept.append(batch)
            elif batch.marker is not None:
                if drop_markers:
                    gone += 1
                    self.aborted = [entry for entry in self.aborted if entry[2] != batch.base]
                else:
                    kept.append(batch)
            else:
                left = [] if batch.aborted else [record for record in batch.records if newest[record.key] == record.offset]
                gone += len(batch.records) - len(left)
                if len(left) == len(batch.records):
                    kept.append(batch)
                elif left:
                    batch.records = left
                    batch.raw = _thinned(batch)
                    kept.append(batch)
        self.batches = kept
        return gone

    def _at(self, offset: int) -> int:
        """The first batch that ends at or behind an offset."""
        return bisect_left(self.batches, offset, key=lambda batch: batch.last)


def build(records: Sequence[Record], producer: int = -1, epoch: int = -1, *, transactional: bool = False, control: bool = False) -> bytes:
    """A batch; offsets are relative to its base."""
    builder = DefaultRecordBatchBuilder(2, 0, transactional or control, producer, epoch, 0, 1 << 30)
    for record in records:
        builder.append(record.offset, record.timestamp, record.key, record.value, list(record.headers))
    raw = bytearray(builder.build())
    if control:
        raw[_ATTRIBUTES_AT + 1] |= _CONTROL
        _seal(raw)
    return bytes(raw)


def _thinned(batch: Batch) -> bytes:
    """A batch without some of its records: it ends where it did."""
    relative = [record._replace(offset=record.offset - batch.base) for record in batch.records]
    raw = bytearray(build(relative, batch.producer, batch.epoch, transactional=batch.transactional))
    struct.pack_into(">i", raw, _LAST_OFFSET_AT, batch.last - batch.base)
    _seal(raw)
    return _moved(raw, batch.base)


def _seal(raw: bytearray) -> None:
    struct.pack_into(">I", raw, _CRC_AT, calc_crc32c(bytes(raw[_ATTRIBUTES_AT:])))


def _moved(raw: bytes | bytearray, base: int) -> bytes:
    """The checksum does not cover the base offset, so that a broker can set it."""
    return struct.pack(">q", base) + bytes(raw[8:])


Listener = Callable[[Log], Any]
