"""Series → state row, for one partition of one stream."""

from collections.abc import Collection, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.selection import Selection
from anomalyd.series.aliases import AliasTable
from anomalyd.series.entities import Entities
from anomalyd.series.key import parse_key, series_key

EXCLUDED: Final = -1
"""Answer of `SeriesIndex.row`: the series is not selected, or hidden for now."""
FULL: Final = -2
"""Answer of `SeriesIndex.row`: no row is free; evict first."""

MAX_KEY_CHARACTERS: Final = 4096
"""Longest canonical key; keys are kept in memory for every series and travel in every alert."""

_MOST_CODES: Final = int(np.iinfo(np.int32).max)

NEVER: Final = int(np.iinfo(np.int64).max)
"""In place of the last use of a row: it is free."""
FRESH: Final = NEVER - 1
"""In place of the last use of a row: given to a series of which no sample has been used yet."""


class KeyTooLongError(ValueError):
    """The canonical key of a series exceeds MAX_KEY_CHARACTERS."""


class Released(NamedTuple):
    """Series that lost their rows."""

    rows: NDArray[np.int32]
    keys: list[str]
    """Canonical key of the series that had each row."""


class SeriesIndex:
    """Which row each series has, which rows are free, and which series have been idle longest.

    Idleness is the offset of the record that held the last sample of a series: it follows from the order of the partition alone, never from
    how that was cut into batches, and never from row numbers, which are others after a restart.

    A series costs its key text, a dictionary entry, 32 bytes of bookkeeping and 32 to 64 bytes for each raw spelling.

    With entities a row belongs to an entity, and a raw spelling stands for one of its features. It leads to a *code*: row * F + number of
    the feature, for F features. Without, F is 1 and the code is the row.

    Args:
        capacity: most rows.
        select: which series are watched; None: all.
        entities: which values belong together; None: each series has a row of its own.
    """

    def __init__(self, capacity: int, select: Selection | None = None, entities: Entities | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.features = 1 if entities is None else len(entities)
        """F: codes of a row."""
        if capacity * self.features > _MOST_CODES:
            raise ValueError(f"{capacity} rows of {self.features} features are more than {_MOST_CODES} values")
        self.keys: list[str | None] = []
        """Canonical key of each row that was ever used; None for a free one."""
        # One spelling for a series is the rule; the rest is room for excluded series and for churning labels that are dropped.
        self.aliases = AliasTable(limit=3 * capacity * self.features + 1024)
        self.allocations = 0
        """How many rows were ever given to a series."""
        self.use: NDArray[np.int64] = np.full((min(capacity, 1024), 2), NEVER, np.int64)
        """Of each row the offset of its last use (NEVER, FRESH), and a place for those who use it, in the same cache line; (n, 2)."""
        self._select = select or Selection()
        self._entities = entities
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._hidden: set[str] = set()

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: str, labels: Mapping[str, str]) -> int:
        """The code of a series, its row allocated on first sight; EXCLUDED if it is not selected, FULL if there is no free row.

        Raises:
            KeyTooLongError: the canonical key exceeds MAX_KEY_CHARACTERS.
            UnicodeEncodeError: a name or label is not text (lone surrogates).
        """
        place = self._place(name, labels)
        if place is None:
            return EXCLUDED
        key, feature = place
        row = self._rows.get(key)
        if row is None:
            row = EXCLUDED if key in self._hidden else self.allocate(key)
        return row * self.features + feature if row >= 0 else row

    def find(self, key: str) -> int | None:
        """The row of the series with this canonical key, None if it has none."""
        return self._rows.get(key)

    def key(self, name: str, labels: Mapping[str, str]) -> str | None:
        """The canonical key under which a series is kept, that of its entity where there are some; None if it is not selected."""
        place = self._place(name, labels)
        return None if place is None else place[0]

    def _place(self, name: str, labels: Mapping[str, str]) -> tuple[str, int] | None:
        if not self._select.admits(name, labels):
            return None
        return (series_key(name, self._select.keep(labels)), 0) if self._entities is None else self._entities.place(name, labels)

    def _codes(self, rows: NDArray[np.int32]) -> NDArray[np.int32]:
        """The codes of these rows, in order, (n * F,)."""
        if self.features == 1:
            return rows
        codes: NDArray[np.int32] = np.add.outer(rows * self.features, np.arange(self.features, dtype=np.int32)).reshape(-1)
        return codes

    def spellings(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The newest spelling of each feature of these rows, zeros where none is known, (n, F, 2)."""
        return self.aliases.newest(self._codes(rows)).reshape(-1, self.features, 2)

    def allocate(self, key: str) -> int:
        """A row for a series that has none, by its canonical key; FULL if there is no free row. Raises as `row` does."""
        if len(key) > MAX_KEY_CHARACTERS:
            raise KeyTooLongError(f"series key of {len(key)} characters")
        if not key.isascii():
            key.encode()  # refuses what is not text before it can reach an alert
        if self._free:
            row = self._free.pop()
            self.keys[row] = key
        elif len(self.keys) < self.capacity:
            row = len(self.keys)
            self.keys.append(key)
            self._reserve(row + 1)
        else:
            return FULL
        self.allocations += 1
        self._rows[key] = row
        self.use[row, 0] = FRESH
        return row

    def _reserve(self, rows: int) -> None:
        if rows > len(self.use):
            grown = np.full((min(self.capacity, max(rows, 2 * len(self.use))), 2), NEVER, np.int64)
            grown[: len(self.use)] = self.use
            self.use = grown

    def identity(self, row: int) -> tuple[str, dict[str, str]]:
        """Name and labels of the series in this row."""
        key = self.keys[row]
        if key is None:
            raise KeyError(f"row {row} holds no series")
        return parse_key(key)

    @property
    def last_use(self) -> NDArray[np.int64]:
        """Offset of the record that held the last sample of each row that was ever used, or NEVER, or FRESH; a view, (n,)."""
        return self.use[: len(self.keys), 0]

    def touch(self, rows: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        """These rows were used by samples of the records at these offsets; rows (n,), offsets (n,) ascending."""
        self.use[rows, 0] = offsets

    def evict(self, times: int = 1) -> Released:
        """Forget max(1, capacity // 256) * times of the longest idle series, longest idle first, of equals those whose keys come first."""
        count = min(max(1, self.capacity // 256) * times, len(self._rows))
        if not count:
            return Released(np.empty(0, np.int32), [])
        last_use = self.last_use
        youngest = np.partition(last_use, count - 1)[count - 1]
        candidates = np.flatnonzero(last_use <= youngest).tolist()
        order = sorted((int(last_use[row]), self.keys[row] or "", row) for row in candidates)
        return self.release(np.array([row for _, _, row in order[:count]], np.int32))

    def release(self, rows: NDArray[np.int32]) -> Released:
        """Forget the series in these rows and all their spellings."""
        keys = [self.keys[row] or "" for row in rows.tolist()]
        self._release(rows.tolist())
        self.aliases.forget(self._codes(rows), self.capacity * self.features)
        return Released(rows, keys)

    def abandon(self) -> None:
        """Take back the rows of all series of which no sample has been used."""
        fresh = np.flatnonzero(self.last_use == FRESH).astype(np.int32)
        if len(fresh):
            self.release(fresh)

    def give_back(self, rows: Sequence[int]) -> None:
        """Undo the allocation of these rows, given by codes in the order of their allocation, before anything was learned in them."""
        self._release([row // self.features for row in rows[::-1]])

    def _release(self, rows: Sequence[int]) -> None:
        for row in rows:
            key = self.keys[row]
            if key is not None:
                del self._rows[key]
                self.keys[row] = None
                self._free.append(row)
                self.use[row, 0] = NEVER

    # --- after a restart --------------------------------------------------------------------------------------------

    def restore(self, keys: list[str], rows: NDArray[np.int32], last_use: NDArray[np.int64], spellings: NDArray[np.uint64]) -> None:
        """Fill an empty index: n different keys with different rows below the capacity.

        Args:
            keys: canonical keys.
            rows: where they are, (n,).
            last_use: offset of the record that held the last sample of each, (n,).
            spellings: hash of a raw spelling of each of their features, zeros for none, (n, F, 2).
        """
        self._rows = dict(zip(keys, rows.tolist(), strict=True))
        end = int(rows.max(initial=-1)) + 1
        by_row = np.full(end, None, object)
        by_row[rows] = keys
        self.keys[:] = by_row.tolist()
        self._reserve(end)
        self.use[:, 0] = NEVER
        self.use[rows, 0] = last_use
        free = np.ones(end, np.bool_)
        free[rows] = False
        self._free = np.flatnonzero(free)[::-1].tolist()
        spelled = spellings.reshape(-1, 2)
        known = spelled.any(axis=1)
        self.aliases.add(np.ascontiguousarray(spelled[known]), self._codes(rows)[known])

    def hide(self, keys: Collection[str]) -> None:
        """Series without rows that get none, as if they were not selected, until `reveal`."""
        self._hidden.update(keys)

    def reveal(self, keys: Collection[str]) -> None:
        """Series that are no longer hidden."""
        self._hidden.difference_update(keys)
        self.aliases.forget_rowless()
