"""One input partition of this instance: its shard, its ledger, and what was computed since the last commit."""

import asyncio
from collections import Counter
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import structlog

from anomalyd.batch import Points, Source
from anomalyd.kafka.consumer import Recovered
from anomalyd.kafka.message import Message
from anomalyd.shard import DeadLetter, Outcome, Shard
from anomalyd.state.codec import Page
from anomalyd.state.ledger import Ledger
from anomalyd.state.ports import Restored, Work
from anomalyd.state.trial import Trial, after_deaths

MESSAGE_BYTES: Final = 1_024
"""What a message takes besides its content: its objects, its headers', its note, and its acknowledgement while it is on its way."""

POINT_BYTES: Final = 64
"""What a score takes that waits for its commit, to be handed on then."""

_log = structlog.get_logger(__name__)


class AlertNote(NamedTuple):
    """What is counted about an alert once it is committed."""

    status: str
    severity: str
    produced_ms: int
    """When the record behind it was produced, milliseconds since the epoch; negative if unknown."""


class Destinations(NamedTuple):
    """Topics that messages go to."""

    alerts: str
    dead_letters: str
    scores: str = ""
    """Empty: no scores are written."""


@dataclass(slots=True)
class Parcel:
    """Work that travels in one transaction, and what is counted when it has arrived."""

    work: Work = field(default_factory=Work)
    notes: list[AlertNote] = field(default_factory=list)
    dead_letters: int = 0
    scores: int = 0
    points: list[Points] = field(default_factory=list)
    """Scores to hand on once it has arrived; they are in no transaction."""
    bytes: int = 0
    """Memory that all this takes, about."""

    def counts(self) -> Counter[tuple[str, str]]:
        """Alerts by status and severity."""
        return Counter((note.status, note.severity) for note in self.notes)


@dataclass(slots=True, eq=False)
class Partition:
    """What an instance has of a partition."""

    source: Source
    shard: Shard
    ledger: Ledger
    read_from: int | None = None
    """Where its records were expected to go on when it was recovered; None for one that was never committed."""
    position: int = -1
    """Input offset behind the last record that went through the shard, replayed or not."""
    parcel: Parcel = field(default_factory=Parcel)
    committing: asyncio.Task[None] | None = None
    bytes_committing: int = 0
    claimed_s: float | None = None
    """When it was claimed, by the loop's clock; None once it goes on where it was."""
    committed_s: float = 0.0
    """When the last commit began, by the loop's clock."""
    in_flight: int = 0
    """Batches of it that are under way."""
    urgent: bool = False
    """An alert waits."""
    trial: Trial | None = None
    """Records are tried a few at a time, because one of them may end the process."""
    missing: bool = False
    """Nothing is known of it, though there was something."""
    strangers: frozenset[str] = frozenset()
    """Instances of other groups that have claimed it, too."""
    allowance: float = 0.0
    """Pages that may be written now."""

    @property
    def to_replay(self) -> int:
        """Offsets that still have to go silently through the restored pages."""
        return max(0, self.shard.live_from - self.position)

    async def restore(self, partitions: int, worker: Executor) -> Recovered | None:
        """Claims the partition and reads what is known of it into the shard, in the worker's thread.

        Args:
            partitions: of the input topic.
            worker: that the shard will run in.

        Returns:
            Where it goes on; None where nothing was ever committed.

        Raises:
            LostError: the group gives the partition to somebody else.
            StateError: what is there cannot be used.
            KafkaRefusedError: waiting would not help.
        """
        loop = asyncio.get_running_loop()
        began, pages = loop.time(), 0
        self.claimed_s = began

        async def load(found: list[Page]) -> None:
            nonlocal pages
            pages += len(found)
            await loop.run_in_executor(worker, self._load, found)

        async def prepare(restored: Restored) -> None:
            await loop.run_in_executor(worker, self.shard.prepare, restored)

        restored = await self.ledger.claim(partitions, load, prepare)
        await loop.run_in_executor(worker, self.shard.begin, restored, self.ledger.records)
        self.strangers = restored.strangers
        if restored.position is None:
            self.missing = restored.missing
            return None
        self.read_from = self.position = restored.replay_from
        # The oldest is due at once: part of a turn had gone by when the last owner died, and owners that live for less than a turn, one
        # after the other, would never write anything.
        self.allowance = 1.0
        where = {"topic": self.source.topic, "partition": self.source.partition}
        self.trial = after_deaths(restored.trial, restored.claims, restored.position)
        if self.trial is not None:
            _log.warning("partition_tried", **where, claims=restored.claims, size=self.trial.size)
        _log.info(
            "partition_restored",
            **where,
            position=restored.position,
            pages=pages,
            series=self.shard.series,
            replay=restored.position - restored.replay_from,
            seconds=round(loop.time() - began, 3),
        )
        return Recovered(restored.replay_from, restored.position)

    def _load(self, pages: list[Page]) -> None:
        for page in pages:
            self.shard.load(page)

    def allow(self, turns: float) -> None:
        """So much of a turn has gone by, in which every page in use is to be written once."""
        due = self.shard.pages_in_use * turns
        self.allowance = min(self.allowance + due, max(1.0, self.shard.dirty_pages))

    def take_in(self, outcome: Outcome, destinations: Destinations) -> None:
        """Puts what came of some records, and the position behind them, into the coming commit."""
        self.position = max(self.position, outcome.next_offset)
        self.allowance -= len(outcome.pages)
        parcel, work = self.parcel, self.parcel.work
        for message, produced_ms in outcome.alerts:
            self._send(Message(destinations.alerts, self.source.partition, message.key, message.value))
            parcel.notes.append(AlertNote(message.alert.status, message.alert.severity, produced_ms))
            self.urgent = True
        for letter in outcome.dead_letters:
            self._send(_dead_letter(destinations.dead_letters, self.source, letter))
        parcel.dead_letters += len(outcome.dead_letters)
        for key, value in outcome.scores:
            self._send(Message(destinations.scores, self.source.partition, key, value, kind="score"))
        parcel.scores += len(outcome.scores)
        parcel.points += outcome.points
        parcel.bytes += sum(POINT_BYTES * len(points) for points in outcome.points)
        parcel.bytes += sum(len(page) for page in outcome.pages.values() if page is not None)
        for records in (outcome.episodes, outcome.forgotten):
            parcel.bytes += sum(MESSAGE_BYTES + len(value) for value in records.values())
        work.pages |= outcome.pages
        work.episodes |= outcome.episodes
        work.forgotten |= outcome.forgotten
        work.policies += outcome.policies
        work.corrections += outcome.corrections
        work.models += outcome.models
        if not self.to_replay:
            # Not what the shard says now: it may be in the middle of the next batch.
            work.position, work.replay_from, work.stream_time_ms = self.position, outcome.replay_from, outcome.stream_time_ms
            work.pulse, work.control = outcome.pulse, outcome.control

    def account(self) -> None:
        """The coming commit vouches for everything up to now. Only while no batch is under way."""
        work = self.parcel.work
        work.position, work.replay_from, work.stream_time_ms = self.position, self.shard.replay_from, self.shard.stream_time_ms
        work.pulse, work.control = self.shard.pulse, self.shard.control

    def take_parcel(self) -> Parcel:
        """What is to be committed now; what comes next goes into another one."""
        # Until records are trusted again, the next owner has to go on trying them, however this one ends.
        self.parcel.work.trial = self.parcel.work.trial or self.trial
        parcel, self.parcel, self.urgent = self.parcel, Parcel(), False
        return parcel

    def _send(self, message: Message) -> None:
        self.parcel.work.messages.append(message)
        self.parcel.bytes += MESSAGE_BYTES + message.size


def _dead_letter(topic: str, source: Source, letter: DeadLetter) -> Message:
    """The record as it came, and in headers where from and why."""
    return Message(
        topic,
        source.partition,
        letter.record.key,
        letter.record.value or b"",
        (
            ("anomalyd-reason", letter.reason.encode()),
            ("anomalyd-topic", source.topic.encode()),
            ("anomalyd-partition", str(source.partition).encode()),
            ("anomalyd-offset", str(letter.record.offset).encode()),
        ),
        kind="dead-letter",
    )
