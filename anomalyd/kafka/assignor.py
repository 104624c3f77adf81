"""Which member of the group reads which partition: balanced, and what a member has stays with it.

A partition that moves has to be restored by its new owner, so as few as possible do. What a member has it tells the leader in its metadata,
with the generation in which that was given; the leader writes the next generation into every assignment. So a member that was away and
still believes in its old partitions loses them to whoever was given them since.

The client's own sticky assignor keeps its memory in the class, for all consumers of a process (aiokafka #1175), and never sets the
generation (#1176).

Static members (kafka.group_instance_id), as tested with Kafka 4.3:

- One that comes back within its session gets its assignment back from the broker, our generation in it, and nobody else notices: no leader
  is asked, though its metadata now say that it has nothing. Nor does that change when it was the leader.
- A leader that came back so takes itself for a follower until the next rebalance: the broker names its old member id (JoinGroup below
  version 9). The client watches topics for new ones and new partitions as a leader only, so until then nobody does. It leads again after
  a rebalance that it asks for itself: its metadata differ from those of its join.
- A rebalance that falls into its absence waits, for everybody, until it is back or its session ends; then it is out like any other.
"""

import struct
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import msgspec
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

NAME: Final = "anomalyd-sticky"
VERSION: Final = 1
"""Of what members tell each other. Higher: another meaning of a field, or one less; who does not know it reads "has nothing"."""

_PROTOCOL_VERSION: Final = 0
_HEAD: Final = struct.Struct("<2sBI")
_MAGIC: Final = b"\xa5k"

_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]


class Held(msgspec.Struct, frozen=True, array_like=True):
    """What a member was given, and when."""

    generation: _Count = 0
    """Counted by the leaders; 0: never given anything."""
    partitions: dict[str, list[_Count]] = {}
    """By topic."""


class Member(NamedTuple):
    """A member of the group as the leader sees it."""

    topics: Collection[str]
    """Subscribed."""
    owned: Collection[tuple[str, int]]
    """Topic and partition."""
    generation: int
    """In which it was given them."""


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Held)


def encode(held: Held) -> bytes:
    """For the user data of metadata and assignments."""
    payload = _encoder.encode(held)
    return _HEAD.pack(_MAGIC, VERSION, zlib.crc32(payload)) + payload


def decode(data: bytes | None) -> Held:
    """What a member, or the leader, says; nothing if it is damaged, of another program or of a newer release."""
    if not data or len(data) < _HEAD.size:
        return Held()
    magic, version, checksum = _HEAD.unpack_from(data)
    payload = data[_HEAD.size :]
    if magic != _MAGIC or version != VERSION or checksum != zlib.crc32(payload):
        return Held()
    try:
        return _decoder.decode(payload)
    except msgspec.DecodeError:  # ValidationError is one, too
        return Held()


def assign(members: Mapping[str, Member], partitions: Mapping[str, int]) -> dict[str, list[tuple[str, int]]]:
    """Gives every partition to one member that is subscribed to its topic.

    With equal subscriptions the members' numbers of partitions differ by one at most, and no assignment of which that is true takes fewer
    partitions from those who have them. With different ones no partition can go from a member to another that has two less.

    Of several members that claim a partition the one of the highest generation has it, of equals the first by id. One that gives
    partitions away gives back first what the other had before. Equal arguments give equal results, in whatever order they are.

    Args:
        members: by member id.
        partitions: how many a topic has; topics that are not here don't exist.
    """
    balance = _Balance(members, partitions)
    balance.keep()
    balance.hand_out()
    balance.even_out()
    return balance.result()


class _Balance:
    def __init__(self, members: Mapping[str, Member], partitions: Mapping[str, int]) -> None:
        self._members = {member: members[member] for member in sorted(members)}
        self._partitions = partitions
        self._readers = {topic: [member for member, its in self._members.items() if topic in its.topics] for topic in sorted(partitions)}
        self._holding: dict[str, dict[str, set[int]]] = {member: {topic: set() for topic in self._readers} for member in self._members}
        self._had: dict[str, dict[str, set[int]]] = {member: {topic: set() for topic in self._readers} for member in self._members}
        self._load = dict.fromkeys(self._members, 0)

    def keep(self) -> None:
        claims: defaultdict[tuple[str, int], list[tuple[int, str]]] = defaultdict(list)
        for member, its in self._members.items():
            for topic, partition in set(its.owned):
                if topic in its.topics and 0 <= partition < self._partitions.get(topic, 0):
                    claims[topic, partition].append((-its.generation, member))
        for (topic, partition), claimed in claims.items():
            claimed.sort()
            self._give(claimed[0][1], topic, partition)
            for _, late in claimed[1:]:
                self._had[late][topic].add(partition)

    def hand_out(self) -> None:
        for topic, readers in sorted(self._readers.items(), key=lambda item: (len(item[1]), item[0])):  # those with the least choice first
            kept = set().union(*(self._holding[reader][topic] for reader in readers))
            for partition in range(self._partitions[topic] if readers else 0):
                if partition not in kept:
                    least = min(readers, key=lambda reader: (self._load[reader], len(self._holding[reader][topic]), reader))
                    self._give(least, topic, partition)

    def even_out(self) -> None:
        while move := self._next_move():
            giver, taker, topic, partition = move
            self._holding[giver][topic].remove(partition)
            self._load[giver] -= 1
            self._give(taker, topic, partition)

    def _next_move(self) -> tuple[str, str, str, int] | None:
        """From who has most to who has least; what that one had before, else of a topic of which the giver has many and the taker few."""
        for giver in sorted(self._members, key=lambda member: (-self._load[member], member)):
            best = min(
                (
                    (self._load[taker], not back, len(self._holding[taker][topic]) - len(held), taker, topic, max(back or held))
                    for topic, held in self._holding[giver].items()
                    if held
                    for taker in self._readers[topic]
                    if self._load[taker] + 2 <= self._load[giver]
                    for back in (held & self._had[taker][topic],)
                ),
                default=None,
            )
            if best is not None:
                return giver, *best[3:]
        return None

    def result(self) -> dict[str, list[tuple[str, int]]]:
        return {
            member: [(topic, partition) for topic in held for partition in sorted(held[topic])] for member, held in self._holding.items()
        }

    def _give(self, member: str, topic: str, partition: int) -> None:
        self._holding[member][topic].add(partition)
        self._load[member] += 1


class _Sticky(AbstractPartitionAssignor):  # type: ignore[misc]  # the client ships no types
    name = NAME
    held: ClassVar[Held] = Held()

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> Any:  # noqa: ANN401  the client's type
        return ConsumerProtocolMemberMetadata(_PROTOCOL_VERSION, sorted(topics), encode(cls.held))

    @classmethod
    def assign(cls, cluster: Any, members: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ANN401  the client's types
        told = {member: decode(metadata.user_data) for member, metadata in members.items()}
        topics = {topic for metadata in members.values() for topic in metadata.subscription}
        given = assign(
            {
                member: Member(frozenset(members[member].subscription), list(_listed(held.partitions)), held.generation)
                for member, held in told.items()
            },
            {topic: len(known) for topic in topics if (known := cluster.partitions_for_topic(topic))},
        )
        generation = encode(Held(1 + max((held.generation for held in told.values()), default=0)))
        return {
            member: ConsumerProtocolMemberAssignment(_PROTOCOL_VERSION, sorted(_by_topic(its).items()), generation)
            for member, its in given.items()
        }

    @classmethod
    def on_assignment(cls, assignment: Any) -> None:  # noqa: ANN401  the client's type
        # A leader of a newer release writes what we can't read: then every one of us counts for itself.
        generation = decode(assignment.user_data).generation or cls.held.generation + 1
        cls.held = Held(generation, _by_topic(assignment.partitions()))


def sticky() -> type[Any]:
    """An assignor for one member: the client takes a class and calls its class methods, so the memory lies in a class of its own.

    It outlives a client that is replaced by another one of the same member: the next tells what the last one had.
    """

    class Sticky(_Sticky):
        """Of one member."""

    return Sticky


def _by_topic(partitions: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    found: defaultdict[str, list[int]] = defaultdict(list)
    for topic, partition in sorted(partitions):
        found[topic].append(partition)
    return dict(found)


def _listed(partitions: Mapping[str, Iterable[int]]) -> Iterable[tuple[str, int]]:
    return ((topic, partition) for topic, its in partitions.items() for partition in its)
