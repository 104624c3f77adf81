"""One number for what is known about a set of series, so that two runs, or a run and its changelog, can be compared."""

from collections.abc import Iterable
from typing import Final

import numpy as np
import xxhash
from numpy.typing import NDArray

_MODULUS: Final = 1 << 128

RowBytes = bytes | memoryview | NDArray[np.uint8]


class Digest:
    """A fingerprint of series and their state rows that depends neither on their order nor on where they lie.

    It is the sum of a hash of each row with its key, so that a row can be taken out again.
    """

    def __init__(self) -> None:
        self._sum = 0
        self.count = 0
        """Rows in it."""

    def add(self, key: str, row: RowBytes) -> None:
        """Takes a row in: the canonical key of its series, and its bytes, contiguous."""
        self._sum += _hash(key, row)
        self.count += 1

    def remove(self, key: str, row: RowBytes) -> None:
        """Takes out a row that is in it."""
        self._sum -= _hash(key, row)
        self.count -= 1

    @property
    def hex(self) -> str:
        """32 characters; zeros for no row at all."""
        return f"{self._sum % _MODULUS:032x}"


def digest(rows: Iterable[tuple[str, RowBytes]]) -> str:
    """The fingerprint of (canonical key, row) pairs."""
    found = Digest()
    for key, row in rows:
        found.add(key, row)
    return found.hex


def _hash(key: str, row: RowBytes) -> int:
    name = key.encode()
    # The length in front: else the end of a key could pass for the beginning of a row.
    hashed = xxhash.xxh3_128(len(name).to_bytes(4, "little") + name)
    hashed.update(row if isinstance(row, bytes | memoryview) else row.data)
    return hashed.intdigest()
