"""Who reads what: as arithmetic, as members tell it each other, and in a real group."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.kafka.assignor import NAME, VERSION, Held, Member, assign, decode, encode, sticky
from tests.support.poll import until
from tests.support.topics import create_topic, unique

T = TypeVar("T")
Given = dict[str, list[tuple[str, int]]]

NAMES = ("a", "b", "c", "d", "e", "f")
TOPICS = ("cpu", "disk", "net")
owned = st.lists(st.tuples(st.sampled_from((*TOPICS, "gone")), st.integers(0, 14)), max_size=20)
partition_counts = st.dictionaries(st.sampled_from(TOPICS), st.integers(1, 12), min_size=1)
equal_members = st.dictionaries(st.sampled_from(NAMES), st.builds(Member, st.just(TOPICS), owned, st.integers(0, 3)), min_size=1)
any_members = st.dictionaries(
    st.sampled_from(NAMES), st.builds(Member, st.frozensets(st.sampled_from(TOPICS), min_size=1), owned, st.integers(0, 3)), min_size=1
)


def loads(given_: Given) -> list[int]:
    return sorted(len(its) for its in given_.values())


def members_of(given_: Given, *more: str) -> dict[str, Member]:
    """The members of an assignment, and some that have nothing yet."""
    return {member: Member(TOPICS, given_.get(member, []), 1) for member in (*given_, *more)}


@given(any_members, partition_counts)
def test_every_partition_is_given_once_to_a_subscriber(members: dict[str, Member], partitions: dict[str, int]) -> None:
    result = assign(members, partitions)

    all_given = [partition for its in result.values() for partition in its]
    read = {topic for member in members.values() for topic in member.topics}
    assert sorted(all_given) == sorted((topic, p) for topic, count in partitions.items() if topic in read for p in range(count))
    assert all(topic in members[member].topics for member, its in result.items() for topic, _ in its)
    assert result.keys() == members.keys()


@given(equal_members, partition_counts)
def test_equal_members_are_balanced_and_keep_as_much_as_that_allows(members: dict[str, Member], partitions: dict[str, int]) -> None:
    result = assign(members, partitions)

    had: dict[str, set[tuple[str, int]]] = {member: set() for member in members}
    for topic, count in partitions.items():
        for p in range(count):
            claimed = [(-its.generation, member) for member, its in members.items() if (topic, p) in its.owned]
            if claimed:
                had[min(claimed)[1]].add((topic, p))
    least, more = divmod(sum(partitions.values()), len(members))
    assert loads(result) == sorted([least + 1] * more + [least] * (len(members) - more))
    most_first = sorted((len(its) for its in had.values()), reverse=True)
    kept = sum(len(had[member] & set(its)) for member, its in result.items())
    assert kept == sum(min(count, least + (i < more)) for i, count in enumerate(most_first))


@given(any_members, partition_counts)
def test_unequal_members_are_balanced_as_far_as_one_move_can_do_it(members: dict[str, Member], partitions: dict[str, int]) -> None:
    result = assign(members, partitions)

    for giver, its in result.items():
        for topic, _ in its:
            assert all(len(its) - len(result[taker]) <= 1 for taker in members if topic in members[taker].topics), (giver, topic)


@given(st.integers(1, 5), partition_counts)
def test_who_joins_is_given_its_share_and_nothing_else_moves(count: int, partitions: dict[str, int]) -> None:
    before = assign(members_of({}, *NAMES[:count]), partitions)

    after = assign(members_of(before, "new"), partitions)

    moved = {partition for member in before for partition in before[member]} - {p for member in before for p in after[member]}
    assert set(after["new"]) == moved
    assert len(moved) <= -(-sum(partitions.values()) // (count + 1))
    assert all(set(after[member]) <= set(before[member]) for member in before)


@given(st.integers(2, 6), partition_counts, st.data())
def test_when_one_leaves_nothing_moves_but_what_it_had(count: int, partitions: dict[str, int], data: st.DataObject) -> None:
    before = assign(members_of({}, *NAMES[:count]), partitions)
    leaver = data.draw(st.sampled_from(NAMES[:count]))

    after = assign(members_of({member: its for member, its in before.items() if member != leaver}), partitions)

    assert all(set(before[member]) <= set(its) for member, its in after.items())


@given(any_members, partition_counts, st.randoms(use_true_random=False))
def test_order_does_not_matter(members: dict[str, Member], partitions: dict[str, int], rng: random.Random) -> None:
    def shuffled(items: Collection[T]) -> list[T]:
        return rng.sample(list(items), len(items))

    other = {name: Member(frozenset(shuffled(its.topics)), shuffled(its.owned), its.generation) for name, its in shuffled(members.items())}

    assert assign(other, dict(shuffled(partitions.items()))) == assign(members, partitions)


def test_partitions_of_each_topic_are_spread() -> None:
    """Topics differ in traffic: nobody is given all of one while another has all of the other."""
    result = assign(members_of({}, "a", "b"), {"busy": 4, "quiet": 4} | dict.fromkeys(TOPICS, 0))
    assert not any(its for its in result.values())  # not subscribed to those

    members = {name: Member(("busy", "quiet"), [], 0) for name in "ab"}
    assert [sum(topic == "busy" for topic, _ in its) for its in assign(members, {"busy": 4, "quiet": 4}).values()] == [2, 2]


def test_the_newest_claim_wins_and_of_equals_the_first_member() -> None:
    claims = {"a": Member(TOPICS, [("cpu", 0), ("cpu", 1)], 4), "b": Member(TOPICS, [("cpu", 0), ("cpu", 1)], 5)}
    assert assign(claims, {"cpu": 2}) == {"a": [("cpu", 1)], "b": [("cpu", 0)]}
    assert ("cpu", 0) in assign({name: its._replace(generation=5) for name, its in claims.items()}, {"cpu": 1})["a"]


def test_what_is_given_away_goes_back_to_who_had_it() -> None:
    members = {"here": Member(TOPICS, [("cpu", p) for p in range(6)], 9), "back": Member(TOPICS, [("cpu", p) for p in (0, 2, 3)], 8)}
    assert assign(members, {"cpu": 6})["back"] == [("cpu", 0), ("cpu", 2), ("cpu", 3)]


# --- what members tell each other -------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 40), st.dictionaries(st.text(max_size=9), st.lists(st.integers(0, 1 << 30))))
def test_user_data_come_back(generation: int, partitions: dict[str, list[int]]) -> None:
    held = Held(generation, partitions)
    assert decode(encode(held)) == held


@given(st.data())
def test_damaged_user_data_are_nothing(data: st.DataObject) -> None:
    good = bytearray(encode(Held(3, {"cpu": [0, 1, 2]})))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at] ^= data.draw(st.integers(1, 255))

    assert decode(bytes(good)) == Held()
    assert decode(bytes(good[:at])) == Held()


@given(st.binary())
def test_foreign_user_data_are_nothing(data: bytes) -> None:
    assert decode(data) == Held()


def test_newer_or_impossible_user_data_are_nothing() -> None:
    newer = bytearray(encode(Held(3, {"cpu": [0]})))
    newer[2] = VERSION + 1
    assert decode(bytes(newer)) == decode(None) == Held()
    assert decode(encode(Held(1 << 60, {}))) == Held()
    assert decode(encode(Held(1, {"cpu": [-1]}))) == Held()


class Group:
    """Rebalances as the broker does them, with the bytes on the wire."""

    def __init__(self, **partitions: int) -> None:
        self._cluster = SimpleNamespace(partitions_for_topic=lambda topic: set(range(partitions[topic])) if topic in partitions else None)
        self.topics = list(partitions)

    def rebalance(self, **members: type[Any]) -> dict[str, set[int]]:
        leader = next(iter(members.values()))
        metadata = {name: type(told).decode(told.encode()) for name, its in members.items() for told in (its.metadata(self.topics),)}
        answers = leader.assign(self._cluster, metadata)
        for name, answer in answers.items():
            members[name].on_assignment(type(answer).decode(answer.encode()))
        return {name: {p for _, p in answer.partitions()} for name, answer in answers.items()}


def test_members_of_one_process_do_not_share_their_memory() -> None:
    group, one, other = Group(cpu=8), sticky(), sticky()
    group.rebalance(one=one, other=other)

    assert one.name == NAME
    assert one.held.partitions != other.held.partitions
    assert sticky().held == Held()


def test_who_was_away_takes_nothing_from_who_was_given_it_since() -> None:
    """A member that was thrown out keeps on claiming what it had, in an old generation."""
    group, away, stays, new = Group(cpu=8), sticky(), sticky(), sticky()
    group.rebalance(away=away, stays=stays)
    group.rebalance(stays=stays)
    since = group.rebalance(stays=stays, new=new)

    back = group.rebalance(away=away, stays=stays, new=new)

    assert back["stays"] < since["stays"]
    assert back["new"] < since["new"]
    assert set().union(*back.values()) == set(range(8))


def test_a_leader_that_knows_nothing_counts_on_from_the_others() -> None:
    group, one, new = Group(cpu=4), sticky(), sticky()
    for _ in range(5):
        group.rebalance(one=one)
    group.rebalance(new=new, one=one)

    assert new.held.generation == one.held.generation == 6


def test_an_answer_that_cannot_be_read_still_counts() -> None:
    """A leader of a newer release."""
    one = sticky()
    Group(cpu=4).rebalance(one=one)
    answer = SimpleNamespace(user_data=b"?", partitions=lambda: [("cpu", 1)])
    one.on_assignment(answer)

    assert one.held == Held(2, {"cpu": [1]})


def test_topics_that_do_not_exist_are_left_out() -> None:
    group, one = Group(cpu=2), sticky()
    group.topics.append("missing")
    assert group.rebalance(one=one) == {"one": {0, 1}}


# --- a real group -----------------------------------------------------------------------------------------------------


class Peer(ConsumerRebalanceListener):  # type: ignore[misc]  # the client ships no types
    """A consumer that reads nothing, and remembers what it was given."""

    def __init__(self, bootstrap: str, topic: str, group: str, instance: str | None) -> None:
        self.topic = topic
        self.mine: set[int] = set()
        self.revocations = 0
        self.client = AIOKafkaConsumer(
            bootstrap_servers=bootstrap,
            group_id=group,
            group_instance_id=instance,
            partition_assignment_strategy=(sticky(),),
            heartbeat_interval_ms=300,
            enable_auto_commit=False,
        )

    async def start(self) -> None:
        await self.client.start()
        self.client.subscribe([self.topic], listener=self)

    def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        self.revocations += 1
        self.mine = set()

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self.mine = {tp.partition for tp in assigned}


async def settled(*peers: Peer, partitions: int = 8) -> list[set[int]]:
    """What each has once all partitions are given out evenly."""

    def even() -> bool:
        sizes = [len(peer.mine) for peer in peers]
        return sum(sizes) == partitions and max(sizes) - min(sizes) <= 1

    await until(even, "an even assignment")
    return [set(peer.mine) for peer in peers]


Join = Callable[..., Awaitable[Peer]]


@asynccontextmanager
async def group_on(bootstrap: str) -> AsyncIterator[tuple[Join, Callable[[Peer], Awaitable[None]]]]:
    """Join and leave for members of a group of its own, on a topic of eight partitions."""
    topic, group = await asyncio.to_thread(create_topic, bootstrap, partitions=8), unique("group")
    present: list[Peer] = []

    async def join(instance: str | None = None) -> Peer:
        peer = Peer(bootstrap, topic, group, instance)
        present.append(peer)
        await peer.start()
        return peer

    async def leave(peer: Peer) -> None:
        present.remove(peer)
        await peer.client.stop()

    try:
        yield join, leave
    finally:
        for peer in present:
            await peer.client.stop()


@pytest.mark.real_kafka
async def test_members_keep_their_partitions_when_others_come_and_go(kafka: str) -> None:
    async with group_on(kafka) as (join, leave):
        one = await join()
        await settled(one)
        two = await join()
        halves = await settled(one, two)
        three = await join()
        thirds = await settled(one, two, three)
        assert thirds[0] < halves[0]
        assert thirds[1] < halves[1]

        await leave(one)
        rest = await settled(two, three)
        assert thirds[1] < rest[0]
        assert thirds[2] < rest[1]

        await leave(three)
        assert rest[0] < (await settled(two))[0]


@pytest.mark.real_kafka
@pytest.mark.parametrize("leader", [True, False])
async def test_a_static_member_that_comes_back_disturbs_nobody(kafka: str, leader: bool) -> None:
    """Though its metadata now say that it has nothing: the broker asks no leader. What it has it learns from its assignment."""
    async with group_on(kafka) as (join, leave):
        one = await join("one")
        await settled(one)
        two = await join("two")
        before = await settled(one, two)

        restarted, other = (one, two) if leader else (two, one)
        name, revocations = ("one" if leader else "two"), other.revocations
        await leave(restarted)
        restarted = await join(name)

        pair = (restarted, other) if leader else (other, restarted)
        assert await settled(*pair) == before
        assert other.revocations == revocations
        # The next rebalance finds everybody with its memory, and a leader.
        three = await join("three")
        after = await settled(*pair, three)
        assert after[0] < before[0]
        assert after[1] < before[1]


@pytest.mark.real_kafka
async def test_a_static_leader_that_comes_back_leads_again_when_it_asks_for_a_rebalance(kafka: str) -> None:
    """Until then it takes itself for a follower, and nobody watches the topics for new partitions."""
    async with group_on(kafka) as (join, leave):
        one = await join("one")
        await settled(one)
        two = await join("two")
        before = await settled(one, two)
        await leave(one)
        one = await join("one")
        assert await settled(one, two) == before
        assert not watching(one)
        assert not watching(two)

        revocations = two.revocations
        one.client._coordinator.request_rejoin()  # noqa: SLF001 - there is no public way
        await until(lambda: watching(one) and two.revocations > revocations, "a leader")
        assert await settled(one, two) == before


def watching(peer: Peer) -> bool:
    """Whether it would notice a new partition."""
    return peer.client._coordinator._group_subscription is not None  # noqa: SLF001
