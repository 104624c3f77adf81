"""What the consumer does when its client misbehaves, with a client in memory that does so on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
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

import anomalyd.kafka.consumer as consumer_module
from anomalyd.batch import Source
from anomalyd.errors import AnomalydError, DeliveryError, KafkaRefusedError
from anomalyd.kafka.consumer import STALL_S, Consumer
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
    away = False

    def __init__(self, **options: object) -> None:
        assert options["enable_auto_commit"] is False
        assert options["auto_offset_reset"] == "none"
        self.answers: list[dict[TopicPartition, list[Record]] | Exception] = []
        self.first, self.end = 0, 1_000
        self.commits: list[dict[TopicPartition, int]] = []
        self.commit_error: Exception | None = None
        self.asked: list[int] = []
        self.listener: ConsumerRebalanceListener
        self.stopped = False
        self.states: dict[TopicPartition, State] = {}
        self.on_stop: Callable[[], Any] | None = None
        self._fetcher = SimpleNamespace(_records={})
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

    async def committed(self, tp: TopicPartition) -> int | None:
        return self.committed_at.get(tp)

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.first)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    async def commit(self, positions: dict[TopicPartition, int]) -> None:
        if self.commit_error is not None:
            raise self.commit_error
        self.commits.append(positions)

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
        self.taken: list[dict[Source, int]] = []
        self.releases = 0
        self.on_release: Callable[[], Any] | None = None
        self.losses: list[tuple[str, int]] = []
        self.fetch_failures = self.replacements = 0

    async def release(self) -> None:
        self.releases += 1
        if self.on_release is not None:
            await self.on_release()

    def take(self, positions: dict[Source, int]) -> None:
        self.taken.append(dict(positions))

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
    FakeClient.made, FakeClient.committed_at = [], {TP[ZERO]: 10, TP[ONE]: 20}
    monkeypatch.setattr(consumer_module, "AIOKafkaConsumer", FakeClient)
    monkeypatch.setattr(consumer_module, "_READ_AGAIN_S", 0.0)
    made = Rig()
    await made.consumer.start(made.holder)  # type: ignore[arg-type]  # a dict is a mapping
    yield made
    await made.consumer.stop()


async def test_partitions_are_read_from_their_committed_positions_and_not_before(rig: Rig) -> None:
    rig.client.assign(ZERO, ONE)
    assert all(state.paused for state in rig.client.states.values())
    assert not rig.consumer.ready

    await until(lambda: rig.consumer.ready, "positions")

    assert {tp: (state.position, state.paused) for tp, state in rig.client.states.items()} == {TP[ZERO]: (10, False), TP[ONE]: (20, False)}
    assert rig.holder.taken == [{ZERO: 10, ONE: 20}]


async def test_a_member_without_partitions_is_ready(rig: Rig) -> None:
    rig.client.assign()

    assert rig.consumer.ready
    assert rig.holder.taken == [{}]


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

    with pytest.raises(KafkaRefusedError, match="allow Read on group g"):
        await rig.consumer.poll()


async def test_a_client_that_went_to_sleep_is_replaced(rig: Rig) -> None:
    """The log has records that we have not, none arrives for a minute, and nothing is raised."""
    await rig.given(ZERO)
    sleeping = rig.client

    for _ in range(3):
        rig.now_s += STALL_S / 2
        await rig.consumer.probe()
    await rig.consumer.poll()

    assert sleeping.stopped
    assert rig.holder.replacements == 1


async def test_an_idle_partition_is_no_reason_to_replace_the_client(rig: Rig) -> None:
    FakeClient.committed_at = {TP[ZERO]: 1_000}
    await rig.given(ZERO)

    for _ in range(10):
        rig.now_s += STALL_S
        await rig.consumer.probe()
        await rig.consumer.poll()

    assert rig.holder.replacements == 0


async def test_brokers_that_go_away_and_come_back_show_in_readiness(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    await rig.given(ZERO)

    async def away(_: object) -> dict[TopicPartition, int]:
        raise KafkaError("no answer")

    rig.now_s += 10
    with monkeypatch.context() as patched:
        patched.setattr(rig.client, "end_offsets", away)
        await rig.consumer.probe()
    assert not rig.consumer.ready
    rig.now_s += 10
    await rig.consumer.probe()

    assert rig.consumer.ready


async def test_a_rebalance_hands_over_before_it_lets_go(rig: Rig) -> None:
    await rig.given(ZERO)
    seen: list[dict[Source, int]] = []

    async def look() -> None:
        await rig.consumer.commit({ZERO: 15})
        seen.append(rig.consumer.positions())

    rig.holder.on_release = look
    await rig.client.revoke()

    assert seen == [{ZERO: 10}]
    assert rig.client.commits == [{TP[ZERO]: 15}]
    assert rig.consumer.positions() == {}


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


async def test_commits_of_partitions_that_are_gone_are_passed_over(rig: Rig) -> None:
    await rig.given(ZERO)

    await rig.consumer.commit({ZERO: 11, ONE: 99})

    assert rig.client.commits == [{TP[ZERO]: 11}]


@pytest.mark.parametrize("error", [CommitFailedError(), IllegalStateError()])
async def test_a_commit_that_the_group_refuses_is_repeated_while_the_partitions_are_ours(rig: Rig, error: Exception) -> None:
    await rig.given(ZERO)
    rig.client.commit_error = error
    with pytest.raises(DeliveryError):
        await rig.consumer.commit({ZERO: 12})
    rig.client.commit_error = None

    await rig.consumer.commit({ZERO: 12})

    assert rig.client.commits == [{TP[ZERO]: 12}]


async def test_a_commit_that_the_group_refuses_in_a_handover_is_given_up(rig: Rig) -> None:
    """The group went on without us; repeating it would only hold up the rebalance."""
    await rig.given(ZERO)
    rig.client.commit_error = CommitFailedError()
    rig.holder.on_release = lambda: rig.consumer.commit({ZERO: 12})

    await rig.client.revoke()

    assert await rig.consumer.poll() == []


async def test_a_commit_that_may_not_have_happened_can_be_repeated(rig: Rig) -> None:
    await rig.given(ZERO)
    rig.client.commit_error = KafkaError("timed out")

    with pytest.raises(DeliveryError):
        await rig.consumer.commit({ZERO: 11})


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


async def test_a_rebalance_before_positions_are_known_releases_nothing(rig: Rig) -> None:
    """What the owner put aside at the release before it may get back next."""
    rig.client.assign(ZERO)
    await rig.client.revoke()

    assert rig.holder.releases == 0


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
