"""Memory of the state rows of one partition: reserved at once, used as it fills, given back as a whole."""

import mmap
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector.layout import Layout

PAGE_BYTES: Final = 512 << 10
PAGE_ROWS: Final = 256
_MAP_NORESERVE: Final = 0x4000  # the mmap module does not name it


class Pages:
    """Rows of one partition, all zero at first; a page is as many rows as fit 512 KiB, at most 256.

    The address space for `capacity` rows is reserved when it is made; memory is taken when a row is first written, so an
    empty partition costs nothing. Rows lie on huge pages where the kernel has them: without, a step over a million series
    spends most of its time in address translation.
    """

    def __init__(self, layout: Layout, capacity: int) -> None:
        self.layout = layout
        self.capacity = capacity
        self.page_rows = max(1, min(PAGE_ROWS, PAGE_BYTES // layout.row_bytes))
        size = max(1, capacity) * layout.row_bytes
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.buffer: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8).reshape(max(1, capacity), layout.row_bytes)
        self.episodes: NDArray[np.uint8] = self.bytes_of("episode")

    def bytes_of(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one field of every row, shape (capacity, width); a view."""
        field = self.layout[name]
        return self.buffer[:, field.offset : field.offset + field.dtype.itemsize * field.count]

    def view(self, dtype: type[np.generic]) -> NDArray[np.generic]:
        """All rows seen as elements of one type, shape (capacity, row_bytes / itemsize)."""
        return self.buffer.view(dtype)

    def field(self, name: str) -> NDArray[np.generic]:
        """One field of every row, shape (capacity, count); a view that can be written."""
        field = self.layout[name]
        return self.view(field.dtype.type)[:, field.first : field.first + field.count]

    def clear(self, rows: NDArray[np.int32]) -> None:
        """Makes the rows as if they had never been used."""
        self.buffer[rows] = 0
