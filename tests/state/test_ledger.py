"""The protocol of one partition against a log in memory that fences, fails and leaves its callers in doubt."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from anomalyd.batch import Entry, LogRecord, Source
from anomalyd.errors import DeliveryError, FencedError, LostError, StateError, TooLargeError
from anomalyd.state import codec, ledger
from anomalyd.state.codec import Episode, Fence, Forgotten, Page, Position
from anomalyd.state.ledger import Ledger
from anomalyd.state.ports import Restored, Work

SOURCE = Source("metrics", 3)
EMPTY = memoryview(b"")


def page(number: int, position: int) -> tuple[bytes, bytes]:
    key = codec.page_key(256, number)
    return key, codec.encode(key, Page(position, number, 256, "m", (), 8, "r", [], EMPTY, EMPTY, EMPTY, EMPTY))


@dataclass
class Log:
    """A changelog partition and the topics beside it."""

    records: list[LogRecord] = field(default_factory=list)
    messages: list[Any] = field(default_factory=list)
    epoch: int = 0
    failures: list[str] = field(default_factory=list)
    """What becomes of the next commits: `lost` (not written), `silent` (written, but nobody hears of it), `large`, `large-known`."""

    def put(self, key: bytes, value: bytes | None) -> int:
        offset = self.records[-1].offset + 2 if self.records else 0  # markers take offsets
        self.records.append(LogRecord(offset, key, value))
        return offset

    def positions(self) -> list[Position]:
        found = [codec.decode(key, value) for _, key, value in self.records if key == codec.POSITION_KEY and value is not None]
        return [position for position in found if isinstance(position, Position)]

    def live(self) -> set[bytes]:
        newest = {key: value for _, key, value in self.records}
        return {key for key, value in newest.items() if value is not None and key not in (codec.POSITION_KEY, codec.FENCE_KEY)}


class Writing:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.epoch = -1

    async def open(self) -> None:
        self.log.epoch += 1
        self.epoch = self.log.epoch

    async def commit(self, messages: Sequence[Any], entries: Sequence[Entry], *, singly: int = 0) -> list[int]:
        await asyncio.sleep(0)
        if self.epoch != self.log.epoch:
            raise FencedError("another")
        failure = self.log.failures.pop(0) if self.log.failures else ""
        if failure == "lost":
            raise DeliveryError("no answer")
        if failure == "large":
            raise TooLargeError("too large", None, 1_000)
        if failure == "large-known":
            assert singly == 1_000
            raise TooLargeError("too large", [f"cut {message}" for message in messages], 2_000)
        offsets = [self.log.put(key, value) for key, value in entries]
        self.log.messages += messages
        if failure == "silent":
            raise DeliveryError("no answer")
        return offsets

    async def close(self) -> None:
        self.epoch = -1


class Reading:
    def __init__(self, log: Log) -> None:
        self.log = log
        self.starts: list[int] = []

    async def first(self) -> int:
        return self.log.records[0].offset

    async def read(self, start: int, through: int) -> AsyncIterator[list[LogRecord]]:
        self.starts.append(start)
        for record in list(self.log.records):
            if start <= record.offset <= through:
                await asyncio.sleep(0)
                yield [record]

    async def close(self) -> None:
        return


class Count:
    def __init__(self) -> None:
        self.fences: list[str] = []

    def fenced(self, why: str) -> None:
        self.fences.append(why)


@dataclass
class Rig:
    log: Log = field(default_factory=Log)
    member: Callable[[], bool] = lambda: True
    before_membership: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)
    """The answer may be old when it arrives."""
    names: Any = field(default_factory=count)
    readers: list[Reading] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    metrics: Count = field(default_factory=Count)

    def ledger(self, *, transactional: bool = True, group: str = "g") -> Ledger:
        async def is_member() -> bool:
            member = self.member()
            await self.before_membership()
            return member

        def open_reader() -> Reading:
            self.readers.append(Reading(self.log))
            return self.readers[-1]

        name = f"owner-{next(self.names)}"
        return Ledger(
            SOURCE,
            open_writer=lambda: Writing(self.log),
            open_reader=open_reader,
            is_member=is_member,
            owner=name.encode(),
            name=name,
            metrics=self.metrics,
            transactional=transactional,
            group=group,
        )

    async def claim(self, partitions: int = 8, *, transactional: bool = True, group: str = "g") -> tuple[Ledger, Restored]:
        self.pages.clear()

        async def load(pages: list[Page]) -> None:
            self.pages += pages

        made = self.ledger(transactional=transactional, group=group)
        return made, await made.claim(partitions, load)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(ledger, "_FIRST_PAUSE_S", 0.001)
    return Rig()


def work(position: int, replay_from: int | None = None, **more: Any) -> Work:  # noqa: ANN401  fields of Work
    return Work(position, position if replay_from is None else replay_from, **more)


async def test_a_new_partition_holds_nothing(rig: Rig) -> None:
    _, restored = await rig.claim()

    assert restored == Restored()


async def test_the_next_owner_finds_what_was_committed(rig: Rig) -> None:
    first, _ = await rig.claim()
    key = codec.episode_key("cpu")
    episode = codec.encode(key, Episode(10, b"state"))
    gone = codec.forgotten_key(7, 0)
    await first.commit(
        work(
            10,
            4,
            stream_time_ms=99,
            pages=dict([page(0, 10), page(1, 4)]),
            episodes={"cpu": episode},
            forgotten={gone: codec.encode(gone, Forgotten(7, ["old"]))},
        )
    )
    await first.commit(work(12, 4, stream_time_ms=100))

    _, restored = await rig.claim()

    assert restored == Restored(12, 4, 100, {"cpu": Episode(10, b"state")}, {"old": 7}, None, 1)
    assert [(found.number, found.position) for found in rig.pages] == [(0, 10), (1, 4)]


async def test_messages_and_state_become_visible_together_and_positions_are_chained(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(5, messages=["a", "b"]))
    await owner.commit(work(9, messages=["c"]))

    assert rig.log.messages == ["a", "b", "c"]
    assert [(p.sequence, p.previous, p.position) for p in rig.log.positions()] == [(0, -1, 5), (1, 5, 9)]


async def test_a_restore_reads_only_what_it_needs(rig: Rig) -> None:
    owner, _ = await rig.claim()
    for i in range(1, 200):
        await owner.commit(work(i, i, pages=dict([page(i % 3, i)])))

    await rig.claim()

    assert sorted(found.position for found in rig.pages) == [197, 198, 199]


async def test_the_last_position_is_found_however_much_lies_behind_it(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(5))
    for _ in range(500):
        rig.log.put(b"rest of aborted transactions", None)

    _, restored = await rig.claim()

    assert restored.position == 5


async def test_what_was_told_stays_until_pages_know_it(rig: Rig) -> None:
    owner, _ = await rig.claim()
    key, gone = codec.episode_key("cpu"), codec.forgotten_key(7, 0)
    value = codec.encode(key, Episode(10, b"state"))
    await owner.commit(work(10, 3, episodes={"cpu": value}, forgotten={gone: codec.encode(gone, Forgotten(7, ["old"]))}))
    await owner.commit(work(20, 7))
    assert rig.log.live() == {key, gone}
    await owner.commit(work(30, 8))
    assert rig.log.live() == {key}
    await owner.commit(work(40, 10))
    assert rig.log.live() == set()


async def test_series_forgotten_at_the_position_stay_until_their_page_is_written(rig: Rig) -> None:
    """In front of the record at the position: that record is not read yet, so the page that held them may be the oldest thing there is."""
    owner, _ = await rig.claim()
    gone = codec.forgotten_key(10, 0)
    await owner.commit(work(10, 10, forgotten={gone: codec.encode(gone, Forgotten(10, ["old"]))}))
    await owner.commit(work(11, 10))

    assert rig.log.live() == {gone}


async def test_a_page_without_series_leaves_nothing_behind(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10, pages=dict([page(0, 10)])))
    await owner.commit(work(20, pages={codec.page_key(256, 0): None, codec.page_key(256, 1): None}))

    assert rig.log.live() == set()
    assert [record.key for record in rig.log.records].count(codec.page_key(256, 1)) == 0


@pytest.mark.parametrize(
    "failures", [["lost"], ["silent"], ["lost", "lost", "silent"], ["silent", "lost", "lost"], ["lost"] * 8, ["silent", "silent"]]
)
async def test_after_a_doubt_everything_is_there_exactly_once(rig: Rig, failures: list[str]) -> None:
    owner, _ = await rig.claim()
    rig.log.failures += failures
    await owner.commit(work(10, messages=["alert"], pages=dict([page(0, 10)])))
    await owner.commit(work(20, messages=["next"]))

    assert rig.log.messages == ["alert", "next"]
    assert [(p.sequence, p.previous, p.position) for p in rig.log.positions()] == [(0, -1, 10), (1, 10, 20)]
    _, restored = await rig.claim()
    assert restored.position == 20
    assert [found.position for found in rig.pages] == [10]


@pytest.mark.parametrize("failures", [["silent"], ["lost"], []])
async def test_a_changelog_made_anew_under_its_owner_is_noticed_and_nothing_is_written_twice(rig: Rig, failures: list[str]) -> None:
    """The tail behind what is known would be empty, as after a transaction that was lost."""
    owner, _ = await rig.claim()
    for position in range(10, 60, 10):
        await owner.commit(work(position))
    rig.log.records.clear()
    rig.log.failures += failures

    with pytest.raises(StateError, match="changelog was made anew"):
        await owner.commit(work(60, messages=["alert"]))

    assert len(rig.log.messages) <= 1
    _, restored = await rig.claim()
    assert restored.position is None
    assert restored.missing or not rig.log.positions()


async def test_the_one_who_was_replaced_hears_of_it_and_changes_nothing(rig: Rig) -> None:
    first, _ = await rig.claim()
    await first.commit(work(10, messages=["mine"]))
    second, restored = await rig.claim()
    with pytest.raises(LostError):
        await first.commit(work(20, messages=["stale"]))
    with pytest.raises(LostError):  # the first was still a member, so it could fence its successor, once
        await second.commit(work(20, messages=["too late"]))
    third, again = await rig.claim()
    await third.commit(work(20, messages=["good"]))

    assert (restored.position, again.position) == (10, 10)
    assert rig.log.messages == ["mine", "good"]


async def test_one_who_slept_after_a_commit_in_doubt_goes_on_with_nothing(rig: Rig) -> None:
    """What it wrote was committed, and somebody has gone on from there since: it must not go on from there once more."""
    asleep, woken = asyncio.Event(), asyncio.Event()
    first, _ = await rig.claim()
    rig.log.failures.append("silent")

    async def sleep() -> None:
        asleep.set()
        await woken.wait()

    rig.before_membership = sleep
    committing = asyncio.create_task(first.commit(work(10, messages=["mine"])))
    await asleep.wait()
    second, restored = await rig.claim()
    await second.commit(work(20, messages=["good"]))
    woken.set()

    with pytest.raises(LostError):
        await committing
    assert restored.position == 10
    assert rig.log.messages == ["mine", "good"]
    assert [found.position for found in rig.log.positions()] == [10, 20]


async def test_a_zombie_that_is_no_member_any_more_fences_nobody(rig: Rig) -> None:
    first, _ = await rig.claim()
    second, _ = await rig.claim()
    rig.member = lambda: False
    with pytest.raises(LostError):
        await first.commit(work(20, messages=["stale"]))
    await second.commit(work(20, messages=["good"]))

    assert rig.log.messages == ["good"]
    assert rig.metrics.fences == ["claim", "claim"]


async def test_a_log_without_its_beginning_and_without_a_position_has_lost_something(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10))
    del rig.log.records[:-1]
    _, restored = await rig.claim()
    assert (restored.position, restored.missing) == (10, False)
    del rig.log.records[:-1]  # all but the fence

    _, restored = await rig.claim()

    assert (restored.position, restored.missing) == (None, True)


async def test_claims_without_progress_are_counted(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10))
    found = []
    for _ in range(4):
        owner, restored = await rig.claim()
        found.append(restored.claims)
    await owner.commit(work(10))  # a page may have been due: that is no progress
    _, restored = await rig.claim()
    assert (*found, restored.claims) == (1, 2, 3, 4, 5)

    await owner.close()
    owner, _ = await rig.claim()
    await owner.commit(work(11))
    _, restored = await rig.claim()
    assert restored.claims == 1


async def test_owners_that_let_go_alive_are_no_deaths(rig: Rig) -> None:
    """A quiet partition that is handed around is not one that kills."""
    for _ in range(5):
        owner, restored = await rig.claim()
        await owner.commit(work(10, clean=True))

    assert restored.claims == 1


async def test_a_message_that_is_too_large_is_replaced_and_the_rest_goes_with_it(rig: Rig) -> None:
    owner, _ = await rig.claim()
    rig.log.failures += ["large", "", "large-known"]  # the second is the fence
    await owner.commit(work(10, messages=["letter"]))

    assert rig.log.messages == ["cut letter"]


async def test_another_number_of_partitions_is_refused_with_what_to_do(rig: Rig) -> None:
    owner, _ = await rig.claim(partitions=8)
    await owner.commit(work(10))

    with pytest.raises(StateError, match=r"has 16 partitions, its state was written for 8.*state restart -c CONFIG --topic metrics --yes"):
        await rig.claim(partitions=16)


async def test_a_damaged_record_stops_the_claim_and_names_its_place(rig: Rig) -> None:
    owner, _ = await rig.claim()
    key, value = page(0, 10)
    await owner.commit(work(10, pages={key: value[:-1] + b"!"}))

    with pytest.raises(StateError, match=r"state of metrics/3, changelog offset \d+: record S\|256\|0 is damaged"):
        await rig.claim()


async def test_a_page_ahead_of_the_position_stops_the_claim(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10, pages=dict([page(0, 11)])))

    with pytest.raises(StateError, match="ahead of the position"):
        await rig.claim()


async def test_a_chain_that_is_broken_stops_the_claim(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10))
    await owner.commit(work(20))
    other = Position(1, 15, 30, 30, 0, 8, b"other")
    rig.log.put(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, other))

    with pytest.raises(StateError, match="chain of positions is broken"):
        await rig.claim()


async def test_what_was_written_without_transactions_is_no_breach_for_those_who_use_them(rig: Rig) -> None:
    """Two owners overlapped, and the one that died had written a page and not its position."""
    first, _ = await rig.claim(transactional=False)
    await first.commit(work(10))
    await first.commit(work(20))
    fork = Position(1, 10, 25, 25, 0, 8, b"other", plain=True)
    rig.log.put(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, fork))
    rig.log.put(*page(0, 30))

    for position in (27, 29, 30, 31):
        owner, _ = await rig.claim()
        await owner.commit(work(position, 25))
    _, restored = await rig.claim()

    assert restored.position == 31
    assert [found.plain for found in rig.log.positions()] == [True, True, True, True, True, False, False]
    rig.log.put(*page(1, 32))
    with pytest.raises(StateError, match="ahead of the position"):
        await rig.claim()


async def test_positions_say_which_model_scores_from_where_on(rig: Rig) -> None:
    """As long as a replay could meet it; whoever claims the partition is told, in front of the first page."""
    owner, _ = await rig.claim()
    await owner.commit(work(10, 5, models=[(0, "old")], pages=dict([page(0, 10)])))
    await owner.commit(work(20, 5, models=[(12, "new")]))
    await owner.commit(work(30, 12))
    told: list[tuple[tuple[tuple[int, str], ...], int]] = []

    async def load(_: list[Page]) -> None:
        told.append(((), 1))

    async def prepare(restored: Restored) -> None:
        told.append((restored.timeline, 0))

    await rig.ledger().claim(8, load, prepare)

    assert [p.timeline for p in rig.log.positions()] == [((0, "old"),), ((0, "old"), (12, "new")), ((12, "new"),)]
    assert told == [(((12, "new"),), 0), ((), 1)]


async def test_positions_say_which_policy_is_in_force_from_where_on(rig: Rig) -> None:
    """As long as a replay could meet it; whoever claims the partition is told."""
    owner, _ = await rig.claim()
    await owner.commit(work(10, 5, policies=[(0, "a")]))
    await owner.commit(work(20, 5, policies=[(12, "b"), (18, "c")]))
    await owner.commit(work(30, 15))
    _, restored = await rig.claim()
    assert restored.policies == ((12, "b"), (18, "c"))
    owner, _ = await rig.claim()
    await owner.commit(work(40, 40))

    entries = [((0, "a"),), ((0, "a"), (12, "b"), (18, "c")), ((12, "b"), (18, "c")), ((18, "c"),)]
    assert [p.policies for p in rig.log.positions()] == entries


async def test_positions_say_which_correction_is_in_force_from_where_on_and_what_was_counted(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10, 5, control=(1, 2)))
    await owner.commit(work(20, 5, corrections=[(12, 300), (18, -100)], control=(3, 4)))
    await owner.commit(work(30, 15, control=(5, 6)))
    _, restored = await rig.claim()
    assert (restored.corrections, restored.control) == (((12, 300), (18, -100)), (5, 6))
    owner, _ = await rig.claim()
    await owner.commit(work(40, 40))

    assert [p.corrections for p in rig.log.positions()] == [(), ((12, 300), (18, -100)), ((12, 300), (18, -100)), ((18, -100),)]


async def test_policies_of_an_input_that_was_made_anew_are_gone(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10, policies=[(0, "a")]))
    await owner.commit(work(2, policies=[(0, "b")], anew=True))

    assert [p.policies for p in rig.log.positions()] == [((0, "a"),), ((0, "b"),)]


async def test_fences_carry_a_name_for_people(rig: Rig) -> None:
    await rig.claim()

    fence = codec.decode(codec.FENCE_KEY, rig.log.records[0].value or b"")
    assert fence == Fence(b"owner-0", "owner-0", "g")


async def test_who_shares_the_state_from_another_group_is_found(rig: Rig) -> None:
    await rig.claim()
    _, restored = await rig.claim()
    assert restored.strangers == frozenset()
    _, restored = await rig.claim(group="h")
    assert restored.strangers == {"owner-0", "owner-1"}
    owner, restored = await rig.claim()
    await owner.commit(work(10))
    _, restored = await rig.claim()

    assert (restored.position, restored.strangers) == (10, frozenset({"owner-2"}))


async def test_what_was_settled_by_beginning_anew_is_no_damage(rig: Rig) -> None:
    owner, _ = await rig.claim()
    await owner.commit(work(10, models=[(0, "old")]))
    rig.log.put(codec.POSITION_KEY, b"rubbish")
    with pytest.raises(StateError, match="is not anomalyd's"):
        await rig.claim()
    anew = Position(7, 10, 3, 3, 0, 8, b"operator", anew=True)
    rig.log.put(codec.POSITION_KEY, codec.encode(codec.POSITION_KEY, anew))

    owner, restored = await rig.claim()
    await owner.commit(work(2, anew=True, models=[(2, "new")]))

    assert (restored.position, restored.claims) == (3, 1)
    assert rig.log.records[-1].value is not None
    last = codec.decode(codec.POSITION_KEY, rig.log.records[-1].value)
    assert isinstance(last, Position)
    assert last.timeline == ((2, "new"),)
