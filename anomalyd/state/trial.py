"""Records that end the process: how the next owner finds them instead of dying, too.

A record that our code fails on is a dead letter at once. One that takes the process with it, out of memory or in compiled code, would end
every owner after the other. So where processes have ended without getting anywhere and without a goodbye, the next one commits which
records it is about to try: few, then fewer after each death, until it is a single one.
"""

from typing import Final

import msgspec

TRIED_RECORDS: Final = 512
"""So many at a time at first."""

CLAIMS_BEFORE_TRIAL: Final = 3
"""So many owners died without getting anywhere."""

TRIAL_OFFSETS: Final = 100_000
"""So far behind the position the deadly record is looked for: what polls bring to both batches of a worker, and some."""

TRIES: Final = 2
"""Deaths at one single record that prove it deadly."""

_FEWER: Final = 8


class Trial(msgspec.Struct, frozen=True, array_like=True):
    """What is about to be tried, from the position on."""

    size: int
    """So many records."""
    tries: int
    """How often one single record was tried here."""
    until: int
    """Offset from which on records are trusted again."""

    @property
    def deadly(self) -> bool:
        """Whether the next record is not to be tried again."""
        return self.size == 1 and self.tries >= TRIES

    def announced(self) -> "Trial":
        """What is committed before the records are tried."""
        return Trial(self.size, self.tries + (self.size == 1), self.until)

    def survived(self, position: int) -> "Trial | None":
        """What to try next, from this position on; None: nothing needs to be tried any more."""
        return Trial(min(2 * self.size, TRIED_RECORDS), 0, self.until) if position < self.until else None


def after_deaths(last: Trial | None, claims: int, position: int) -> Trial | None:
    """What the next owner has to try.

    Args:
        last: what was being tried when the last owner ended.
        claims: since the position last moved, the next owner's counted.
        position: input offset where it goes on.
    """
    if last is not None:
        return Trial(max(1, last.size // _FEWER), last.tries, last.until)
    return Trial(TRIED_RECORDS, 0, position + TRIAL_OFFSETS) if claims > CLAIMS_BEFORE_TRIAL else None
