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


def breach(before: Position | None, found: Position) -> str:
    """Why a position cannot follow another one in a log; empty where it can.

    Compaction may have taken positions in between, so only neighbours must know each other. Without transactions two owners may overlap.
    """
    if before is None or before.plain or found.plain:
        return ""
    if found.sequence <= before.sequence:
        return f"position {found.sequence} follows position {before.sequence}: the chain has forked"
    if found.sequence == before.sequence + 1 and found.previous != before.position:
        return f"position {found.sequence} goes on from input offset {found.previous}, the one before ended at {before.position}"
    return ""


def moved_on(before: Position | None, found: Position) -> bool:
    """Whether a position says that the claims in front of it were no deaths: it moved, was let go of alive, or begins anew."""
    return before is None or found.position > before.position or found.clean or found.anew
