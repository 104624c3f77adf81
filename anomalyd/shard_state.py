"""What a partition remembers, as it is written to a changelog and read back: series, their rows, and what of them is not written yet.

Series lie in pages of state rows. A page is *dirty* since the offset of the first sample that it learned, or of the first record in front
of which a series in it was forgotten, since it was last written. A page that was written holds what had been learned up to one position, S;
after a restart the records from the oldest dirty page on are replayed, and each row learns from those at S or behind it. Series are
independent of each other, so it does not matter that pages are of different ages.

A page is of one model throughout: that which scores at its S. From a swap on all pages are dirty, so the offset from which to replay stays
in front of the swap until the last page of the old model was written once more, and what is written down of the models, from that offset
on, says through which of them the rows of any page have to go.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Episodes
from anomalyd.alerts.machine import EPISODE, OPEN
from anomalyd.batch import SampleBatch
from anomalyd.detector import Rows
from anomalyd.detector.layout import COUNTER_KIND
from anomalyd.errors import StateError
from anomalyd.jit import njit
from anomalyd.series import FRESH, NEVER, SeriesIndex
from anomalyd.state.codec import FORGOTTEN_PER_RECORD, Episode, Forgotten, Page, encode, episode_key, forgotten_key, page_key
from anomalyd.state.digest import digest
from anomalyd.state.ports import Restored

_CLEAN: Final = int(np.iinfo(np.int64).max)
_FORGOTTEN_BYTES: Final = 256 << 10
"""Of keys in one record of forgotten series, about: keys may be long."""
_SHIFT: Final = 40
"""A page's number is row * ceil(2^40 / rows of a page) / 2^40: exact for fewer than 2^32 rows, and a division is ten times as slow."""


class Stretch(NamedTuple):
    """Samples that can be scored together."""

    stop: int
    """Behind the last one."""
    rows: NDArray[np.int32]
    """Rows of series that begin anew because they had stayed away for too long, (n,)."""
    samples: NDArray[np.int64]
    """Index of the sample with which each of them begins, ascending, (n,)."""


class _Rows(NamedTuple):
    """Series of a page and what is known of them; n."""

    keys: list[str]
    last_use: NDArray[np.int64]
    spellings: NDArray[np.uint64]
    """(n, F, 2), for F features of an entity."""


@dataclass(slots=True)
class _Loaded:
    """A page as it was read. Rows that have their place are there already; the others wait for one."""

    position: int
    rewritten: bool
    """Its rows were made from those of another model or release."""
    place: int
    """Of the model whose rows they are now."""
    placed: _Rows
    rows: NDArray[np.int32]
    """Where the placed ones are."""
    waiting: _Rows
    states: NDArray[np.uint8]
    """State rows of the waiting ones, (n, row_bytes)."""


@dataclass(slots=True)
class _Moved:
    """A record whose series lie in other pages now: it is needed until those are written."""

    since: int
    pages: set[int] = field(default_factory=set)


class ShardState:
    """The memory of one shard and its counterpart in the changelog.

    Args:
        index: series → row.
        rows: of these series.
        episodes: over the same rows.
        reading: fingerprint of wire format and selection; spellings of another one mean nothing here.
        features: fingerprint of what the features of entities are, empty without entities; of rows of another one only the episode counts.
        clock: the field that holds the newest event time of a row.
    """

    def __init__(
        self,
        index: SeriesIndex,
        rows: Rows,
        episodes: Episodes,
        reading: str,
        features: str = "",
        clock: str = "time",
    ) -> None:
        self.position = 0
        """Input offset behind the last record that was learned."""
        self.newest_use = -1
        """Input offset of the last record with a sample that was learned: the highest last use of all rows; -1: there is none."""
        self.live_from = 0
        """Input offset from which on it is news what comes out."""
        self.replaying = False
        self._index = index
        self._rows = rows
        self._episodes = episodes
        self._reading = reading
        self._features = features
        self._clock = clock
        self.begin_pages()
        self._anew = np.empty(0, np.int64)
        self._moved: dict[bytes, _Moved] = {}
        self._part = (-1, 0)  # of records of forgotten series: offset, next number
        # Of a restore, besides what was loaded.
        self._valid_from: NDArray[np.int64] | None = None
        self._gate_until = 0
        self._reveal: list[tuple[int, list[str]]] = []  # newest first
        self._restored = Restored()
        self._replay_from = 0
        self._as_loaded: dict[str, bytes] = {}

    # --- learning ---------------------------------------------------------------------------------------------------

    def touch(self, batch: SampleBatch, offsets: NDArray[np.int64], ttl_ms: int, start: int = 0) -> Stretch:
        """Takes note of samples that are about to be learned, from `start` on, as many as can be learned together.

        A series of which nothing was heard for more than `ttl_ms` of its own event time begins anew. Whether that is so depends on the
        sample before, and if it is one of those that are not learned yet, the stretch ends here.

        Args:
            batch: samples.
            offsets: of the records, by their number in `batch.record`, ascending.
            ttl_ms: event time, milliseconds.
            start: index of the first sample.
        """
        if len(self._anew) < len(batch):
            self._anew = np.empty(len(batch), np.int64)
        use, dirty = self._index.use, self._dirty
        newest = self._rows.pages.field(self._clock)[:, 0].view(np.int64)
        stop, count = _stretch(
            start, use, dirty, self._reciprocal, batch.row, batch.time_ms, batch.record, offsets, newest, ttl_ms, self._anew
        )
        self.newest_use = max(self.newest_use, int(offsets[batch.record[stop - 1]]))
        samples = self._anew[:count].copy()
        return Stretch(stop, batch.row[samples], samples)

    def gone(self, heard: int, silence_ms: int) -> NDArray[np.int32]:
        """Rows of series that are no more, in the order of their keys.

        The partition's time is the median of the newest event times of those series that were heard of lately: a few of them with wrong
        clocks do not move it. Series that were heard of lately are there, whatever their clocks say.

        Args:
            heard: lately is within so many offsets before the newest sample.
            silence_ms: others are gone whose newest event time lies farther back than that from the partition's time.
        """
        last_use = self._index.last_use
        since = self.newest_use - heard
        silent = np.flatnonzero(last_use < since)
        if not len(silent):
            return silent.astype(np.int32)
        times = self._rows.take(self._clock, np.flatnonzero((last_use >= since) & (last_use < FRESH)))[:, 0]
        middle = (len(times) - 1) // 2
        now_ms = int(np.partition(times, middle)[middle])
        rows = silent[self._rows.take(self._clock, silent)[:, 0] < now_ms - silence_ms].tolist()
        return np.array(sorted(rows, key=lambda row: self._index.keys[row] or ""), np.int32)

    def cleared(self, rows: NDArray[np.int32], offset: int) -> None:
        """Empties rows whose series were forgotten in front of the record at `offset`."""
        self._rows.clear(rows)
        self._soil(rows, offset)
        if self._valid_from is not None:
            self._valid_from[rows] = 0

    def changed(self, rows: Sequence[int], offset: int) -> None:
        """Something that is in these rows has changed in front of the record at `offset`."""
        if len(rows):
            self._soil(rows, offset)

    def _soil(self, rows: Sequence[int] | NDArray[np.int32], offset: int) -> None:
        np.minimum.at(self._dirty, np.asarray(rows) // self._page_rows, offset)

    def newest(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The newest judged value of each row, (n, F), NaN for features of which there was none, and whether it is a rate, (n,)."""
        seen, born = self._rows.take("seen", rows).astype(np.float64), self._rows.take("born", rows) != 0
        # Nothing at all is known of a series whose row was lost, and an alert has to say something.
        seen[~born & born.any(axis=1, keepdims=True)] = np.nan
        return seen, self._rows.take("kind", rows)[:, 0] == COUNTER_KIND

    # --- writing ----------------------------------------------------------------------------------------------------

    @property
    def dirty_pages(self) -> int:
        """Pages that have changed since they were written."""
        return int(np.count_nonzero(self._dirty != _CLEAN))

    @property
    def pages_in_use(self) -> int:
        """Pages that hold series, or have held some."""
        return -(-len(self._index.keys) // self._page_rows)

    @property
    def replay_from(self) -> int:
        """Input offset from which on records would have to be replayed into what is written."""
        if self.replaying:
            return self._replay_from
        oldest = int(self._dirty.min(initial=_CLEAN))
        return min(self.position, oldest, min((moved.since for moved in self._moved.values()), default=_CLEAN))

    def snapshot(self, most: int) -> dict[bytes, bytes | None]:
        """Records of up to `most` dirty pages, oldest dirty first, as they are at the current position; they are clean then.

        Pages without series are tombstoned. While records are replayed there is nothing to write, since rows are of different ages.
        """
        if self.replaying or self._valid_from is not None:
            return {}
        dirty = np.flatnonzero(self._dirty != _CLEAN)
        blocked = {key for key, moved in self._moved.items() if moved.pages}
        records: dict[bytes, bytes | None] = {}
        for number in dirty[np.argsort(self._dirty[dirty], kind="stable")].tolist():
            if len(records) >= most:
                break
            key = page_key(self._page_rows, number)
            if key not in blocked:
                records[key] = self._encoded(key, number)
                self._dirty[number] = _CLEAN
                for moved in self._moved.values():
                    moved.pages.discard(number)
        for key in [key for key, moved in self._moved.items() if not moved.pages]:
            del self._moved[key]
            # A page of ours that waited for others is dirty, and comes with one of the next snapshots.
            if self._own_number(key) is None:
                records[key] = None
        return records

    def _own_number(self, key: bytes) -> int | None:
        """The page that this record is written for, None if it is none of ours."""
        ours = key.startswith(b"S|%d|" % self._page_rows)
        number = int(key.rsplit(b"|", 1)[1])
        return number if ours and number < len(self._dirty) else None

    def _encoded(self, key: bytes, number: int) -> bytes | None:
        first = number * self._page_rows
        held = self._index.keys[first : first + self._page_rows]
        slots = np.array([slot for slot, series in enumerate(held) if series is not None], np.uint8)
        if not len(slots):
            return None
        rows = first + slots.astype(np.int32)
        self._rows.bring(rows)
        page = Page(
            position=self.position,
            number=number,
            page_rows=self._page_rows,
            model=self._rows.detector.model.hash,
            layout=self._rows.layout,
            row_bytes=self._rows.pages.layout.row_bytes,
            reading=self._reading,
            keys=[series for series in held if series is not None],
            slots=slots.data,
            last_use=self._index.last_use[rows].data,
            spellings=self._index.spellings(rows).reshape(-1).data,
            rows=self._rows.pages.buffer[rows].reshape(-1).data,
            features=self._features,
        )
        return encode(key, page)

    def episode_records(self, series: Iterable[str]) -> dict[str, bytes]:
        """By series, the encoded record of its episode as it is at the current position; nothing for those that are not kept."""
        found = {}
        for name in series:
            row = self._index.find(name)
            if row is not None:
                found[name] = encode(episode_key(name), Episode(self.position, self._episodes.state(row)))
        return found

    def forgotten_records(self, offset: int, series: Collection[str]) -> dict[bytes, bytes]:
        """The encoded records of series that were forgotten in front of `offset`, by key."""
        records = {}
        part = self._part[1] if self._part[0] == offset else 0
        chunk: list[str] = []
        size = 0
        for number, name in enumerate(series, 1):
            chunk.append(name)
            size += len(name)
            if len(chunk) == FORGOTTEN_PER_RECORD or size >= _FORGOTTEN_BYTES or number == len(series):
                key = forgotten_key(offset, part)
                records[key] = encode(key, Forgotten(offset, chunk))
                part, chunk, size = part + 1, [], 0
        self._part = (offset, part)
        return records

    def digest(self) -> str:
        """A number that is the same for the same series in the same state, wherever their rows are."""
        held = [(series, row) for row, series in enumerate(self._index.keys) if series is not None]
        self._rows.bring(np.fromiter((row for _, row in held), np.int32, len(held)))
        last_use, buffer = self._index.last_use.astype("<i8"), self._rows.pages.buffer
        return digest((series, last_use[row].tobytes() + buffer[row].tobytes()) for series, row in held)

    # --- another model ----------------------------------------------------------------------------------------------

    def begin_pages(self) -> None:
        """Pages are as large as the models of `rows` need them; nothing is known yet."""
        self._loaded: dict[bytes, _Loaded] = {}
        self._size_pages(self._rows.page_rows)

    def _size_pages(self, page_rows: int) -> None:
        self._page_rows = page_rows
        self._reciprocal = -(-(1 << _SHIFT) // page_rows)
        self._dirty = np.full(-(-self._rows.capacity // page_rows), _CLEAN, np.int64)

    @property
    def used(self) -> NDArray[np.int32]:
        """Rows that hold series."""
        return np.flatnonzero(self._index.last_use != NEVER).astype(np.int32)

    def swapped(self, late: NDArray[np.int32], offset: int) -> None:
        """Another model scores from an offset on, and these rows were not of it: their pages are to be written once more."""
        # With larger rows a page may hold fewer than before.
        if self._rows.page_rows < self._page_rows:
            self._cut_pages(self._rows.page_rows, offset)
        self._soil(late, offset)

    def _cut_pages(self, page_rows: int, offset: int) -> None:
        """Pages hold fewer rows from now on; what was written is needed until those are written that hold its series now."""
        # None of a size that there are records of: of two records each could wait for the other.
        taken = {int(key.split(b"|")[1]) for key in self._moved}
        while page_rows in taken:
            page_rows -= 1
        before, dirty = self._page_rows, self._dirty
        # A page without series at the end is none in use; while it is dirty there is still a record of it, with series that were forgotten.
        used = max(self.pages_in_use, int(np.flatnonzero(dirty != _CLEAN).max(initial=-1)) + 1)
        self._size_pages(max(1, page_rows))
        parts = [set(range(n * before // self._page_rows, -(-(n + 1) * before // self._page_rows))) for n in range(used)]
        most = self.pages_in_use
        for moved in self._moved.values():
            moved.pages = {number for n in moved.pages for number in parts[n] if number < most}
        for n, part in enumerate(parts):
            since = min(int(dirty[n]), offset)
            numbers = {number for number in part if number < most}
            for number in numbers:
                self._dirty[number] = min(int(self._dirty[number]), since)
            self._moved[page_key(before, n)] = _Moved(since, numbers)

    # --- reading back -----------------------------------------------------------------------------------------------

    def load(self, page: Page, place: int = 0) -> None:
        """Puts the rows of a page into memory. Of a page that comes several times the last one counts.

        Args:
            page: the page.
            place: of the model that scores behind its S, in `rows`.

        Raises:
            StateError: its columns do not fit each other, or its rows cannot be made into rows of this release.
        """
        key = page_key(page.page_rows, page.number)
        self.unload(key)
        n = len(page.keys)
        slots = np.frombuffer(page.slots, np.uint8)
        same_reading, width = page.reading == self._reading, self._index.features
        spelled = len(page.spellings) == 16 * n * width or not same_reading
        if not (len(slots) == len(page.last_use) // 8 == n and spelled and len(page.rows) == n * page.row_bytes):
            raise StateError(f"page {key.decode()}: {n} series, but columns of other lengths")
        if (np.diff(slots.astype(np.int16)) <= 0).any():
            raise StateError(f"page {key.decode()}: its slots do not ascend")
        last_use = np.frombuffer(page.last_use, np.int64)
        spellings = np.zeros((n, width, 2), np.uint64)
        if same_reading:
            spellings = np.frombuffer(page.spellings, np.uint64).reshape(n, width, 2)
        states = np.frombuffer(page.rows, np.uint8).reshape(n, page.row_bytes)
        states, rewritten = self._rows.made(place, states, page.layout, page.model, same_features=page.features == self._features)
        rows = page.number * page.page_rows + slots.astype(np.int64)
        ours = (rows < self._rows.capacity) & (page.page_rows == self._page_rows)
        here, elsewhere = np.flatnonzero(ours), np.flatnonzero(~ours)

        def some(chosen: NDArray[np.intp]) -> _Rows:
            keys = page.keys if len(chosen) == n else [page.keys[i] for i in chosen.tolist()]
            return _Rows(keys, last_use[chosen], spellings[chosen])

        placed = rows[here].astype(np.int32)
        self._rows.put(place, placed, states[here] if len(elsewhere) else states)
        self._loaded[key] = _Loaded(page.position, rewritten, place, some(here), placed, some(elsewhere), states[elsewhere])

    def unload(self, key: bytes) -> None:
        """A page that was loaded is no more."""
        loaded = self._loaded.pop(key, None)
        if loaded is not None:
            self._rows.wipe(loaded.place, loaded.rows)

    def begin(self, restored: Restored, live: Collection[bytes] | None = None) -> list[str]:
        """Takes up work where it was left, after the last `load`.

        Args:
            restored: what the changelog holds besides pages.
            live: keys of the records that are still there; pages that are not were tombstoned after they had been read.

        Returns:
            Series that had to be forgotten in front of the position, because fewer are kept than there are.
        """
        if live is not None:
            self._unload_but(set(live))
        if restored.position is None:
            self._unload_but(set())
            return []
        self._restored = restored
        self.live_from = self.position = restored.position
        self._replay_from = min(restored.replay_from, restored.position)
        self.replaying = self._replay_from < restored.position
        placement = _Placement(self._rows, self._page_rows, self._dirty, self._loaded, restored, self._index.features)
        dropped = placement.run()
        self._loaded.clear()
        self._moved = placement.moved
        for key in self._moved:
            number = self._own_number(key)
            if number is not None:
                # As it was written it also holds series that were forgotten: what says so has to outlive it.
                self._dirty[number] = min(int(self._dirty[number]), self._moved[key].since)
                # Rows that moved within it go with its own writing.
                self._moved[key].pages.discard(number)
        rows = np.fromiter(placement.rows.values(), np.int32, len(placement.rows))
        self._index.restore(list(placement.rows), rows, placement.last_use[rows], placement.spellings[rows])
        rows = np.sort(rows)
        self._episodes.restored(rows, self._rows.take("episode", rows))
        active = self._episodes.active(rows)
        states = self._rows.take("episode", active)
        self._as_loaded = {self._index.keys[row] or "": state.tobytes() for row, state in zip(active.tolist(), states, strict=True)}
        self._valid_from = placement.valid_from
        self._gate_until = max(restored.position, int(self._valid_from.max(initial=0)))
        hidden: dict[int, list[str]] = {}
        for series, offset in restored.forgotten.items():
            if series not in placement.rows and offset > self._replay_from:
                hidden.setdefault(offset, []).append(series)
        for names in hidden.values():
            self._index.hide(names)
        self._reveal = sorted(hidden.items(), reverse=True)
        self._gate_until = max(self._gate_until, *hidden, 0)
        if dropped:
            self.hide(dropped, restored.position)
        self._part = (restored.position, sum(offset == restored.position for offset in restored.forgotten.values()))
        return dropped

    def _unload_but(self, kept: set[bytes]) -> None:
        for key in [key for key in self._loaded if key not in kept]:
            self.unload(key)

    # --- replay -----------------------------------------------------------------------------------------------------

    @property
    def boundary(self) -> int:
        """Input offset in front of which a series was forgotten that counts again from there on; NEVER: there is none."""
        return self._reveal[-1][0] if self._reveal else NEVER

    def reach(self, offset: int) -> None:
        """The record at this offset is next: series that were forgotten in front of it count again."""
        reached: list[str] = []
        while self._reveal and self._reveal[-1][0] <= offset:
            reached += self._reveal.pop()[1]
        if reached:
            self._index.reveal(reached)
        if self._valid_from is not None and not self.replaying and offset >= self._gate_until:
            self._valid_from = None

    def hide(self, keys: Collection[str], until: int) -> None:
        """Samples of these series in front of `until` do not count."""
        self._index.hide(keys)
        self._reveal.append((until, list(keys)))
        self._reveal.sort(key=lambda entry: -entry[0])
        self._gate_until = max(self._gate_until, until)
        self._restored.forgotten.update(dict.fromkeys(keys, until))

    def unlearned(self, batch: SampleBatch, offsets: NDArray[np.int64]) -> SampleBatch:
        """The samples of which the rows do not know yet."""
        if self._valid_from is None:
            return batch
        keep = offsets[batch.record] >= self._valid_from[batch.row]
        if keep.all():
            return batch
        return batch.part(keep)

    def end_replay(self, moved: Collection[str]) -> int:
        """The replay has come to the position: episodes must be the ones that were told of.

        Args:
            moved: series with transitions in the replay.

        Returns:
            How many were not, and are now.
        """
        self.replaying = False
        series = set(moved) | self._restored.episodes.keys()
        found = [row for row in map(self._index.find, series) if row is not None]
        self._rows.bring(np.array(found, np.int32))
        divergences = sum(not self.hold(name, self._index.find(name), moved=name in moved) for name in sorted(series))
        self._restored, self._as_loaded = Restored(), {}
        # Those that were forgotten had been idle for longer than some that are kept: this is what the last owner had.
        last_use = self._index.last_use
        self.newest_use = int(last_use.max(initial=-1, where=last_use < FRESH))
        self.reach(self.live_from)
        return divergences

    def hold(self, series: str, row: int | None, *, moved: bool) -> bool:
        """Whether the episode of a series is the one that was told of; it is now.

        Args:
            series: canonical key.
            row: where it is, None if it has no row.
            moved: there were transitions in the replay.
        """
        record = self._restored.episodes.get(series)
        if record is not None and record.position <= self._restored.forgotten.get(series, -1):
            record = None
        if row is None:
            return record is None or self._carry(series, record)
        valid_from = 0 if self._valid_from is None else int(self._valid_from[row])
        if record is not None and record.position > valid_from:
            # Who is silent is decided by looking at all series, which a replay does not do: it has to be told.
            silence = self._episodes.adopt_silence(row, record.state)
            agreed = self._episodes.agree(row, record.state)
            # The record must stay until the page has it.
            since = record.position - 1
            if silence:
                self._soil([row], since)
        elif moved:
            loaded = self._as_loaded.get(series)
            agreed = self._episodes.unopen(row) if loaded is None else self._episodes.agree(row, loaded)
            since = self.live_from
        else:
            return True
        if not agreed:
            self._soil([row], since)
        return agreed

    def _carry(self, series: str, record: Episode) -> bool:
        """An alert that is open must be resolved one day, even where the series' state was lost: it gets a row that knows nothing else."""
        episode = np.frombuffer(record.state, EPISODE)[0]
        if episode["state"] != OPEN and not episode["silent"]:
            return True
        row = self._index.allocate(series)
        if row < 0:
            return True
        self._rows.pages.field(self._clock)[row] = episode["seen_ms"] if episode["state"] == OPEN else episode["silent_ms"]
        self._index.use[row, 0] = record.position - 1
        self._soil([row], record.position - 1)
        self._episodes.adopt_silence(row, record.state)
        self._episodes.agree(row, record.state)
        return False


class _Placement:
    """Finds out, at the end of a restore, which row each series has.

    Args:
        states: hold the placed rows of `loaded`.
        page_rows: of a page.
        dirty: offset since which each page is dirty.
        loaded: what was read, by key of its record.
        restored: what is known besides.
        features: that a row has spellings of.
    """

    def __init__(
        self,
        states: Rows,
        page_rows: int,
        dirty: NDArray[np.int64],
        loaded: Mapping[bytes, _Loaded],
        restored: Restored,
        features: int,
    ) -> None:
        self._states = states
        self._page_rows = page_rows
        self._dirty = dirty
        # Of two rows of a series the one that has learned more counts, so those come last.
        self._loaded = sorted(loaded.items(), key=lambda item: item[1].position)
        self._position = restored.position or 0
        # What was rewritten went through models that are known from here on; they must stay known until it is written.
        self._rewritten_since = min(restored.replay_from, self._position)
        self._forgotten = restored.forgotten
        self.rows: dict[str, int] = {}
        """By series."""
        self.moved: dict[bytes, _Moved] = {}
        # Zeroed memory costs nothing where nothing is written.
        self.valid_from = np.zeros(states.capacity, np.int64)
        """Offset from which on each row has yet to learn, (capacity,)."""
        self.last_use = np.zeros(states.capacity, np.int64)
        self.spellings = np.zeros((states.capacity, features, 2), np.uint64)

    def run(self) -> list[str]:
        """Fills the attributes; returns series for which there is no room."""
        self._take_placed()
        self._drop_forgotten()
        chosen = self._chosen()
        fresh = [series for series in chosen if series not in self.rows]
        excess = len(self.rows) + len(fresh) - self._states.capacity
        dropped: list[str] = []
        if excess > 0:
            dropped = sorted(fresh, key=lambda series: (*self._worth(*chosen[series]), series))[:excess]
            for series in dropped:
                del chosen[series]
        self._place(chosen)
        return dropped

    def _take_placed(self) -> None:
        keys: list[str] = []
        parts: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        for _, page in self._loaded:
            keys += page.placed.keys
            parts.append(page.rows)
            self.valid_from[page.rows] = page.position
            self.last_use[page.rows] = page.placed.last_use
            self.spellings[page.rows] = page.placed.spellings
            if page.rewritten:
                self._soil(page.rows, self._rewritten_since)
        rows = np.concatenate(parts)
        self.rows = dict(zip(keys, rows.tolist(), strict=True))
        if len(self.rows) < len(keys):
            lost = np.flatnonzero(np.fromiter(map(self.rows.__getitem__, keys), np.int32, len(keys)) != rows)
            for number in lost.tolist():
                # The record of the forgetting hides this one, too, so it has to outlive the page as it was written.
                offset = self._forgotten.get(keys[number], -1)
                if self.valid_from[rows[number]] <= offset:
                    self._soil(rows[number : number + 1], offset)
            # What was written there must not come back once the other one was forgotten.
            self._drop(rows[lost], self._position)

    def _drop_forgotten(self) -> None:
        for series, offset in self._forgotten.items():
            row = self.rows.get(series)
            # A page of that very offset was written before: behind it the series would not be there, or have samples again.
            if row is not None and self.valid_from[row] <= offset:
                del self.rows[series]
                self._drop(np.array([row], np.int32), offset)

    def _chosen(self) -> dict[str, tuple[int, int]]:
        """Of the rows that have no place yet those that count: page and number by series."""
        best: dict[str, tuple[int, int]] = {}
        for number, (key, page) in enumerate(self._loaded):
            if not page.waiting.keys:
                continue
            moved = self.moved[key] = _Moved(self._position)
            for place, series in enumerate(page.waiting.keys):
                offset = self._forgotten.get(series, -1)
                if page.position <= offset:
                    moved.since = min(moved.since, offset)
                elif series not in self.rows or self.valid_from[self.rows[series]] < page.position:
                    best[series] = number, place
        return best

    def _worth(self, number: int, place: int) -> tuple[bool, int]:
        """An open alert must be resolved one day, so its series goes last; else the longest idle go first."""
        page = self._loaded[number][1]
        field = self._states.layout_of(page.place)["episode"]
        episode = page.states[place, field.offset : field.offset + field.count].view(EPISODE)[0]
        return bool(episode["state"] == OPEN or episode["silent"]), int(page.waiting.last_use[place])

    def _place(self, chosen: Mapping[str, tuple[int, int]]) -> None:
        used = np.zeros(self._states.capacity, np.bool_)
        used[list(self.rows.values())] = True
        free = iter(np.flatnonzero(~used).tolist() if chosen else [])
        by_page: dict[int, list[tuple[int, int]]] = {}
        for series, (number, place) in chosen.items():
            row = self.rows[series] if series in self.rows else next(free)
            self.rows[series] = row
            by_page.setdefault(number, []).append((place, row))
        for number, pairs in by_page.items():
            key, page = self._loaded[number]
            places, rows = np.array(sorted(pairs, key=itemgetter(1))).T
            self._states.put(page.place, rows, page.states[places])
            page.states = page.states[:0]
            self.valid_from[rows] = page.position
            self.last_use[rows] = page.waiting.last_use[places]
            self.spellings[rows] = page.waiting.spellings[places]
            self._soil(rows, self._rewritten_since if page.rewritten else self._position)
            self.moved[key].since = min(self.moved[key].since, self._rewritten_since if page.rewritten else self._position)
            self.moved[key].pages.update((rows // self._page_rows).tolist())

    def _drop(self, rows: NDArray[np.int32], offset: int) -> None:
        self._states.clear(rows)
        self.valid_from[rows] = 0
        self._soil(rows, offset)

    def _soil(self, rows: NDArray[np.int32], offset: int) -> None:
        np.minimum.at(self._dirty, rows // self._page_rows, offset)


@njit
def _stretch(
    start: int,
    use: NDArray[np.int64],
    dirty: NDArray[np.int64],
    reciprocal: int,
    rows: NDArray[np.int32],
    times: NDArray[np.int64],
    record: NDArray[np.int32],
    offsets: NDArray[np.int64],
    newest: NDArray[np.int64],
    ttl_ms: int,
    anew: NDArray[np.int64],
) -> tuple[int, int]:
    """See `ShardState.touch`. `newest` is the event time in each row, `anew` receives samples; returns the end and how many of them."""
    first = offsets[record[start]]
    count = 0
    for i in range(start, len(rows)):
        row, now, offset = rows[i], times[i], offsets[record[i]]
        last = use[row, 0]
        # Seen in this stretch, or in the one before by the same record, which does no harm.
        seen = i > start and first <= last < FRESH
        if seen:
            # Which of the samples that are not learned yet will be the newest is for the detector to say.
            if now - min(newest[row], use[row, 1]) > ttl_ms:
                return i, count
            use[row, 1] = min(now, use[row, 1])
        else:
            if last == FRESH:
                newest[row] = now  # says nothing in an empty row, and spares the next sample of the series from a stretch of its own
            elif now - newest[row] > ttl_ms:
                newest[row] = now  # likewise: the row is about to be emptied
                anew[count] = i
                count += 1
            use[row, 1] = now
        use[row, 0] = offset
        page = (np.int64(row) * reciprocal) >> _SHIFT
        dirty[page] = min(dirty[page], offset)
    return len(rows), count
