"""The protocol of one partition: claim it, restore what it had, commit what becomes of it, and know after a failure what was committed.

    claim     open the writer (whoever wrote before is fenced) -> write a fence F -> find the last position P in front of it -> read what
              P says a restore needs, up to F. Our own F is the proof that nothing was missed: an end offset is none, because aborted
              records and markers lie at the end, and nobody can tell when they have been passed.
    commit    messages, pages, episodes, forgotten series and P in one transaction.
    doubt     after any error it is not known whether the transaction happened. The writer is given up, a new one opened (which ends
              the old transaction one way or the other), a fence written, and everything behind what we last knew is read: the P of the
              transaction is there, or it will never be, and the same is written again.
    lost      a fence of somebody else lies there, or the group has thrown us out: what is in memory is worth nothing any more.

Nothing here knows of a Kafka client; the simulation in tests/ runs it against a model of the broker.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

import structlog

from anomalyd.batch import Entry, LogRecord, Source
from anomalyd.crashpoints import reached
from anomalyd.errors import DeliveryError, LostError, StateError, TooLargeError
from anomalyd.state import codec
from anomalyd.state.chain import PROCESS_BYTES, breach, moved_on, probes
from anomalyd.state.codec import FENCE_KEY, POSITION_KEY, Episode, Fence, Forgotten, Page, Position
from anomalyd.state.ports import LogReader, Restored, Work, Writer

_FIRST_PAUSE_S: Final = 0.1
_MOST_PAUSE_S: Final = 5.0

_T = TypeVar("_T")
Load = Callable[[list[Page]], Awaitable[None]]
Prepare = Callable[[Restored], Awaitable[None]]

_log = structlog.get_logger(__name__)


class Metrics(Protocol):
    """What is counted here."""

    def fenced(self, why: str) -> None:
        """A fence was written: "claim" or "doubt"."""


class Ledger:
    """What is committed of one input partition, and the only one who adds to it.

    Args:
        source: the input partition.
        open_writer: makes a writer for it.
        open_reader: makes a reader of its changelog partition.
        is_member: asks the group's coordinator whether the partition is still ours; a zombie must not fence its successor again and again.
        owner: random bytes that no other claim has; the first PROCESS_BYTES are those of the process.
        name: of the instance, for people.
        group: the consumer group of the instance.
        metrics: where to count.
        transactional: whether writers are. Without transactions pages can be newer than the position, and the chain may fork.
    """

    def __init__(
        self,
        source: Source,
        *,
        open_writer: Callable[[], Writer],
        open_reader: Callable[[], LogReader],
        is_member: Callable[[], Awaitable[bool]],
        owner: bytes,
        name: str,
        group: str,
        metrics: Metrics,
        transactional: bool = True,
    ) -> None:
        self.source = source
        self._open_writer = open_writer
        self._open_reader = open_reader
        self._is_member = is_member
        self._fence = Entry(FENCE_KEY, codec.encode(FENCE_KEY, Fence(owner, name, group)))
        self._owner = owner
        self._group = group
        self._strangers: set[str] = set()
        self._metrics = metrics
        self._transactional = transactional
        self.partitions = 0
        """Of the input topic, while this ledger has been writing."""
        self._writer: Writer | None = None
        self._last: Position | None = None
        self._known = -1  # changelog offset of the newest record of ours that we know to be committed
        self._live: dict[bytes, int] = {}  # changelog offset of every record that a restore needs, but P
        self._plain_until = -1  # input offset up to which records that were written without transactions know
        self._until: dict[bytes, int] = {}  # of episodes and forgotten series: input offset from which on pages know better

    def repartitioned(self, partitions: int) -> str:
        """Why nothing goes on when the input topic has another number of partitions now."""
        return (
            f"topic {self.source.topic} has {partitions} partitions, its state was written for {self.partitions}: series may have moved to "
            f"other partitions; stop the instances, then `anomalyd state restart -c CONFIG --topic {self.source.topic} --yes`"
        )

    @property
    def records(self) -> list[bytes]:
        """Keys of everything that a restore needs."""
        return list(self._live)

    @property
    def position(self) -> int | None:
        """P: input offset up to which everything is committed."""
        return None if self._last is None else self._last.position

    # --- claim ------------------------------------------------------------------------------------------------------

    async def claim(self, partitions: int, load: Load, prepare: Prepare | None = None) -> Restored:
        """Takes the partition over and reads what is known of it.

        Args:
            partitions: of the input topic.
            load: is given pages as they are read; of several with the same number the last one counts.
            prepare: is told what the position says, in front of the first pages; again where reading has to begin anew.

        Raises:
            LostError: the group gives the partition to somebody else.
            StateError: what is there cannot be used; the message says what to do.
            KafkaRefusedError: waiting would not help.
        """
        self.partitions = partitions
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                fence = await self._open("claim")
                return await self._restore(fence, load, prepare)
            except DeliveryError as error:
                await self.close()
                _log.warning("claim_failed", **self._where, reason=str(error))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
                if not await self._is_member():
                    raise LostError from error

    async def close(self) -> None:
        """Lets go of the writer; what was committed stays."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    async def _open(self, why: str) -> int:
        """A new writer and its fence; returns the fence's changelog offset."""
        self._writer = self._open_writer()
        await self._writer.open()
        reached("after-init")
        (fence,) = await self._writer.commit([], [self._fence])
        reached("after-fence")
        self._metrics.fenced(why)
        return fence

    async def _restore(self, fence: int, load: Load, prepare: Prepare | None) -> Restored:
        reader = self._open_reader()
        try:
            first = await reader.first()
            last, claims = await self._last_position(reader, first, fence)
            self._live.clear()
            self._until.clear()
            self._last, self._known, self._plain_until = last, fence, -1
            # A position that wants records behind our own fence is of a log that is no more: it was written while that was made anew.
            gone = last is not None and last.restore_from > fence
            if last is None or gone:
                # Compaction leaves the beginning where it is.
                return Restored(claims=claims, strangers=frozenset(self._strangers), missing=gone or first > 0)
            if last.partitions != self.partitions:
                before, self.partitions = self.partitions, last.partitions
                raise StateError(self.repartitioned(before))
            reached("restore")
            restored = Restored(
                last.position,
                last.replay_from,
                last.stream_time_ms,
                policies=last.policies,
                trial=last.trial,
                pulse=last.pulse,
                control=last.control,
                corrections=last.corrections,
                timeline=needed(last.timeline, last.replay_from),
            )
            if prepare is not None:
                await prepare(restored)
            await self._read(reader, restored, last, fence, load)
            restored.claims, restored.strangers = claims, frozenset(self._strangers)
            return restored
        finally:
            await reader.close()

    async def _last_position(self, reader: LogReader, first: int, fence: int) -> tuple[Position | None, int]:
        """The last position in front of our fence, and how many claims there were since it last moved, ours counted."""
        owners: set[bytes] = set()
        for start in probes(first, fence):
            last: Position | None = None
            damage: StateError | None = None
            owners.clear()
            self._strangers.clear()
            async for records in reader.read(start, fence):
                for record in records:
                    if record.key not in (POSITION_KEY, FENCE_KEY) or record.value is None:
                        continue
                    try:
                        found = self._decoded(record)
                        if isinstance(found, Fence):
                            owners |= {found.owner[:PROCESS_BYTES]}
                            self._strangers |= {found.name} if found.group not in ("", self._group) else set()
                        if not isinstance(found, Position):
                            continue
                        if found.anew:
                            damage = None  # an operator, or the end of the input, has settled what was in front
                        else:
                            self._check_link(last, found, record)
                    except StateError as error:
                        damage = damage or error
                        continue
                    if moved_on(last, found):
                        owners.clear()
                    last = found
            if damage is not None:
                raise damage
            if last is not None:
                return last, max(1, len(owners))
        return None, max(1, len(owners))

    def _check_link(self, before: Position | None, found: Position, record: LogRecord) -> None:
        """A position that follows another one in the log has to know of it."""
        if self._transactional and (why := breach(before, found)):
            raise StateError(
                f"{self._place(record)}: the chain of positions is broken: {why}; did two groups share a changelog? See `anomalyd state "
                f"verify --help`"
            )

    async def _read(self, reader: LogReader, restored: Restored, last: Position, fence: int, load: Load) -> None:
        episodes: dict[bytes, Episode] = {}
        forgotten: dict[bytes, Forgotten] = {}
        async for records in reader.read(max(last.restore_from, 0), fence):
            pages = []
            for record in records:
                kind = record.key[:1]
                if record.value is None:
                    self._live.pop(record.key, None)
                    self._until.pop(record.key, None)
                    episodes.pop(record.key, None)
                    forgotten.pop(record.key, None)
                    continue
                if kind in (POSITION_KEY, FENCE_KEY):
                    continue
                found = self._decoded(record)
                self._live[record.key] = record.offset
                if isinstance(found, Page):
                    if self._transactional and found.position > last.position and not last.plain:
                        raise StateError(f"{self._place(record)}: page of offset {found.position} is ahead of the position {last.position}")
                    self._plain_until = max(self._plain_until, found.position)
                    pages.append(found)
                elif isinstance(found, Episode):
                    self._plain_until = max(self._plain_until, found.position)
                    episodes[record.key] = found
                    self._until[record.key] = found.position
                elif isinstance(found, Forgotten):
                    self._plain_until = max(self._plain_until, found.offset)
                    forgotten[record.key] = found
                    self._until[record.key] = codec.forgotten_at(record.key) + 1
            if pages:
                await load(pages)
        restored.episodes = {codec.series_of(key): episode for key, episode in episodes.items()}
        for gone in forgotten.values():
            for series in gone.keys:
                restored.forgotten[series] = max(gone.offset, restored.forgotten.get(series, -1))

    def _decoded(self, record: LogRecord) -> codec.Value:
        try:
            return codec.decode(record.key, record.value or b"")
        except StateError as error:
            raise StateError(f"{self._place(record)}: {error}") from None

    def _place(self, record: LogRecord) -> str:
        return f"state of {self.source.topic}/{self.source.partition}, changelog offset {record.offset}"

    @property
    def _where(self) -> dict[str, Any]:
        return {"topic": self.source.topic, "partition": self.source.partition}

    # --- commit -----------------------------------------------------------------------------------------------------

    async def commit(self, work: Work) -> None:
        """Makes work visible, all of it at once; returns when it is, however long brokers are away.

        Raises:
            LostError: the partition is not ours any more; the work will never be visible.
            StateError: what others wrote meanwhile cannot be used.
            KafkaRefusedError: waiting would not help.
        """
        # What pages know as well has done its duty; with this very transaction, which says from where on to replay.
        done = [key for key, until in self._until.items() if until <= work.replay_from]
        written = {key: value for key, value in work.pages.items() if value is not None or key in self._live}
        written |= {codec.episode_key(series): value for series, value in work.episodes.items()}
        written |= work.forgotten
        written |= {key: None for key in done if key not in written}
        kept = [offset for key, offset in self._live.items() if key not in written]
        position = self._next(work, restore_from=min(kept, default=self._known + 1))
        entries = [Entry(key, value) for key, value in written.items()]
        entries.append(Entry(POSITION_KEY, codec.encode(POSITION_KEY, position)))

        reached("begin")
        offsets = await self._surely(work.messages, entries, position)
        reached("after-commit")

        self._last, self._known = position, max(self._known, offsets[-1])  # behind a doubt it is the fence that is known
        for (key, value), offset in zip(entries[:-1], offsets, strict=False):
            if value is None:
                self._live.pop(key, None)
                self._until.pop(key, None)
            else:
                self._live[key] = offset
        for series in work.episodes:
            self._until[codec.episode_key(series)] = work.position
        for key in work.forgotten:
            self._until[key] = codec.forgotten_at(key) + 1

    def _next(self, work: Work, restore_from: int) -> Position:
        last = self._last
        earlier = None if last is None or work.anew else last
        return Position(
            sequence=0 if last is None else last.sequence + 1,
            previous=-1 if last is None else last.position,
            position=work.position,
            replay_from=work.replay_from,
            restore_from=restore_from,
            partitions=self.partitions,
            owner=self._owner,
            stream_time_ms=work.stream_time_ms,
            timeline=told(() if earlier is None else earlier.timeline, work.models, work.replay_from),
            trial=work.trial,
            clean=work.clean,
            anew=work.anew,
            plain=not self._transactional or work.position < self._plain_until,
            policies=told(() if earlier is None else earlier.policies, work.policies, work.replay_from),
            pulse=work.pulse,
            control=work.control,
            corrections=told(() if earlier is None else earlier.corrections, work.corrections, work.replay_from),
        )

    async def _surely(self, messages: Sequence[Any], entries: Sequence[Entry], position: Position) -> list[int]:
        """Writes until it is known to be committed; returns the entries' offsets."""
        singly = 0
        while True:
            try:
                if self._writer is None:
                    raise DeliveryError("the writer was closed")
                written = await self._writer.commit(messages, entries, singly=singly)
            except TooLargeError as error:
                messages, singly = error.smaller(messages)
                reason = str(error)
            except DeliveryError as error:
                reason = str(error)
            else:
                self._check_ahead(written[0])
                return written
            _log.warning("commit_in_doubt", **self._where, reason=reason)
            if (offsets := await self._resolve(entries, position)) is not None:
                return offsets

    async def _resolve(self, entries: Sequence[Entry], position: Position) -> list[int] | None:
        """Finds out whether a doubtful transaction was committed: the offsets of its entries, or None, and then it never will be."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await self.close()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)
            if not await self._is_member():
                raise LostError("the group has given it to another")
            try:
                fence = await self._open("doubt")
                self._check_ahead(fence)
                tail = await self._tail(fence)
            except DeliveryError as error:
                _log.warning("claim_failed", **self._where, reason=str(error))
                continue
            known, found = self._known, self._own(tail, position)
            self._known = fence
            if found is None:
                return None
            offsets = {key: offset for offset, key, _ in tail if known < offset <= found}
            return [offsets[entry.key] for entry in entries]

    def _check_ahead(self, offset: int) -> None:
        """What is written lies behind all that we know of; else that is gone, and whoever reads on from there finds nothing."""
        if offset <= self._known:
            raise StateError(
                f"state of {self.source.topic}/{self.source.partition}: the changelog was made anew, or has lost its end: offset "
                f"{self._known} was written, and now {offset}; what was learned is gone, see `anomalyd state restart --help`"
            )

    async def _tail(self, fence: int) -> list[LogRecord]:
        reader = self._open_reader()
        try:
            return [record async for records in reader.read(self._known + 1, fence) for record in records]
        finally:
            await reader.close()

    def _own(self, tail: Sequence[LogRecord], position: Position) -> int | None:
        """The changelog offset of our position in the tail, None if it is not there. Raises LostError where somebody else was."""
        ours = None
        for record in tail:
            if record.key not in (FENCE_KEY, POSITION_KEY) or record.value is None:
                continue
            found = self._decoded(record)
            # Behind our position as well: it was committed, and then somebody took over from there while we were not looking.
            if isinstance(found, Fence | Position) and found.owner != self._owner:
                raise LostError(f"taken over by {found.name if isinstance(found, Fence) else 'another owner'}")
            if isinstance(found, Position) and found.sequence == position.sequence:
                ours = record.offset
        return ours


def needed(timeline: tuple[tuple[int, _T], ...], replay_from: int) -> tuple[tuple[int, _T], ...]:
    """What of a timeline, oldest first, a replay from an input offset meets."""
    while len(timeline) > 1 and timeline[1][0] <= replay_from:
        timeline = timeline[1:]
    return timeline


def told(before: Sequence[tuple[int, _T]], new: Sequence[tuple[int, _T]], replay_from: int) -> tuple[tuple[int, _T], ...]:
    """What a position says of a timeline: what a replay meets, and each new entry.

    That one stands in one position at least, even if others have replaced it before it was committed: whoever wants to know what was in
    force when, or to repeat the run, finds it in the changelog.
    """
    kept = needed((*before, *new), replay_from)
    return kept if len(kept) >= len(new) else tuple(new)
