"""Series → state row, for one partition of one stream."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.jit import njit
from anomalyd.selection import Selection
from anomalyd.series.aliases import AliasTable
from anomalyd.series.key import parse_key, series_key

EXCLUDED: Final = -1
"""Answer of `SeriesIndex.row`: the series is not selected."""
FULL: Final = -2
"""Answer of `SeriesIndex.row`: no row is free; evict first."""

MAX_KEY_CHARACTERS: Final = 4096
"""Longest canonical key; keys are kept in memory for every series and travel in every alert."""

_NEVER: Final = np.iinfo(np.int64).max


class KeyTooLongError(ValueError):
    """The canonical key of a series exceeds MAX_KEY_CHARACTERS."""


class SeriesIndex:
    """Which row each series has, which rows are free, and which series have been idle longest.

    Rows are handed out in the order in which series are first seen, idleness is measured in samples of the partition: everything here
    follows from the order of the partition alone, never from how it was cut into batches.

    A series costs its key text, a dictionary entry, 16 bytes of bookkeeping and 32 to 64 bytes for each raw spelling.
    """

    def __init__(self, capacity: int, select: Selection | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self.keys: list[str | None] = []
        """Canonical key of each row that was ever used; None for a free one."""
        # One spelling for a series is the rule; the rest is room for excluded series and for churning labels that are dropped.
        self.aliases = AliasTable(limit=3 * capacity + 1024)
        self.allocations = 0
        """How many rows were ever given to a series."""
        self._select = select or Selection()
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._last_use = np.full(min(capacity, 1024), _NEVER, np.int64)
        self._next_sequence = 0

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, name: str, labels: Mapping[str, str]) -> int:
        """The row of a series, allocated on first sight; EXCLUDED if it is not selected, FULL if there is no free row.

        Raises:
            KeyTooLongError: the canonical key exceeds MAX_KEY_CHARACTERS.
            UnicodeEncodeError: a name or label is not text (lone surrogates).
        """
        key = self.key(name, labels)
        if key is None:
            return EXCLUDED
        row = self._rows.get(key)
        return self._allocate(key) if row is None else row

    def key(self, name: str, labels: Mapping[str, str]) -> str | None:
        """The canonical key under which a series is kept, None if it is not selected."""
        return series_key(name, self._select.keep(labels)) if self._select.admits(name, labels) else None

    def _allocate(self, key: str) -> int:
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
            if row == len(self._last_use):
                grown = np.full(min(self.capacity, 2 * row), _NEVER, np.int64)
                grown[:row] = self._last_use
                self._last_use = grown
        else:
            return FULL
        self.allocations += 1
        self._rows[key] = row
        self._last_use[row] = self._next_sequence
        return row

    def identity(self, row: int) -> tuple[str, dict[str, str]]:
        """Name and labels of the series in this row."""
        key = self.keys[row]
        if key is None:
            raise KeyError(f"row {row} holds no series")
        return parse_key(key)

    def touch(self, rows: NDArray[np.int32], first_sequence: int) -> None:
        """These rows were used by the samples numbered first_sequence, first_sequence + 1, … of the partition; rows (n,)."""
        _touch(self._last_use, rows, first_sequence)
        self._next_sequence = max(self._next_sequence, first_sequence + len(rows))

    def evict(self) -> NDArray[np.int32]:
        """Forget the max(1, capacity // 256) longest idle series and return their rows, longest idle first."""
        count = min(max(1, self.capacity // 256), len(self._rows))
        last_use = self._last_use[: len(self.keys)]
        candidates = np.argpartition(last_use, count - 1)[:count] if count else np.empty(0, np.intp)
        rows = candidates[np.lexsort((candidates, last_use[candidates]))].astype(np.int32)
        self._release(rows.tolist())
        self.aliases.forget(rows, self.capacity)
        return rows

    def give_back(self, rows: Sequence[int]) -> None:
        """Undo the allocation of these rows, given in the order in which they were allocated, before anything was learned in them."""
        self._release(rows[::-1])

    def _release(self, rows: Sequence[int]) -> None:
        for row in rows:
            key = self.keys[row]
            if key is not None:
                del self._rows[key]
                self.keys[row] = None
                self._free.append(row)
                self._last_use[row] = _NEVER


@njit
def _touch(last_use: NDArray[np.int64], rows: NDArray[np.int32], first_sequence: int) -> None:
    for i in range(len(rows)):
        last_use[rows[i]] = first_sequence + i
