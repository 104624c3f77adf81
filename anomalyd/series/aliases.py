"""Raw spelling of a series → state row, for compiled scanners: 128-bit hashes in an open-addressing table.

A scanner hashes the bytes that identify a series as they stand in the record; several spellings (label order, spaces) may lead to one row.
The hashes are fast and not keyed. Two independent 64-bit halves are compared, so two spellings do not meet by chance (about 10^-26 for a
million series). They are no defence against a producer that computes collisions on purpose: it could only confuse its own series.

The table is a cache: whatever it has forgotten is resolved again from the record. So it may be emptied at any time, and is, when churning
spellings (dropped labels, excluded series) fill it to its limit.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.intrinsics import prefetch
from anomalyd.jit import njit

UNKNOWN: Final = -3
"""The table does not know this spelling."""

# A slot is three words: hash, second hash, row - UNKNOWN. Zeroed memory is an empty table and costs nothing until it is used.
_WORDS: Final = 3
_EMPTY: Final = 0
_FORGOTTEN: Final = 1
_AHEAD: Final = 12
_FIRST_SLOTS: Final = 1024


class AliasTable:
    """At most `limit` spellings; a slot is 24 bytes, between three eighths and three quarters of the slots are in use.

    Beside the table the newest spelling of each row is kept, 16 bytes, for those who write the series down.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._newest: NDArray[np.uint64] = np.zeros((0, 2), np.uint64)
        self.clear()

    def __len__(self) -> int:
        return self._known

    def clear(self) -> None:
        """Forget every spelling."""
        self.slots: NDArray[np.uint64] = np.zeros(_FIRST_SLOTS * _WORDS, np.uint64)
        self._known = 0
        self._used = 0  # known and forgotten ones: both lengthen the search

    def find(self, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        """Write the row of each spelling, or UNKNOWN, to `rows`; hashes (n, 2), rows (n,)."""
        find_rows(self.slots, hashes, rows)

    def add(self, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        """Remember that these spellings, (n, 2), have these rows, (n,)."""
        if self._known + len(rows) > self._limit:
            self.clear()
        size = len(self.slots) // _WORDS
        if (self._used + len(rows)) * 4 > size * 3:
            while (self._known + len(rows)) * 2 > size:
                size *= 2
            grown = np.zeros(size * _WORDS, np.uint64)
            _copy(self.slots, grown)
            self.slots, self._used = grown, self._known
        new = _put(self.slots, hashes, rows)
        self._known += new
        self._used += new
        self._keep(hashes, rows)

    def _keep(self, hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
        end = int(rows.max(initial=-1)) + 1
        if end > len(self._newest):
            grown = np.zeros((max(end, 2 * len(self._newest), _FIRST_SLOTS), 2), np.uint64)
            grown[: len(self._newest)] = self._newest
            self._newest = grown
        kept = rows >= 0
        self._newest[rows[kept]] = hashes[kept]

    def newest(self, rows: NDArray[np.int32]) -> NDArray[np.uint64]:
        """The spelling that was added last for each of these rows, (n, 2), even if the table has forgotten it; zeros if there was none."""
        found = np.zeros((len(rows), 2), np.uint64)
        known = rows < len(self._newest)
        found[known] = self._newest[rows[known]]
        return found

    def forget(self, rows: NDArray[np.int32], capacity: int) -> None:
        """Forget all spellings of these rows; one pass over the table."""
        gone = np.zeros(capacity, np.bool_)
        gone[rows] = True
        self._known -= _forget(self.slots, gone)
        self._newest[rows[rows < len(self._newest)]] = 0

    def forget_rowless(self) -> None:
        """Forget the spellings of series that have no row; one pass over the table."""
        row = self.slots[2::_WORDS]
        rowless = (row > _FORGOTTEN) & (row < -UNKNOWN)
        row[rowless] = _FORGOTTEN
        self._known -= int(np.count_nonzero(rowless))


@njit
def find_rows(slots: NDArray[np.uint64], hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> None:
    """Look up n spellings, hashes (n, 2), in the slots of an AliasTable; rows (n,) receives row, EXCLUDED or UNKNOWN."""
    mask = len(slots) // _WORDS - 1
    for i in range(min(_AHEAD, len(rows))):
        prefetch(slots, _WORDS * (np.int64(hashes[i, 0]) & mask))
    for i in range(len(rows)):
        if i + _AHEAD < len(rows):
            # A table of a million series lies in main memory; a dozen fetches under way hide most of the wait.
            prefetch(slots, _WORDS * (np.int64(hashes[i + _AHEAD, 0]) & mask))
        rows[i] = np.int32(slots[_slot(slots, mask, hashes[i, 0], hashes[i, 1]) + 2]) + UNKNOWN


@njit(forceinline=True)
def _slot(slots: NDArray[np.uint64], mask: int, first: np.uint64, second: np.uint64) -> np.int64:
    """Index of the slot that holds the spelling, else of the empty slot where the search ended."""
    place = np.int64(first) & mask
    while True:
        slot = _WORDS * place
        row = slots[slot + 2]
        if row == _EMPTY or (slots[slot] == first and slots[slot + 1] == second and row != _FORGOTTEN):
            return slot
        place = (place + 1) & mask


@njit
def _put(slots: NDArray[np.uint64], hashes: NDArray[np.uint64], rows: NDArray[np.int32]) -> int:
    """Insert or replace; returns how many spellings were new."""
    mask = len(slots) // _WORDS - 1
    new = 0
    for i in range(len(rows)):
        slot = _slot(slots, mask, hashes[i, 0], hashes[i, 1])
        new += slots[slot + 2] == _EMPTY
        slots[slot] = hashes[i, 0]
        slots[slot + 1] = hashes[i, 1]
        slots[slot + 2] = np.uint64(rows[i] - UNKNOWN)
    return new


@njit
def _copy(old: NDArray[np.uint64], grown: NDArray[np.uint64]) -> None:
    mask = len(grown) // _WORDS - 1
    for slot in range(0, len(old), _WORDS):
        if old[slot + 2] > _FORGOTTEN:
            target = _slot(grown, mask, old[slot], old[slot + 1])
            grown[target : target + _WORDS] = old[slot : slot + _WORDS]


@njit
def _forget(slots: NDArray[np.uint64], gone: NDArray[np.bool_]) -> int:
    forgotten = 0
    for slot in range(2, len(slots), _WORDS):
        row = np.int64(slots[slot]) + UNKNOWN
        if row >= 0 and gone[row]:
            slots[slot] = np.uint64(_FORGOTTEN)
            forgotten += 1
    return forgotten
