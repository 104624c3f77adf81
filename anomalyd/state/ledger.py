"""The protocol of one partition: claim it, restore what it had, commit what it does."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from anomalyd.state.codec import Episode, Trial


class Entry(NamedTuple):
    """A record to be written to the changelog."""

    key: bytes
    value: bytes | None
    """None: a tombstone."""


class LogRecord(NamedTuple):
    """A record of the changelog."""

    offset: int
    key: bytes
    value: bytes | None


class Writer(Protocol):
    """The one who may write for a partition. After any error it is unusable: close it and make another."""

    async def open(self) -> None:
        """Whoever wrote for the partition before is fenced, and what it had not committed is aborted.

        Raises:
            DeliveryError: no answer; another one may be tried.
            KafkaRefusedError: waiting would not help.
        """

    async def commit(self, messages: Sequence[Any], entries: Sequence[Entry], *, singly: bool = False) -> list[int]:
        """Makes everything visible at once and returns the changelog offsets of the entries, which are written in order.

        Args:
            messages: alerts and dead letters.
            entries: for the changelog.
            singly: each message in a request of its own, so that one that is too large is known.

        Raises:
            FencedError: somebody else has claimed the partition since.
            TooLargeError: nothing was written, and never will be as it is.
            DeliveryError: it is not known whether it was written.
            KafkaRefusedError: waiting would not help.
        """

    async def close(self) -> None:
        """Lets go within a bounded time; never raises."""


class LogReader(Protocol):
    """Reads committed records of one changelog partition."""

    async def first(self) -> int:
        """The offset at which the log begins. Raises DeliveryError, KafkaRefusedError."""

    def read(self, start: int, through: int) -> AsyncIterator[list[LogRecord]]:
        """Records with start <= offset <= through, in order; ends once one at or behind `through` was seen, and never before.

        Raises:
            DeliveryError: no answer for too long.
            KafkaRefusedError: waiting would not help.
        """

    async def close(self) -> None:
        """Lets go within a bounded time; never raises."""


@dataclass(slots=True)
class Restored:
    """What a changelog holds besides the pages."""

    position: int | None = None
    """P; None where nothing was ever committed."""
    replay_from: int = 0
    """Input offset from which on records have to be replayed; at most `position`."""
    stream_time_ms: int | None = None
    episodes: dict[str, Episode] = field(default_factory=dict)
    """By series: what was told since its page was written."""
    forgotten: dict[str, int] = field(default_factory=dict)
    """By series: the newest offset in front of which it was forgotten."""
    trial: Trial | None = None
