"""The chain of positions in a changelog: where to look for its end, and when an owner got somewhere."""

from collections.abc import Iterator
from typing import Final

from anomalyd.state.codec import Position

PROCESS_BYTES: Final = 8
"""Of an owner's bytes: the same for all claims of a process, which has not died between them."""

PROBE_RECORDS: Final = 64
"""So far back from the end the last position is looked for first; then sixteen times as far, and so on."""


def probes(first: int, end: int) -> Iterator[int]:
    """Changelog offsets to read from, each farther back, until one reads a position or the log begins there.

    Args:
        first: where the log begins.
        end: where it ends.
    """
    back = PROBE_RECORDS
    while (start := end - back) > first:
        yield start
        back *= 16
    yield first


def moved_on(before: Position | None, found: Position) -> bool:
    """Whether a position says that the claims in front of it were no deaths: it moved, was let go of alive, or begins anew."""
    return before is None or found.position > before.position or found.clean or found.anew
