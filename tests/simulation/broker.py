"""What Kafka does, as far as a client can tell: logs, producer epochs, transactions, groups. A state machine without I/O, and without time
of its own but for timers that it asks for.

Calls answer with a value or raise the client's own error for what a broker would answer. Whether a call or its answer arrives is the
network's business (network.py).
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Literal

from aiokafka.errors import (
    ConcurrentTransactions,
    IllegalGenerationError,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    MessageSizeTooLargeError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OutOfOrderSequenceNumber,
    RebalanceInProgressError,
    UnknownMemberIdError,
    UnknownTopicOrPartitionError,
)
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.structs import TopicPartition

from tests.simulation.log import Log, Producing

_REMEMBERED_BATCHES: Final = 5
"""Per producer and partition, so that one sent twice is recognised."""


@dataclass(slots=True)
class Transaction:
    """What the coordinator knows of a transactional id."""

    id: str
    producer: int
    epoch: int
    timeout_s: float
    state: Literal["empty", "ongoing", "prepare-commit", "prepare-abort", "commit", "abort"] = "empty"
    partitions: dict[TopicPartition, None] = field(default_factory=dict)
    began: int = 0  # counts transactions, for the timer of each
    since_s: float = 0.0
    unmarked: int = 0


@dataclass(slots=True)
class Member:
    """Of a group."""

    id: str
    name: str
    session_s: float
    rebalance_s: float
    instance: str | None
    metadata: list[tuple[str, bytes]]
    """Name of each protocol that it can work by, and what the leader should know of it."""
    seen_s: float = 0.0
    joined: asyncio.Future[Any] | None = None
    synced: asyncio.Future[Any] | None = None
    assignment: bytes = b""


class Group:
    """A consumer group with eager rebalances, after the classic protocol."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.generation = 0
        self.state: Literal["empty", "preparing", "completing", "stable"] = "empty"
        self.members: dict[str, Member] = {}
        self.leader: str | None = None
        self.offsets: dict[TopicPartition, int] = {}
        self.notes: dict[TopicPartition, str] = {}
        """Metadata of the offsets."""
        self.round = 0
        self.rebalances = 0


class Broker:
    """The cluster, seen as one broker.

    Args:
        loop: for timers.
        rng: for how long markers take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, rng: Random) -> None:
        self.loop = loop
        self._rng = rng
        self.context = Context()
        self.logs: dict[TopicPartition, Log] = {}
        self.transactions: dict[str, Transaction] = {}
        self.groups: dict[str, Group] = {}
        self.leaderless: dict[TopicPartition, float] = {}
        """Until when nobody leads a partition."""
        self.uncoordinated_until_s = -1.0
        self.on_append: Callable[[Log], None] = lambda _: None
        self.on_begin: Callable[[Transaction], None] | None = None
        """Told about transactions that begin."""
        self.timed_out = 0
        """Transactions that the coordinator ended."""
        self._next_producer = 1000
        self._members = 0

    # --- topics -----------------------------------------------------------------------------------------------------

    def make_topic(self, name: str, partitions: int, *, compacted: bool = False, max_message_bytes: int = 1 << 20) -> None:
        for partition in range(partitions):
            tp = TopicPartition(name, partition)
            self.logs[tp] = Log(tp, compacted=compacted, max_message_bytes=max_message_bytes)

    def partitions(self, topic: str) -> set[int] | None:
        found = {tp.partition for tp in self.logs if tp.topic == topic}
        return found or None

    def log(self, tp: TopicPartition) -> Log:
        if tp not in self.logs:
            raise UnknownTopicOrPartitionError(tp)
        return self.logs[tp]

    def led(self, tp: TopicPartition) -> Log:
        """A log whose leader answers."""
        if self.leaderless.get(tp, -1.0) > self.loop.time():
            raise NotLeaderForPartitionError(tp)
        return self.log(tp)

    # --- producing --------------------------------------------------------------------------------------------------

    def produce(self, tp: TopicPartition, raw: bytes, transactional_id: str | None) -> int:
        """Appends one batch; returns its first offset."""
        log = self.led(tp)
        if len(raw) > log.max_message_bytes:
            raise MessageSizeTooLargeError
        parsed = DefaultRecordBatch(bytearray(raw))
        producer, epoch, sequence, count = parsed.producer_id, parsed.producer_epoch, parsed.base_sequence, parsed.last_offset_delta + 1
        if producer >= 0:
            known = log.producing.get(producer)
            if known is not None and epoch < known.epoch:
                raise InvalidProducerEpoch
            if known is None or epoch > known.epoch:
                if sequence != 0 and known is not None:
                    raise OutOfOrderSequenceNumber
                known = Producing(epoch, sequence)
            for base, length, offset in known.batches:
                if base == sequence and length == count:
                    return offset
            if transactional_id is not None:
                self._verify(transactional_id, tp, log, producer, epoch)
            if sequence != known.next_sequence and known.batches:
                raise OutOfOrderSequenceNumber
            log.producing[producer] = known
            known.next_sequence = sequence + count
            known.batches = [*known.batches[1 - _REMEMBERED_BATCHES :], (sequence, count, log.end)]
            if transactional_id is not None:
                log.open.setdefault(producer, log.end)
        batch = log.append(raw)
        self._appended(log)
        return batch.base

    def _appended(self, log: Log) -> None:
        self.on_append(log)
        log.wake()

    def _verify(self, transactional_id: str, tp: TopicPartition, log: Log, producer: int, epoch: int) -> None:
        """KIP-890, part 1: what is not part of a transaction that goes on must not begin one that nobody ends."""
        if producer in log.open:
            return
        transaction = self.transactions.get(transactional_id)
        if transaction is None or transaction.producer != producer:
            raise InvalidProducerIdMapping
        if transaction.epoch != epoch:
            raise InvalidProducerEpoch
        if transaction.state != "ongoing" or tp not in transaction.partitions:
            raise InvalidTxnState

    # --- transactions -----------------------------------------------------------------------------------------------

    def coordinator(self) -> None:
        if self.uncoordinated_until_s > self.loop.time():
            raise NotCoordinatorError

    def init_producer(self, transactional_id: str | None, timeout_s: float) -> tuple[int, int]:
        """A producer id and epoch; the epoch of a transactional id goes up, and what it had open is aborted."""
        if transactional_id is None:
            self._next_producer += 1
            return self._next_producer, 0
        self.coordinator()
        found = self.transactions.get(transactional_id)
        if found is None:
            self._next_producer += 1
            self.transactions[transactional_id] = Transaction(transactional_id, self._next_producer, 0, timeout_s)
            return self._next_producer, 0
        if found.state == "ongoing":
            found.epoch += 1
            self._end(found, "abort")
        if found.state in {"prepare-commit", "prepare-abort"}:
            raise ConcurrentTransactions
        found.epoch += 1
        found.timeout_s = timeout_s
        found.state = "empty"
        return found.producer, found.epoch

    def add_partitions(self, transactional_id: str, producer: int, epoch: int, partitions: Iterable[TopicPartition]) -> None:
        transaction = self._transaction(transactional_id, producer, epoch)
        if transaction.state in {"prepare-commit", "prepare-abort"}:
            raise ConcurrentTransactions
        added = list(partitions)
        for tp in added:
            self.log(tp)
        if transaction.state != "ongoing":
            transaction.state = "ongoing"
            transaction.partitions.clear()
            transaction.began += 1
            transaction.since_s = self.loop.time()
            self.loop.call_later(transaction.timeout_s, self.time_out, transaction, transaction.began, context=self.context)
            if self.on_begin is not None:
                self.on_begin(transaction)
        transaction.partitions.update(dict.fromkeys(added))

    def end_transaction(self, transactional_id: str, producer: int, epoch: int, *, commit: bool) -> None:
        transaction = self._transaction(transactional_id, producer, epoch)
        wanted = "commit" if commit else "abort"
        if transaction.state == "ongoing":
            self._end(transaction, "commit" if commit else "abort")
        elif transaction.state in {"prepare-commit", "prepare-abort"}:
            if transaction.state == f"prepare-{wanted}":
                raise ConcurrentTransactions
            raise InvalidTxnState
        elif transaction.state != wanted:
            raise InvalidTxnState

    def _transaction(self, transactional_id: str, producer: int, epoch: int) -> Transaction:
        self.coordinator()
        found = self.transactions.get(transactional_id)
        if found is None or found.producer != producer:
            raise InvalidProducerIdMapping
        if found.epoch != epoch:
            raise InvalidProducerEpoch
        return found

    def time_out(self, transaction: Transaction, began: int) -> None:
        """Gives a transaction up that goes on for too long."""
        if transaction.state == "ongoing" and transaction.began == began:
            transaction.epoch += 1
            self.timed_out += 1
            self._end(transaction, "abort")

    def _end(self, transaction: Transaction, how: Literal["commit", "abort"]) -> None:
        transaction.state = "prepare-commit" if how == "commit" else "prepare-abort"
        transaction.unmarked = len(transaction.partitions)
        for tp in transaction.partitions:
            # Each leader writes its marker when it hears of it.
            delay_s = self._rng.uniform(0.0005, 0.01)
            self.loop.call_later(delay_s, self._mark, transaction, tp, transaction.epoch, how, context=self.context)
        if not transaction.unmarked:
            transaction.state = how

    def _mark(self, transaction: Transaction, tp: TopicPartition, epoch: int, how: Literal["commit", "abort"]) -> None:
        self.logs[tp].mark(transaction.producer, epoch, how)
        self._appended(self.logs[tp])
        transaction.unmarked -= 1
        if not transaction.unmarked:
            transaction.state = how

    # --- groups -----------------------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group(name))

    def join(self, group: Group, member: Member, member_id: str) -> asyncio.Future[Any]:
        """Answers with generation, member id, leader and (for it) members, once all have joined or were waited for long enough."""
        self.coordinator()
        if member_id and member_id not in group.members:
            raise UnknownMemberIdError
        if not member_id:
            self._members += 1
            member_id = f"{member.name}-{self._members}"
            for old in [other for other in group.members.values() if member.instance is not None and other.instance == member.instance]:
                self._drop(group, old)
        member.id = member_id
        member.seen_s = self.loop.time()
        joined = member.joined = self.loop.create_future()
        group.members[member_id] = member
        if group.state != "preparing":
            self._prepare(group)
        self._watch(group, member)
        self._complete_if_all_joined(group)
        return joined

    def sync(self, group: Group, member_id: str, generation: int, assignments: Mapping[str, bytes] | None) -> asyncio.Future[Any]:
        """Answers with the member's assignment once the leader has brought it."""
        self.coordinator()
        member = self._member(group, member_id, generation)
        if group.state == "preparing":
            raise RebalanceInProgressError
        synced = member.synced = self.loop.create_future()
        member.seen_s = self.loop.time()
        if group.state == "completing" and assignments is not None:
            group.state = "stable"
            for each in group.members.values():
                each.assignment = assignments.get(each.id, b"")
                each.seen_s = self.loop.time()
        if group.state == "stable":
            for each in group.members.values():
                if each.synced is not None and not each.synced.done():
                    each.synced.set_result(each.assignment)
        return synced

    def heartbeat(self, group: Group, member_id: str, generation: int) -> None:
        self.coordinator()
        member = self._member(group, member_id, generation)
        member.seen_s = self.loop.time()
        if group.state == "preparing":
            raise RebalanceInProgressError

    def leave(self, group: Group, member_id: str) -> None:
        self.coordinator()
        if member_id not in group.members:
            raise UnknownMemberIdError
        self._drop(group, group.members[member_id])

    def commit_offsets(self, group: Group, member_id: str, generation: int, offsets: Mapping[TopicPartition, tuple[int, str]]) -> None:
        self.coordinator()
        if not (generation < 0 and not group.members):
            member = self._member(group, member_id, generation)
            if group.state == "completing":
                raise RebalanceInProgressError
            member.seen_s = self.loop.time()
        group.offsets.update({tp: offset for tp, (offset, _) in offsets.items()})
        group.notes.update({tp: note for tp, (_, note) in offsets.items()})

    def rebalance(self, group: Group) -> None:
        """All have to join anew."""
        self._prepare(group)

    def _member(self, group: Group, member_id: str, generation: int) -> Member:
        member = group.members.get(member_id)
        if member is None:
            raise UnknownMemberIdError
        if generation != group.generation:
            raise IllegalGenerationError
        return member

    def _prepare(self, group: Group) -> None:
        group.state = "preparing"
        group.round += 1
        group.rebalances += 1
        for each in group.members.values():
            if each.synced is not None and not each.synced.done():
                each.synced.set_exception(RebalanceInProgressError())
            each.synced = None
        wait_s = max((member.rebalance_s for member in group.members.values()), default=0.0)
        self.loop.call_later(wait_s, self._complete, group, group.round, context=self.context)

    def _complete_if_all_joined(self, group: Group) -> None:
        if group.state == "preparing" and all(member.joined is not None for member in group.members.values()):
            self._complete(group, group.round)

    def _complete(self, group: Group, round_: int) -> None:
        """Whoever has joined is in."""
        if group.state != "preparing" or group.round != round_:
            return
        for member in list(group.members.values()):
            if member.joined is None:
                del group.members[member.id]
        if not group.members:
            group.state = "empty"
            return
        group.generation += 1
        group.state = "completing"
        if group.leader not in group.members:
            group.leader = next(iter(group.members))
        everybody = list(group.members.values())
        for member in everybody:
            member.seen_s = self.loop.time()
            joined, member.joined = member.joined, None
            if joined is not None and not joined.done():
                joined.set_result((group.generation, member.id, group.leader, everybody if member.id == group.leader else []))

    def _watch(self, group: Group, member: Member) -> None:
        """The session: who is not heard of for so long is out."""
        if group.members.get(member.id) is not member:
            return
        left_s = member.seen_s + member.session_s - self.loop.time()
        waiting = (member.joined is not None and not member.joined.done()) or (member.synced is not None and not member.synced.done())
        if left_s <= 0 and not waiting:
            self._drop(group, member)
        else:
            self.loop.call_later(max(left_s, 0.05), self._watch, group, member, context=self.context)

    def _drop(self, group: Group, member: Member) -> None:
        del group.members[member.id]
        for waiter in (member.joined, member.synced):
            if waiter is not None and not waiter.done():
                waiter.set_exception(UnknownMemberIdError())
        if not group.members:
            group.state = "empty"
            group.generation += 1
        elif group.state == "preparing":
            self._complete_if_all_joined(group)
        else:
            self._prepare(group)
            self._complete_if_all_joined(group)
