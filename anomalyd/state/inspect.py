"""What lies in a changelog partition, for people: what a restart would find there, and whether it is sound. Only reads."""

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple, Protocol

import numpy as np

from anomalyd.batch import LogRecord
from anomalyd.errors import StateError
from anomalyd.state import codec
from anomalyd.state.chain import PROCESS_BYTES, breach, moved_on, probes
from anomalyd.state.codec import Episode, Fence, Forgotten, Page, Position
from anomalyd.state.digest import Digest

_DAMAGED: Final = (
    "a restore stops here; keep a copy of the topic for a report, then begin the partition anew: anomalyd state restart --help"
)
_FOREIGN: Final = (
    "find out who else writes to this topic: another group with the same state.prefix, or a tool; then anomalyd state restart --help"
)
_GONE: Final = (
    "find out who deletes from this topic, its cleanup.policy has to be compact; with state.on_gap: continue the daemon begins with empty "
    "state"
)
_OURS: Final = "a fault of anomalyd: report it with this output; anomalyd state restart --help begins the partition anew"


class CommittedLog(Protocol):
    """One changelog partition as it is committed."""

    async def bounds(self) -> tuple[int, int]:
        """The offset at which the log begins, and the one up to which everything is decided (the last stable offset)."""

    def read(self, start: int, end: int) -> AsyncIterator[list[LogRecord]]:
        """Committed records with start <= offset < end, in order; ends also where the last offsets hold no record."""


class Finding(NamedTuple):
    """Something that is not as it has to be."""

    offset: int
    """In the changelog."""
    text: str
    action: str
    """What to do about it."""
    key: bytes
    """Of the record that it is about."""


class Row(NamedTuple):
    """A series as the changelog has it."""

    key: str
    data: bytes
    """The state row, with what was told about the series last."""
    position: int
    """Input offset up to which it has learned."""
    last_use: int
    """Offset of the record that held its last sample."""
    layout: tuple[tuple[str, str, int, int], ...]
    """Fields of the row, as in its page."""

    def field(self, name: str) -> bytes:
        """The bytes of one field of the row; empty where it has none of this name."""
        place = _place(self.layout, name)
        return self.data[place] if place is not None else b""


@dataclass(slots=True)
class Contents:
    """What was read of a partition, and what is wrong with it.

    Args:
        transactional: whether its writers are. Without transactions pages may be ahead of the position and the chain may fork.
    """

    transactional: bool = True
    records: int = 0
    size: int = 0
    """Bytes of keys and values that were read."""
    findings: list[Finding] = field(default_factory=list)
    repaired: list[Finding] = field(default_factory=list)
    """What was wrong and no longer matters: nobody reads so far back, and compaction will take it."""
    position: Position | None = None
    """The last one."""
    position_offset: int = -1
    """Where it lies in the changelog."""
    fence: Fence | None = None
    """The last one."""
    owners: set[bytes] = field(default_factory=set)
    """The processes that have claimed the partition since the position last moved, or since one let go of it alive. The next one to claim
    it takes them for dead."""
    live: dict[bytes, tuple[int, Page | Episode | Forgotten, int]] = field(default_factory=dict)
    """The newest record of every page, episode and lot of forgotten series: changelog offset, record, bytes of its value."""
    damaged: set[bytes] = field(default_factory=set)
    """Keys whose newest record cannot be used."""
    _pending: list[tuple[int, bytes, int]] = field(default_factory=list)
    """Records that no position has vouched for yet: changelog offset, key, newest input offset that they know of."""
    _deleted: list[Finding] = field(default_factory=list)
    """Records that somebody deleted since the last position. Who begins anew deletes everything."""
    _anew_from: int = -1
    """Changelog offset in front of which nothing counts since the partition was last begun anew."""

    # --- reading ----------------------------------------------------------------------------------------------------

    def add(self, records: Iterable[LogRecord]) -> None:
        """Takes up the next records of the log."""
        for record in records:
            self.records += 1
            self.size += len(record.key) + len(record.value or b"")
            if record.value is None:
                self._tombstone(record)
                continue
            try:
                value = codec.decode(record.key, record.value)
                if isinstance(value, Position):
                    self._link(record.offset, value)
                elif isinstance(value, Fence):
                    self.fence = value
                    self.owners.add(value.owner[:PROCESS_BYTES])
                else:
                    knows = _check(record.key, value)
                    self.live[record.key] = (record.offset, value, len(record.value))
                    self._pending.append((record.offset, record.key, knows))
                self.damaged.discard(record.key)
            except StateError as error:
                self.damaged.add(record.key)
                self._find(record.offset, str(error), _FOREIGN if "not anomalyd's" in str(error) else _DAMAGED, record.key)

    def finish(self, first: int = 0) -> None:
        """The end of the log, which began at `first`: looks at what is left as a whole."""
        self._settle_deleted()
        if self._pending and self.transactional and not (self.position is not None and self.position.plain):
            offset, key, _ = self._pending[0]
            self._find(offset, f"record {_show(key)} has no position behind it: it was written outside of a transaction", _FOREIGN, key)
        if self.position is None:
            if first > 0:
                self._find(first, f"the log begins at {first} and holds no position: its records were deleted", _GONE)
            if self.live:
                offset, key = min((offset, key) for key, (offset, _, _) in self.live.items())
                self._find(offset, "there is state and no position that vouches for it", _DAMAGED, key)
            return
        for key, (offset, _, _) in self.live.items():
            if offset < self.position.restore_from:
                text = f"record {_show(key)} lies in front of {self.position.restore_from}, from where on a restore reads"
                self._find(offset, text, _OURS, key)
        seen: dict[str, tuple[int, bytes]] = {}
        for key, page in self._pages():
            for series in page.keys:
                position, other = seen.setdefault(series, (page.position, key))
                if position == page.position and other != key:
                    text = f"series {series} is on pages {_show(other)} and {_show(key)}, both of input offset {position}"
                    self._find(self.live[key][0], text, _OURS, key)
                if page.position > position:
                    seen[series] = (page.position, key)
        self.repaired = [finding for finding in self.findings if self._is_repaired(finding)]
        self.findings = [finding for finding in self.findings if not self._is_repaired(finding)]

    def _tombstone(self, record: LogRecord) -> None:
        if record.key in (codec.POSITION_KEY, codec.FENCE_KEY) or record.key[:2] not in (b"S|", b"A|", b"G|"):
            text = f"record {_show(record.key)} was deleted, which anomalyd never does"
            self._deleted.append(Finding(record.offset, text, _FOREIGN, record.key))
        self.live.pop(record.key, None)
        self.damaged.discard(record.key)

    def _link(self, offset: int, found: Position) -> None:
        """A position, after the one before it and the records that it vouches for."""
        before = self.position
        if found.anew:
            self._deleted.clear()
            self._anew_from = found.restore_from
        self._settle_deleted()
        if self.transactional and not found.plain:
            self._vouch(offset, found)
        name = f"position {found.sequence}"
        if found.replay_from > found.position:
            self._find(offset, f"{name} replays from input offset {found.replay_from}, ahead of {found.position}", _OURS)
        if found.restore_from > offset:
            self._find(offset, f"{name} restores from {found.restore_from}, behind itself: the changelog was made anew", _GONE)
        if any(later[0] < earlier[0] for earlier, later in pairwise(found.timeline)):
            self._find(offset, f"{name} has a model timeline that goes back", _OURS)
        if any(later[0] < earlier[0] for earlier, later in pairwise(found.policies)):
            self._find(offset, f"{name} has a timeline of alert policies that goes back", _OURS)
        if any(later[0] < earlier[0] for earlier, later in pairwise(found.corrections)):
            self._find(offset, f"{name} has a timeline of corrections that goes back", _OURS)
        self._pending.clear()
        if moved_on(before, found):
            self.owners.clear()
        self.position, self.position_offset = found, offset

    def _vouch(self, offset: int, found: Position) -> None:
        """What transactions promise of a position."""
        name = f"position {found.sequence}"
        if (before := self.position) is not None and not before.plain:
            missing = found.sequence - before.sequence - 1
            if why := breach(before, found):
                self._find(offset, why, _FOREIGN)
            elif 2 * missing > offset - self.position_offset - 2:
                # Compaction takes records and leaves their offsets: those of the positions and of the ends of their transactions.
                text = f"{name} follows position {before.sequence}, with no room for the {missing} in between"
                self._find(offset, text, _FOREIGN)
            if found.position < before.position and not found.anew:
                self._find(offset, f"{name} goes back from input offset {before.position} to {found.position}", _OURS)
        if self.fence is not None and self.fence.owner != found.owner:
            # Fences have one key, so behind one that is left there is none that compaction has taken.
            text = f"{name} is by owner {found.owner.hex()[:8]}, fenced by {self.fence.owner.hex()[:8]} before"
            self._find(offset, text, _OURS)
        for place, key, knows in self._pending:
            if knows > found.position:
                self._find(place, f"record {_show(key)} knows of input offset {knows}, ahead of its position {found.position}", _OURS, key)

    def _settle_deleted(self) -> None:
        self.findings += self._deleted
        self._deleted.clear()

    def _is_repaired(self, finding: Finding) -> bool:
        """Whether nothing reads the record any more and a newer one, or a deletion, stands in its place."""
        if self.position is None or finding.key in self.damaged:
            return False
        if finding.key in (codec.POSITION_KEY, codec.FENCE_KEY):
            return finding.offset < self._anew_from
        newest = self.live.get(finding.key)
        return finding.offset < self.position.restore_from and (newest is None or newest[0] > finding.offset)

    def _find(self, offset: int, text: str, action: str, key: bytes = codec.POSITION_KEY) -> None:
        self.findings.append(Finding(offset, text, action, key))

    # --- what there is ----------------------------------------------------------------------------------------------

    def count(self, kind: type) -> int:
        """How many live records are of this kind."""
        return sum(isinstance(value, kind) for _, value, _ in self.live.values())

    @property
    def page_bytes(self) -> int:
        """Bytes of the newest page records."""
        return sum(size for _, value, size in self.live.values() if isinstance(value, Page))

    @property
    def oldest_page(self) -> int | None:
        """The least input offset that a page has learned up to; None without pages."""
        return min((page.position for _, page in self._pages()), default=None)

    @property
    def newest_page(self) -> int | None:
        """The highest such offset."""
        return max((page.position for _, page in self._pages()), default=None)

    def rows(self) -> Iterator[Row]:
        """Every series that is known, as a restore takes it.

        Of two pages the newer one counts, with what was told since it was written; what was forgotten does not. A series that has a record
        about its episode and is on no page yet is not among them.
        """
        newest: dict[str, int] = {}
        for _, page in self._pages():
            for series in page.keys:
                newest[series] = max(page.position, newest.get(series, -1))
        for gone in self._forgotten():
            for series in gone.keys:
                if newest.get(series, gone.offset + 1) <= gone.offset:
                    del newest[series]
        for _, page in self._pages():
            table = np.frombuffer(page.rows, np.uint8).reshape(-1, page.row_bytes)
            last_use = np.frombuffer(page.last_use, np.int64).tolist()
            where = _place(page.layout, "episode")
            for series, row, used in zip(page.keys, table, last_use, strict=True):
                if newest.get(series) != page.position:
                    continue
                del newest[series]  # a series that is on two pages of one offset counts once
                data = row.tobytes()
                told = self.episode(series)
                if told is not None and where is not None and told.position > page.position and len(told.state) == where.stop - where.start:
                    data = data[: where.start] + told.state + data[where.stop :]
                yield Row(series, data, page.position, used, page.layout)

    def episodes(self) -> Iterator[tuple[str, bytes, int]]:
        """What was told about every series: canonical key, the episode part of its row, input offset of its page or record."""
        known = set()
        for row in self.rows():
            known.add(row.key)
            yield row.key, row.field("episode"), row.position
        for key, (_, value, _) in self.live.items():
            if isinstance(value, Episode) and (series := codec.series_of(key)) not in known:
                yield series, value.state, value.position

    def episode(self, series: str) -> Episode | None:
        """The record of a series' episode, if there is one."""
        found = self.live.get(codec.episode_key(series))
        return found[1] if found is not None and isinstance(found[1], Episode) else None

    def digest(self) -> Digest:
        """The fingerprint of `rows`: of each the last use, as 8 bytes, and the state row."""
        found = Digest()
        for row in self.rows():
            found.add(row.key, row.last_use.to_bytes(8, "little", signed=True) + row.data)
        return found

    def _pages(self) -> Iterator[tuple[bytes, Page]]:
        for key, (_, value, _) in self.live.items():
            if isinstance(value, Page):
                yield key, value

    def _forgotten(self) -> Iterator[Forgotten]:
        for _, value, _ in self.live.values():
            if isinstance(value, Forgotten):
                yield value


async def committed(log: CommittedLog, *, transactional: bool) -> tuple[Contents, tuple[int, int]]:
    """What a restart would read: from where the last position says, to the end.

    Returns:
        What is there, and the bounds of the log.
    """
    first, end = await log.bounds()
    tail = await _tail(log, first, end)
    contents = Contents(transactional)
    start = max(first, tail.position.restore_from) if tail.position is not None else first
    async for records in log.read(start, end):
        contents.add(records)
    # Fences may lie in front of what a restore reads, and then count nevertheless.
    contents.owners, contents.fence = tail.owners, tail.fence or contents.fence
    return contents, (first, end)


async def whole(log: CommittedLog, *, transactional: bool, progress: Callable[[int, int, int], None]) -> tuple[Contents, tuple[int, int]]:
    """Everything that is committed, looked at closely.

    Args:
        log: the partition.
        transactional: whether its writers are.
        progress: is told log start, offset reached and log end.

    Returns:
        What is there, and the bounds of the log.
    """
    first, end = await log.bounds()
    contents = Contents(transactional)
    async for records in log.read(first, end):
        contents.add(records)
        progress(first, records[-1].offset, end)
    contents.finish(first)
    return contents, (first, end)


async def _tail(log: CommittedLog, first: int, end: int) -> Contents:
    """Positions and fences, so far back as a claim looks: until there is a position."""
    contents = Contents()
    for start in probes(first, end):
        contents = Contents()
        async for records in log.read(start, end):
            contents.add(record for record in records if record.key in (codec.POSITION_KEY, codec.FENCE_KEY))
        if contents.position is not None:
            break
    return contents


def _place(layout: tuple[tuple[str, str, int, int], ...], name: str) -> slice | None:
    """Where a field lies in a row."""
    for own, code, offset, count in layout:
        if own == name:
            return slice(offset, offset + np.dtype(code).itemsize * count)
    return None


def _check(key: bytes, value: Page | Episode | Forgotten) -> int:
    """Whether a record fits its key and itself; returns the newest input offset that it knows of.

    Raises:
        StateError: it does not.
    """
    where = f"record {_show(key)} "
    if isinstance(value, Episode):
        return value.position
    if isinstance(value, Forgotten):
        if not key.startswith(b"G|%d|" % value.offset):
            raise StateError(f"{where}is about input offset {value.offset}")
        return value.offset
    count = len(value.keys)
    if key != codec.page_key(value.page_rows, value.number):
        raise StateError(f"{where}holds page {value.number} of {value.page_rows} rows")
    if len(set(value.keys)) < count:
        raise StateError(f"{where}names a series twice")
    sizes = (len(value.slots), len(value.last_use), len(value.spellings), len(value.rows))
    width = sum(length for name, _, _, length in value.layout if name == "last") if value.features else 1
    if sizes != (count, 8 * count, 16 * width * count, value.row_bytes * count):
        raise StateError(f"{where}has columns of {sizes} bytes for {count} rows of {value.row_bytes} bytes")
    slots = np.frombuffer(value.slots, np.uint8)
    if len(np.unique(slots)) < count or (count and int(slots.max()) >= value.page_rows):
        raise StateError(f"{where}puts two rows into one place, or one outside of the page")
    if count and int(np.frombuffer(value.last_use, np.int64).max()) >= value.position:
        raise StateError(f"{where}has rows that were used behind input offset {value.position}, up to which it has learned")
    if any(offset + np.dtype(code).itemsize * length > value.row_bytes for _, code, offset, length in value.layout):
        raise StateError(f"{where}has fields that its rows of {value.row_bytes} bytes have no room for")
    return value.position


def _show(key: bytes) -> str:
    return key.decode(errors="backslashreplace")[:80]
