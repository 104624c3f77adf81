"""What the consumer does when its client misbehaves, with a client in memory that does so on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaConnectionError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)
from aiokafka.structs import OffsetAndMetadata

import anomalyd.kafka.consumer as consumer_module
from anomalyd.batch import Source
from anomalyd.errors import AnomalydError, KafkaRefusedError, LostError, StateError
from anomalyd.kafka import client
from anomalyd.kafka.consumer import STALL_S, Consumer, Recovered
from anomalyd.kafka.positions import BEGUN
from anomalyd.settings import KafkaSettings
from tests.support.poll import until

ZERO, ONE = Source("metrics", 0), Source("metrics", 1)
TP = {ZERO: TopicPartition(*ZERO), ONE: TopicPartition(*ONE)}


class Record(NamedTuple):
    offset: int
    key: bytes | None = None
    value: bytes | None = b"v"
    timestamp: int = 0


class State(SimpleNamespace):
    position: int
    highwater: int | None
    lso: int | None
    paused: bool
    has_valid_position = True


class FakeClient:
    """An AIOKafkaConsumer that gives partitions when told to, and answers getmany() with what a test puts in."""

    made: list["FakeClient"]
    committed_at: dict[TopicPartition, int]
    notes: dict[TopicPartition, str]
    """Metadata of what is committed."""
    away = False

    def __init__(self, **options: object) -> None:
        assert options["enable_auto_commit"] is False
        assert options["auto_offset_reset"] == "none"
        self.answers: list[dict[TopicPartition, list[Record]] | Exception] = []
        self.first, self.end = 0, 1_000
        self.commits: list[dict[TopicPartition, int]] = []
        self.commit_error: Exception | None = None
        self.commits_tried = 0
        self.on_commit: Callable[[], object] = lambda: None
        self.asked: list[int] = []
        self.listener: ConsumerRebalanceListener
        self.stopped = False
        self.states: dict[TopicPartition, State] = {}
        self.on_stop: Callable[[], Any] | None = None
        self._fetcher = SimpleNamespace(_records={})
        self._coordinator = self.coordinator = SimpleNamespace(generation=1, fetch_committed_offsets=self.committed)
        self._client = SimpleNamespace(cluster=SimpleNamespace(unauthorized_topics=set()))
        self._subscription = SimpleNamespace(
            subscription=SimpleNamespace(assignment=SimpleNamespace(state_value=self.states.get)), _fetch_count=0, _last_fetch_ended=0.0
        )
        self.made.append(self)

    async def start(self) -> None:
        if self.away:
            raise KafkaConnectionError("no answer")

    async def stop(self) -> None:
        self.stopped = True
        if self.on_stop is not None:
            await self.on_stop()

    def subscribe(self, topics: Sequence[str], listener: ConsumerRebalanceListener) -> None:
        self.listener = listener

    def assign(self, *sources: Source) -> None:
        self.states.clear()
        self.states.update({TP[source]: State(position=-1, highwater=None, lso=None, paused=False) for source in sources})
        self.listener.on_partitions_assigned({TP[source] for source in sources})

    async def revoke(self) -> None:
        await self.listener.on_partitions_revoked(set(self.states))

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0, 1}

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.states[tp].position = offset

    def pause(self, tp: TopicPartition) -> None:
        self.states[tp].paused = True

    def resume(self, tp: TopicPartition) -> None:
        self.states[tp].paused = False

    async def position(self, tp: TopicPartition) -> int:
        return self.states[tp].position

    async def committed(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        found = {tp: self.committed_at[tp] for tp in partitions if tp in self.committed_at}
        return {tp: OffsetAndMetadata(offset, self.notes.get(tp, "")) for tp, offset in found.items()}

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.first)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    async def commit(self, positions: dict[TopicPartition, int | tuple[int, str]]) -> None:
        self.commits_tried += 1
        if self.commit_error is not None:
            raise self.commit_error
        pairs = {tp: position if isinstance(position, tuple) else (position, "") for tp, position in positions.items()}
        self.commits.append({tp: offset for tp, (offset, _) in pairs.items()})
        self.notes |= {tp: note for tp, (_, note) in pairs.items()}
        self.on_commit()

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[TopicPartition, list[Record]]:
        await asyncio.sleep(0)
        self.asked.append(max_records)
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            for tp in self.states:  # as the client does: what was collected is gone, its positions are not
                self.states[tp].position += 500
            raise answer
        for tp, records in answer.items():
            self.states[tp].position = records[-1].offset + 1
        return answer


class Holder:
    """An owner and metrics that remember."""

    def __init__(self) -> None:
        self.known: dict[Source, Recovered | None] = {ZERO: Recovered(10, 10), ONE: Recovered(20, 20)}
        self.obstacles: dict[Source, list[Exception | asyncio.Event]] = {}
        """What comes in the way of recovering a partition: one thing each time, an event is waited for."""
        self.asked: list[tuple[Source, int]] = []
        """Partitions to recover, and how many their topic had."""
        self.asked_s: list[float] = []
        self.cancelled: list[Source] = []
        self.given: list[set[Source]] = []
        self.taken: list[dict[Source, int]] = []
        self.begun: list[Source] = []
        self.on_take: Callable[[Source], None] | None = None
        self.releases = 0
        self.on_release: Callable[[], Any] | None = None
        self.losses: list[tuple[str, int]] = []
        self.fetch_failures = self.replacements = self.partitions_stopped = 0

    def assigned(self, sources: Collection[Source]) -> None:
        self.given.append(set(sources))

    async def recover(self, source: Source, partitions: int) -> Recovered | None:
        self.asked.append((source, partitions))
        self.asked_s.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        obstacle = self.obstacles[source].pop(0) if self.obstacles.get(source) else None
        if isinstance(obstacle, Exception):
            raise obstacle
        if obstacle is not None:
            try:
                await obstacle.wait()
            except asyncio.CancelledError:
                self.cancelled.append(source)
                raise
        return self.known[source]

    async def release(self) -> None:
        self.releases += 1
        if self.on_release is not None:
            await self.on_release()

    def take(self, positions: dict[Source, int], *, begun: bool = False) -> None:
        self.taken.append(dict(positions))
        self.begun += positions if begun else ()
        if self.on_take is not None:
            for source in positions:
                self.on_take(source)

    def stopped(self, partitions: int) -> None:
        self.partitions_stopped = partitions

    def rebalanced(self, partitions: int) -> None:
        return

    def fetch_failed(self) -> None:
        self.fetch_failures += 1

    def reconnected(self) -> None:
        self.replacements += 1

    def lost(self, reason: str, records: int) -> None:
        self.losses.append((reason, records))


class Rig:
    def __init__(self) -> None:
        self.holder = Holder()
        self.now_s = 1_000.0
        settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", group_id="g", rebalance_timeout_ms=1_000)
        self.consumer = Consumer(settings, {"metrics": "earliest"}, self.holder, clock=lambda: self.now_s)

    @property
    def client(self) -> FakeClient:
        return FakeClient.made[-1]

    async def given(self, *sources: Source) -> None:
        self.client.assign(*sources)
        await until(lambda: self.consumer.ready, "positions")


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    FakeClient.made, FakeClient.committed_at, FakeClient.notes = [], {TP[ZERO]: 10, TP[ONE]: 20}, {}
    monkeypatch.setattr(consumer_module, "AIOKafkaConsumer", FakeClient)
    monkeypatch.setattr(consumer_module, "_READ_AGAIN_S", 0.0)
    made = Rig()
    await made.consumer.start(made.holder)  # type: ignore[arg-type]  # a dict is a mapping
    yield made
    await made.consumer.stop()


async def test_partitions_are_read_from_where_their_state_goes_on_and_not_before(rig: Rig) -> None:
    rig.client.assign(ZERO, ONE)
    assert all(state.paused for state in rig.client.states.values())
    assert not rig.consumer.ready

    await until(lambda: rig.consumer.ready, "positions")

    assert {tp: (state.position, state.paused) for tp, state in rig.client.states.items()} == {TP[ZERO]: (10, False), TP[ONE]: (20, False)}
    assert rig.holder.asked == [(ZERO, 2), (ONE, 2)]
    assert rig.holder.taken == [{ZERO: 10}, {ONE: 20}]


async def test_a_member_without_partitions_is_ready_and_can_let_go_of_what_it_put_aside(rig: Rig) -> None:
    rig.client.assign()

    assert rig.consumer.ready
    assert (rig.holder.given, rig.holder.taken) == ([set()], [])


async def test_a_partition_without_state_goes_on_where_the_group_was(rig: Rig) -> None:
    """So does the first start of this release after an older one, which had no state."""
    rig.holder.known = {ZERO: None}
    FakeClient.committed_at = {TP[ZERO]: 33}

    await rig.given(ZERO)

    assert (rig.client.states[TP[ZERO]].position, rig.holder.taken) == (33, [{ZERO: 33}])


async def test_a_partition_without_state_of_which_we_had_published_a_position_is_handed_over_as_one_that_has_lost_it(rig: Rig) -> None:
    rig.holder.known = {ZERO: None, ONE: Recovered(20, 20)}
    await rig.given(ZERO, ONE)
    assert rig.holder.begun == []
    assert await rig.consumer.publish({ZERO: 33})
    assert rig.client.notes == {TP[ZERO]: BEGUN}
    await rig.client.revoke()

    await rig.given(ZERO, ONE)

    assert rig.holder.begun == [ZERO]


async def test_where_a_new_partition_begins_is_no_sign_of_state(rig: Rig) -> None:
    """It is committed before there is any; an owner that ends then has lost nothing."""
    rig.holder.known, FakeClient.committed_at = {ZERO: None}, {}
    await rig.given(ZERO)

    assert rig.client.commits == [{TP[ZERO]: 0}]
    assert rig.client.notes == {TP[ZERO]: ""}


async def test_what_a_replay_needs_is_read_again_and_what_is_gone_of_it_is_no_loss(rig: Rig) -> None:
    """Everything in front of the position has been told; only records behind it can be lost."""
    rig.holder.known = {ZERO: Recovered(10, 60), ONE: Recovered(20, 40)}
    rig.client.first = 50

    await rig.given(ZERO, ONE)

    assert [rig.client.states[TP[source]].position for source in (ZERO, ONE)] == [50, 50]
    assert rig.holder.losses == [("expired", 10)]


class TestRecovering:
    """Takes as long as it takes; meanwhile the others are read, and the group goes on."""

    async def test_one_slow_partition_holds_up_no_other(self, rig: Rig) -> None:
        rig.holder.obstacles[ZERO] = [restored := asyncio.Event()]
        rig.client.assign(ZERO, ONE)
        await until(lambda: rig.holder.taken, "the other one")
        rig.client.answers.append({TP[ONE]: [Record(20)]})

        (polled,) = await rig.consumer.poll()

        assert (polled.source, polled.next_offset) == (ONE, 21)
        assert rig.client.states[TP[ZERO]].paused
        assert not rig.consumer.ready
        assert rig.consumer.status()["partitions_recovered"] == 1
        restored.set()
        await until(lambda: rig.consumer.ready, "the slow one")
        assert rig.holder.taken == [{ONE: 20}, {ZERO: 10}]

    async def test_a_rebalance_ends_it_and_the_next_assignment_begins_it_again(self, rig: Rig) -> None:
        rig.holder.obstacles[ZERO] = [asyncio.Event()]
        rig.client.assign(ZERO)
        await until(lambda: rig.holder.asked, "the beginning")

        await rig.client.revoke()
        await until(lambda: rig.holder.cancelled, "the end")
        await rig.given(ZERO)

        assert rig.holder.cancelled == [ZERO]
        assert rig.holder.taken == [{ZERO: 10}]

    async def test_what_was_fenced_is_claimed_again_with_growing_pauses(self, rig: Rig) -> None:
        """While the group gives us the partition, somebody who thinks it his will not go on for ever."""
        rig.holder.obstacles[ZERO] = [LostError(), LostError()]

        await rig.given(ZERO)

        first, second, third = rig.holder.asked_s
        assert second - first >= 0.12
        assert third - second >= 0.24
        assert rig.holder.taken == [{ZERO: 10}]

    async def test_a_partition_that_is_lost_again_and_again_is_told_of_once_a_minute(self, rig: Rig) -> None:
        """Two groups that share state take it from each other every second."""
        await rig.given(ZERO, ONE)
        with structlog.testing.capture_logs() as logged:
            for _ in range(181):
                rig.consumer.reclaim(ZERO, lost="taken over by other/host")
                rig.consumer.reclaim(ONE)
                rig.now_s += 1

        told = [(entry["partition"], entry["reason"], entry["times"]) for entry in logged if entry["event"] == "partition_lost"]
        assert told == [(0, "taken over by other/host", times) for times in (1, 60, 60, 60)]

    async def test_what_was_fenced_is_left_to_the_other_when_the_group_takes_it_away(self, rig: Rig) -> None:
        rig.holder.obstacles[ZERO] = [LostError() for _ in range(100)]
        rig.client.assign(ZERO)
        await until(lambda: rig.holder.asked, "an attempt")

        await rig.client.revoke()
        await rig.given(ONE)

        assert rig.holder.taken == [{ONE: 20}]
        assert len(rig.holder.asked) < 5

    async def test_it_is_begun_again_when_the_owner_has_lost_what_it_knew(self, rig: Rig) -> None:
        await rig.given(ZERO, ONE)
        rig.client.answers.append({TP[ZERO]: [Record(10), Record(11)]})
        await rig.consumer.poll()

        rig.consumer.reclaim(ZERO)
        between = (rig.client.states[TP[ZERO]].paused, rig.consumer.ready, dict(rig.consumer.positions()))
        await until(lambda: rig.consumer.ready, "the partition")

        assert between == (True, False, {ONE: 20})
        assert rig.holder.asked == [(ZERO, 2), (ONE, 2), (ZERO, 2)]
        assert rig.client.states[TP[ZERO]].position == 10
        assert not rig.client.states[TP[ZERO]].paused

    async def test_it_can_be_asked_for_while_a_partition_is_being_handed_over(self, rig: Rig) -> None:
        """The topic was made anew: what the owner knows has to be read again, and is asked for from within its own callback."""
        asked_again: list[Source] = []

        def once(source: Source) -> None:
            if not asked_again:
                asked_again.append(source)
                rig.consumer.reclaim(source)

        rig.holder.on_take = once

        await rig.given(ZERO)

        assert rig.holder.asked == [(ZERO, 2), (ZERO, 2)]
        assert rig.holder.taken == [{ZERO: 10}, {ZERO: 10}]
        assert rig.client.states[TP[ZERO]].position == 10
        assert await rig.consumer.poll() == []

    async def test_what_is_not_ours_any_more_is_not_recovered(self, rig: Rig) -> None:
        await rig.given(ZERO)
        await rig.client.revoke()

        rig.consumer.reclaim(ZERO)
        rig.consumer.stop_partition(ZERO, "damaged")
        await rig.given(ONE)
        rig.consumer.reclaim(ZERO)
        rig.consumer.stop_partition(ZERO, "damaged")

        assert rig.holder.taken == [{ZERO: 10}, {ONE: 20}]
        assert rig.consumer.status()["partitions_stopped"] == {}
        assert rig.consumer.ready

    async def test_it_waits_for_metadata_that_comes_later_than_the_assignment(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without them a topic has no partitions, and state that was written for some would be refused."""
        heard: list[set[int] | None] = [None, {0}, {0, 1}]
        monkeypatch.setattr(FakeClient, "partitions_for_topic", lambda *_: heard[0])
        monkeypatch.setattr(client.Backoff, "next_s", lambda _: 0.001)
        rig.client.assign(ONE)
        with structlog.testing.capture_logs() as logged:
            while len(heard) > 1:
                before = len(logged)
                await until(lambda: len(logged) > before, "a line that says so")  # noqa: B023  called at once
                assert rig.holder.asked == []
                heard.pop(0)
            await until(lambda: rig.holder.taken, "the partition")

        assert rig.holder.asked == [(ONE, 2)]
        assert {entry["event"] for entry in logged if entry["log_level"] == "warning"} == {"partitions_unknown"}

    async def test_what_is_lost_while_it_is_handed_over_is_not_claimed_again(self, rig: Rig) -> None:
        """Somebody has it already, and would be fenced by one who lets go of it in a moment."""
        await rig.given(ZERO)

        async def lose() -> None:
            rig.consumer.reclaim(ZERO)
            for _ in range(10):
                await asyncio.sleep(0)

        rig.holder.on_release = lose
        await rig.client.revoke()

        assert rig.holder.asked == [(ZERO, 2)]
        await rig.given(ZERO)
        assert rig.holder.asked == [(ZERO, 2), (ZERO, 2)]

    async def test_a_refusal_ends_the_daemon(self, rig: Rig) -> None:
        rig.holder.obstacles[ZERO] = [KafkaRefusedError("not authorised for transactions")]
        rig.client.assign(ZERO)

        async def poll_on() -> None:
            while True:
                await rig.consumer.poll()

        with pytest.raises(KafkaRefusedError, match="transactions"):
            await asyncio.wait_for(poll_on(), 10)


class TestStoppedPartitions:
    """One that cannot go on: the others do, and an operator sees why."""

    async def test_state_that_cannot_be_used_stops_its_partition_alone(self, rig: Rig) -> None:
        rig.holder.obstacles[ZERO] = [StateError("changelog offset 7: damaged")]
        rig.client.assign(ZERO, ONE)
        await until(lambda: rig.holder.partitions_stopped and rig.holder.taken, "both")
        rig.client.answers.append({TP[ONE]: [Record(20)]})

        (polled,) = await rig.consumer.poll()

        assert polled.source == ONE
        assert rig.client.states[TP[ZERO]].paused
        assert not rig.consumer.ready
        assert rig.consumer.status()["partitions_stopped"] == {"metrics/0": "changelog offset 7: damaged"}
        assert rig.holder.partitions_stopped == 1

    async def test_what_was_read_of_one_that_stops_later_is_not_handed_out(self, rig: Rig) -> None:
        await rig.given(ZERO, ONE)
        rig.client.answers.append({TP[ZERO]: [Record(10)], TP[ONE]: [Record(20)]})

        rig.consumer.stop_partition(ZERO, "another group writes here, too")
        polled = await rig.consumer.poll()

        assert [part.source for part in polled] == [ONE]
        assert rig.consumer.positions() == {ONE: 21}

    async def test_it_stays_stopped_when_the_intake_is_resumed(self, rig: Rig) -> None:
        await rig.given(ZERO, ONE)
        rig.consumer.stop_partition(ZERO, "damaged")

        rig.consumer.hold()
        rig.consumer.resume()

        assert [rig.client.states[TP[source]].paused for source in (ZERO, ONE)] == [True, False]

    async def test_the_next_assignment_tries_it_again(self, rig: Rig) -> None:
        """Somebody may have repaired it; then nothing says any more that it is stopped."""
        rig.holder.obstacles[ZERO] = [StateError("damaged")]
        rig.client.assign(ZERO)
        await until(lambda: rig.holder.partitions_stopped, "the stop")

        await rig.client.revoke()
        await rig.given(ZERO)

        assert rig.holder.taken == [{ZERO: 10}]
        assert rig.consumer.status()["partitions_stopped"] == {}
        assert rig.holder.partitions_stopped == 0


async def test_a_failed_read_loses_nothing_of_any_partition(rig: Rig) -> None:
    """The client drops what it had collected from other partitions, and its positions have moved past it."""
    await rig.given(ZERO, ONE)
    rig.client.answers += [{TP[ZERO]: [Record(10), Record(11)]}, CorruptRecordException("Invalid CRC")]

    (first,) = await rig.consumer.poll()
    assert await rig.consumer.poll() == []

    assert (first.source, first.next_offset) == (ZERO, 12)
    assert [rig.client.states[TP[source]].position for source in (ZERO, ONE)] == [12, 20]
    assert rig.holder.fetch_failures == 1


@pytest.mark.parametrize("interrupted", [False, True])
@pytest.mark.parametrize("error", [CorruptRecordException(), KafkaError("gone"), GroupAuthorizationFailedError("g")])
async def test_positions_never_lie_behind_records_that_a_failed_read_dropped(rig: Rig, error: KafkaError, interrupted: bool) -> None:
    """A checkpoint asks for them at any time, also while the daemon ends; what it commits is not read again."""
    await rig.given(ZERO)
    rig.client.answers.append(error)
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append(rig.consumer.positions().get(ZERO, 10))
            await asyncio.sleep(0)

    watching, polling = asyncio.create_task(watch()), asyncio.create_task(rig.consumer.poll())
    await asyncio.sleep(0)
    if interrupted:
        rig.consumer.interrupt()
    await asyncio.wait({polling})
    seen.append(rig.consumer.positions().get(ZERO, 10))
    watching.cancel()
    await asyncio.wait({watching})

    assert isinstance(polling.exception(), KafkaRefusedError) == isinstance(error, GroupAuthorizationFailedError)
    assert set(seen) == {10}


async def test_after_a_bad_batch_records_come_one_by_one_for_a_while(rig: Rig) -> None:
    """So that the good ones in front of it come out before the client stumbles over it again."""
    await rig.given(ZERO)
    rig.client.answers += [CorruptRecordException(), {TP[ZERO]: [Record(10)]}]

    await rig.consumer.poll()
    await rig.consumer.poll()
    rig.now_s += 60
    await rig.consumer.poll()

    assert rig.client.asked == [20_000, 1, 20_000]


async def test_a_batch_that_stays_bad_is_passed_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def behind(_: object, source: Source, position: int) -> int:
        return position + 100 if source == ZERO else position

    monkeypatch.setattr(consumer_module, "first_readable", behind)
    await rig.given(ZERO, ONE)
    rig.client.answers += [CorruptRecordException() for _ in range(4)]

    for _ in range(4):
        await rig.consumer.poll()

    assert rig.holder.losses == [("corrupt", 100)]
    assert [rig.client.states[TP[source]].position for source in (ZERO, ONE)] == [110, 20]
    assert rig.holder.taken[-1] == {ZERO: 110}


async def test_expired_records_are_counted_and_reading_goes_on_at_the_earliest(rig: Rig) -> None:
    await rig.given(ZERO, ONE)
    rig.client.first = 300
    rig.client.answers.append(OffsetOutOfRangeError({TP[ZERO]: 10}))

    await rig.consumer.poll()
    await until(lambda: rig.consumer.ready, "the new position")

    assert rig.holder.losses == [("expired", 290)]
    assert rig.client.states[TP[ZERO]].position == 300
    assert rig.client.states[TP[ONE]].position == 20
    assert rig.holder.asked == [(ZERO, 2), (ONE, 2)]  # what the owner has learned goes on


async def test_records_can_expire_under_a_slow_reader_again_and_again(rig: Rig) -> None:
    await rig.given(ZERO)
    for first in (300, 450):
        rig.client.first = first
        rig.client.answers.append(OffsetOutOfRangeError({TP[ZERO]: rig.client.states[TP[ZERO]].position}))
        await rig.consumer.poll()
        await until(lambda: rig.consumer.ready, "the new position")

    assert rig.holder.losses == [("expired", 290), ("expired", 150)]
    assert rig.holder.taken == [{ZERO: 10}, {ZERO: 300}, {ZERO: 450}]
    assert not rig.client.states[TP[ZERO]].paused


async def test_a_partition_that_is_looked_for_already_is_not_looked_for_twice(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client raises the same again until it is told where to go on."""
    await rig.given(ZERO)
    rig.client.answers += [OffsetOutOfRangeError({TP[ZERO]: 10}) for _ in range(3)]
    answer = asyncio.Event()

    async def slow(partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await answer.wait()
        return dict.fromkeys(partitions, 300)

    monkeypatch.setattr(rig.client, "beginning_offsets", slow)
    for _ in range(3):
        await rig.consumer.poll()
    answer.set()
    await until(lambda: rig.consumer.ready, "the new position")

    assert rig.holder.losses == [("expired", 290)]
    assert rig.holder.taken == [{ZERO: 10}, {ZERO: 300}]


async def test_a_record_that_an_old_broker_cannot_send_is_passed_over(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.client.answers.append(RecordTooLargeError("too large: %s=%s", TP[ZERO], 10, 1_024))

    await rig.consumer.poll()

    assert rig.holder.losses == [("too-large", 1)]
    assert rig.client.states[TP[ZERO]].position == 11


async def test_a_missing_position_before_our_own_seek_is_no_failure(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.client.answers.append(NoOffsetForPartitionError(TP[ZERO]))

    assert await rig.consumer.poll() == []
    assert rig.holder.replacements == 0


async def test_a_client_that_fails_otherwise_is_replaced_after_the_work_was_saved(rig: Rig) -> None:
    await rig.given(ZERO)
    broken = rig.client
    broken.answers.append(KafkaError("Unexpected error during data retrieval"))

    await rig.consumer.poll()
    await rig.given(ZERO)

    assert broken.stopped
    assert rig.client is not broken
    assert (rig.holder.releases, rig.holder.replacements) == (1, 1)


async def test_a_refusal_ends_the_daemon(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.client.answers.append(GroupAuthorizationFailedError("g"))

    with pytest.raises(KafkaRefusedError, match="not allowed: Read on group g"):
        await rig.consumer.poll()


async def test_a_client_that_went_to_sleep_is_replaced(rig: Rig) -> None:
    """The log has records that we have not, none arrives for a minute, and nothing is raised."""
    await rig.given(ZERO)
    sleeping = rig.client

    for _ in range(4):
        await rig.consumer.poll()
        rig.now_s += STALL_S / 2
        await rig.consumer.probe()
    await rig.consumer.poll()

    assert sleeping.stopped
    assert rig.holder.replacements == 1


async def test_a_client_that_nobody_asks_for_records_is_kept(rig: Rig) -> None:
    """Workers may take longer for a batch than a client that went to sleep is given."""
    await rig.given(ZERO)

    for _ in range(4):
        rig.now_s += STALL_S
        await rig.consumer.probe()
    await rig.consumer.poll()

    assert rig.holder.replacements == 0


async def test_an_idle_partition_is_no_reason_to_replace_the_client(rig: Rig) -> None:
    rig.holder.known = {ZERO: Recovered(1_000, 1_000)}
    await rig.given(ZERO)

    for _ in range(10):
        rig.now_s += STALL_S
        await rig.consumer.probe()
        await rig.consumer.poll()

    assert rig.holder.replacements == 0


async def probed_without_answer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: object) -> dict[TopicPartition, int]:
        raise KafkaError("no answer")

    rig.now_s += 10
    with monkeypatch.context() as patched:
        patched.setattr(rig.client, "end_offsets", away)
        await rig.consumer.probe()
    assert not rig.consumer.ready


async def test_brokers_that_go_away_and_come_back_show_in_readiness(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.given(ZERO)
    await probed_without_answer(rig, monkeypatch)

    rig.now_s += 10
    await rig.consumer.probe()

    assert rig.consumer.ready


async def test_records_show_that_brokers_are_back_and_their_absence_does_not(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.given(ZERO)
    await probed_without_answer(rig, monkeypatch)

    await rig.consumer.poll()
    assert not rig.consumer.ready
    rig.client.answers.append({TP[ZERO]: [Record(10)]})
    await rig.consumer.poll()

    assert rig.consumer.ready


async def test_a_rebalance_hands_over_before_it_lets_go(rig: Rig) -> None:
    await rig.given(ZERO)
    seen: list[dict[Source, int]] = []

    async def look() -> None:
        assert await rig.consumer.publish({ZERO: 15})
        seen.append(rig.consumer.positions())

    rig.holder.on_release = look
    await rig.client.revoke()

    assert seen == [{ZERO: 10}]
    assert rig.client.commits == [{TP[ZERO]: 15}]
    assert rig.consumer.positions() == {}


@pytest.mark.parametrize("instance", ["pod-0", None])
async def test_who_was_put_out_by_one_of_the_same_name_says_so(rig: Rig, instance: str | None) -> None:
    """The coordinator takes turns between them, and each sees nothing but rebalances."""
    settings = KafkaSettings(bootstrap_servers="127.0.0.1:1", group_id="g", group_instance_id=instance)
    consumer = Consumer(settings, {"metrics": "earliest"}, rig.holder)
    await consumer.start(rig.holder)  # type: ignore[arg-type]  # a dict is a mapping
    told = []
    for generation in (2, -1):
        rig.client.assign(ZERO)
        rig.client.coordinator.generation = generation
        with structlog.testing.capture_logs() as logged:
            await rig.client.revoke()
        told.append([entry["group_instance_id"] for entry in logged if entry["event"] == "membership_lost"])
    await consumer.stop()

    assert told == [[], [instance] if instance else []]


async def test_a_handover_that_takes_too_long_is_given_up(rig: Rig) -> None:
    """The other members of the group wait for us, and would put us out."""
    await rig.given(ZERO)
    rig.holder.on_release = lambda: asyncio.sleep(60)

    await asyncio.wait_for(rig.client.revoke(), 10)

    assert rig.consumer.positions() == {}


async def test_an_exception_in_a_callback_is_raised_where_it_is_heard(rig: Rig) -> None:
    """The client would log and forget it."""
    await rig.given(ZERO)

    async def broken() -> None:
        raise ZeroDivisionError

    rig.holder.on_release = broken
    await rig.client.revoke()

    with pytest.raises(ZeroDivisionError):
        await rig.consumer.poll()


async def test_what_an_older_assignment_finds_out_is_void(rig: Rig) -> None:
    rig.client.assign(ZERO)
    await rig.client.revoke()
    await rig.given(ONE)

    assert rig.holder.taken == [{ONE: 20}]


async def test_a_held_intake_stays_held_through_a_rebalance(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.consumer.hold()
    await rig.client.revoke()
    await rig.given(ONE)
    held = rig.client.states[TP[ONE]].paused
    rig.consumer.resume()

    assert (held, rig.client.states[TP[ONE]].paused) == (True, False)


class TestPublishing:
    """The group's positions tell others how far we are, and us whether we are still a member. Nothing else depends on them."""

    async def test_positions_of_partitions_that_are_gone_are_passed_over(self, rig: Rig) -> None:
        await rig.given(ZERO)

        assert await rig.consumer.publish({ZERO: 11, ONE: 99})
        assert not await rig.consumer.publish({ONE: 99})
        assert rig.client.commits == [{TP[ZERO]: 11}]

    @pytest.mark.parametrize("error", [CommitFailedError(), IllegalStateError(), KafkaError("timed out")])
    async def test_what_is_not_taken_does_no_harm(self, rig: Rig, error: KafkaError) -> None:
        await rig.given(ZERO)
        rig.client.commit_error = error

        assert not await rig.consumer.publish({ZERO: 12})
        assert await rig.consumer.poll() == []
        rig.client.commit_error = None
        assert await rig.consumer.publish({ZERO: 12})

    async def test_a_member_is_who_the_coordinator_takes_a_position_from(self, rig: Rig) -> None:
        """A process that slept through its session still has its partitions, in its own mind."""
        await rig.given(ZERO)

        assert await rig.consumer.is_member(ZERO, 15)
        rig.client.commit_error = CommitFailedError()
        assert not await rig.consumer.is_member(ZERO, 15)
        assert rig.client.commits == [{TP[ZERO]: 15}]

    async def test_who_was_thrown_out_is_no_member_though_an_empty_group_takes_positions_from_anybody(self, rig: Rig) -> None:
        await rig.given(ZERO)
        rig.client.coordinator.generation = -1

        assert not await rig.consumer.is_member(ZERO, 15)
        assert rig.client.commits == []

    async def test_an_answer_to_one_who_was_thrown_out_meanwhile_is_none(self, rig: Rig) -> None:
        await rig.given(ZERO)
        rig.client.on_commit = lambda: setattr(rig.client.coordinator, "generation", -1)

        assert not await rig.consumer.is_member(ZERO, 15)
        assert rig.client.commits == [{TP[ZERO]: 15}]

    async def test_without_a_position_to_ask_with_what_was_heard_last_counts(self, rig: Rig) -> None:
        await rig.given(ZERO)
        rig.client.commit_error = CommitFailedError()

        assert await rig.consumer.is_member(ZERO, None)
        assert not await rig.consumer.is_member(ONE, None)
        assert not await rig.consumer.is_member(ONE, 5)
        await rig.client.revoke()
        assert not await rig.consumer.is_member(ZERO, None)

    async def test_a_coordinator_that_does_not_answer_has_not_said_no(self, rig: Rig) -> None:
        """Else an outage of some seconds would have every instance restore all it has."""
        await rig.given(ZERO)
        rig.client.commit_error = KafkaConnectionError("no answer")
        asking = asyncio.create_task(rig.consumer.is_member(ZERO, 15))
        await until(lambda: rig.client.commits_tried > 1, "another attempt")
        assert not asking.done()
        rig.client.commit_error = None

        assert await asyncio.wait_for(asking, 10)

    async def test_nobody_waits_for_that_answer_once_the_partition_is_gone(self, rig: Rig) -> None:
        await rig.given(ZERO)
        rig.client.commit_error = KafkaConnectionError("no answer")
        asking = asyncio.create_task(rig.consumer.is_member(ZERO, 15))
        await until(lambda: rig.client.commits_tried > 0, "an attempt")

        await rig.client.revoke()

        assert not await asyncio.wait_for(asking, 10)


async def test_ends_are_known_from_the_start_and_follow_what_can_be_had(rig: Rig) -> None:
    await rig.given(ZERO)
    assert rig.consumer.ends() == {ZERO: 1_000}

    rig.client.states[TP[ZERO]].highwater = 1_200
    assert rig.consumer.ends() == {ZERO: 1_200}
    rig.client.states[TP[ZERO]].lso = 1_150  # an open transaction
    rig.client.states[TP[ZERO]].highwater = 1_300

    assert rig.consumer.ends() == {ZERO: 1_200}


async def test_an_interrupt_ends_a_replacement_while_brokers_are_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM has to be obeyed, however long the brokers stay away."""
    await rig.given(ZERO)
    rig.client.answers.append(KafkaError("gone"))
    monkeypatch.setattr(FakeClient, "away", True)
    polling = asyncio.create_task(rig.consumer.poll())
    await until(lambda: len(FakeClient.made) > 1, "an attempt to connect")

    rig.consumer.interrupt()

    async with asyncio.timeout(2):
        assert await polling == []
        assert await rig.consumer.poll() == []
    rig.consumer.hold()
    await rig.consumer.probe()


async def test_an_interrupt_does_not_wait_for_a_handover(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.client.answers.append(KafkaError("gone"))
    rig.holder.on_release = lambda: asyncio.sleep(60)
    polling = asyncio.create_task(rig.consumer.poll())
    await until(lambda: rig.holder.releases > 0, "the handover")

    rig.consumer.interrupt()

    async with asyncio.timeout(0.4):
        assert await polling == []


async def test_a_replaced_client_that_still_joins_the_group_is_not_listened_to(rig: Rig) -> None:
    """stop() of a client lets a rebalance finish first, and calls us for it."""
    await rig.given(ZERO)
    old = rig.client

    async def join() -> None:
        await old.revoke()
        old.assign(ONE)

    old.on_stop = join
    old.answers.append(KafkaError("gone"))

    await rig.consumer.poll()
    await rig.given(ZERO)

    assert rig.holder.taken == [{ZERO: 10}, {ZERO: 10}]
    assert rig.holder.releases == 1
    assert await rig.consumer.poll() == []


async def test_a_rebalance_during_a_replacement_releases_once(rig: Rig) -> None:
    """A second release would find nothing and put aside nothing, in place of the state that the first one did."""
    await rig.given(ZERO)
    old = rig.client
    rebalances: list[asyncio.Task[None]] = []

    async def rebalance() -> None:
        rebalances.append(asyncio.create_task(old.revoke()))
        await asyncio.sleep(0)

    rig.holder.on_release = rebalance
    old.answers.append(KafkaError("gone"))

    await rig.consumer.poll()
    await asyncio.gather(*rebalances)

    assert rig.holder.releases == 1


async def test_two_rebalances_in_a_row_release_once_each(rig: Rig) -> None:
    """What the owner put aside at the first it may get back after the second."""
    await rig.given(ZERO)
    await rig.client.revoke()
    rig.client.assign(ZERO)
    await rig.client.revoke()
    await rig.client.revoke()  # nothing was given in between

    assert rig.holder.releases == 2


async def test_an_unexpected_fault_while_looking_for_positions_ends_the_daemon(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a task it would go unheard, and the partitions never be read."""

    async def broken(_: object) -> dict[TopicPartition, int]:
        raise ZeroDivisionError

    async def poll_on() -> None:
        while True:
            await rig.consumer.poll()

    monkeypatch.setattr(rig.client, "end_offsets", broken)
    rig.client.assign(ZERO)

    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(poll_on(), 10)


async def test_a_failure_is_not_forgotten_over_one_that_may_pass(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.given(ZERO)
    with rig.consumer.failing_loudly():
        raise ZeroDivisionError
    tried = asyncio.Event()

    async def away(_: object) -> dict[TopicPartition, int]:
        tried.set()
        raise KafkaError("no answer")

    monkeypatch.setattr(rig.client, "end_offsets", away)
    rig.client.assign(ONE)
    await asyncio.wait_for(tried.wait(), 10)

    with pytest.raises(ZeroDivisionError):
        await rig.consumer.poll()


async def test_a_client_that_is_not_as_we_know_it_is_disconnected(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(_: object) -> None:
        raise AnomalydError("not this one")

    monkeypatch.setattr(consumer_module, "verify", unknown)
    consumer = Consumer(KafkaSettings(bootstrap_servers="127.0.0.1:1"), {"metrics": "earliest"}, rig.holder)

    with pytest.raises(AnomalydError):
        await consumer.start(rig.holder)  # type: ignore[arg-type]  # a dict is a mapping

    assert rig.client.stopped
