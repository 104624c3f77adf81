"""What the protocol of a partition needs of Kafka, and what it hands out."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from anomalyd.batch import Entry, LogRecord
from anomalyd.state.codec import Episode
from anomalyd.state.trial import Trial


class Writer(Protocol):
    """The one who may write for a partition. After any error it is unusable: close it and make another."""

    async def open(self) -> None:
        """Whoever wrote for the partition before is fenced, and what it had not committed is aborted.

        Raises:
            DeliveryError: no answer; another one may be tried.
            KafkaRefusedError: waiting would not help.
        """

    async def commit(self, messages: Sequence[Any], entries: Sequence[Entry], *, singly: int = 0) -> list[int]:
        """Makes everything visible at once and returns the changelog offsets of the entries, which are written in order.

        Args:
            messages: alerts and dead letters.
            entries: for the changelog.
            singly: in requests so small that those that are too large are known; they grow up to so many bytes. 0: all at once.

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
    """Records that were tried when the last owner died."""
    claims: int = 1
    """Processes that claimed it since the position last moved or its owner let go alive, ours counted: so many ended without a goodbye."""
    policies: tuple[tuple[int, str], ...] = ()
    """Alert policies by the input offset from which on they were in force, oldest first; the first one covers `replay_from`."""
    strangers: frozenset[str] = frozenset()
    """Instances of other groups that have claimed it lately, by name."""
    pulse: tuple[int, ...] = ()
    """The partition's progress in event time, by which series are silent."""
    control: tuple[int, ...] = ()
    """What was counted up to the position to check the alert budget."""
    corrections: tuple[tuple[int, int], ...] = ()
    """Corrections of the threshold by the input offset from which on they were in force, oldest first; in front of the first one there was
    none."""
    timeline: tuple[tuple[int, str], ...] = ()
    """Models by the input offset from which on they scored, oldest first; the first one covers `replay_from`."""
    missing: bool = False
    """There is no position, and the log does not begin at its beginning: what was there is gone."""


@dataclass(slots=True)
class Work:
    """What was computed for a partition since its last commit. The position vouches for everything in front of it."""

    position: int = -1
    """Input offset behind the last record that is accounted for; -1: none yet."""
    replay_from: int = -1
    """Input offset from which on records have to be replayed after a crash."""
    stream_time_ms: int | None = None
    messages: list[Any] = field(default_factory=list)
    """Alerts and dead letters, in order."""
    pages: dict[bytes, bytes | None] = field(default_factory=dict)
    """Page records by key; None: the page holds nothing any more."""
    episodes: dict[str, bytes] = field(default_factory=dict)
    """Episode records by series."""
    forgotten: dict[bytes, bytes] = field(default_factory=dict)
    """Records of forgotten series by key."""
    policies: list[tuple[int, str]] = field(default_factory=list)
    """Alert policies that came into force, by input offset, ascending."""
    corrections: list[tuple[int, int]] = field(default_factory=list)
    """Corrections of the threshold that came into force, by input offset, ascending."""
    models: list[tuple[int, str]] = field(default_factory=list)
    """Models that began to score, by input offset, ascending."""
    trial: Trial | None = None
    """Set before records are processed that may end the process."""
    clean: bool = False
    """The owner lets go of the partition, alive."""
    anew: bool = False
    """The input topic was made anew: the position goes back, and nothing from before counts."""
    pulse: tuple[int, ...] = ()
    """The partition's progress in event time, by which series are silent."""
    control: tuple[int, ...] = ()
    """What was counted to check the alert budget."""

    def __bool__(self) -> bool:
        return self.position >= 0
