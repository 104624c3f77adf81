"""Bugs that a protocol like ours is likely to have, put into the real code: the simulation must notice each."""

import asyncio
import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final
from unittest import mock

from aiokafka.structs import TopicPartition

from anomalyd.alerts.budget import Control
from anomalyd.alerts.budget import Entry as Correction
from anomalyd.alerts.timeline import Timeline
from anomalyd.batch import Entry
from anomalyd.detector import Detector
from anomalyd.errors import DeliveryError
from anomalyd.kafka import consumer as consumer_module
from anomalyd.kafka.transactions import TransactionalWriter, _settled
from anomalyd.partition import Partition
from anomalyd.pipeline import Pipeline
from anomalyd.settings import Settings
from anomalyd.shard_models import Models
from anomalyd.state.ledger import Ledger, Load, Prepare
from anomalyd.state.ports import Restored
from tests.simulation.world import CHANGELOG, INPUT, Mutation, Simulation


@contextlib.contextmanager
def commit_before_futures(_: Simulation) -> Iterator[None]:
    """The transaction is committed without a look at whether everything in it was written: the commit succeeds all the same."""

    async def write(
        self: TransactionalWriter, producer: Any, messages: Sequence[Any], entries: Sequence[Entry], *, singly: int
    ) -> list[int]:
        assert self._watch is not None
        self._watch.begin()
        await producer.begin_transaction()
        futures = await self._send_messages(producer, messages)
        count = len(futures)
        futures += await self._send_entries(producer, entries)
        await producer.commit_transaction()
        sent = await _settled(futures)
        if (doubt := self._watch.doubt()) is not None:
            raise DeliveryError(doubt)
        return [result.offset for result in sent[count:]]

    with mock.patch.object(TransactionalWriter, "_write", write):
        yield


@contextlib.contextmanager
def page_ahead_of_position(_: Simulation) -> Iterator[None]:
    """Pages as they are now travel with a position of some records ago."""
    account = Partition.account

    def late(self: Partition) -> None:
        account(self)
        work = self.parcel.work
        if work.pages:
            work.position = max(self.ledger.position or 0, work.position - 2)
            work.replay_from = min(work.replay_from, work.position)

    with mock.patch.object(Partition, "account", late):
        yield


@contextlib.contextmanager
def no_fence(_: Simulation) -> Iterator[None]:
    """Every producer has an id of its own, so nobody is ever fenced."""
    shared = Settings.transactional_id

    def own(self: Settings, source: tuple[str, int]) -> str:
        return f"{shared(self, source)}.{os.urandom(4).hex()}"

    with mock.patch.object(Settings, "transactional_id", own):
        yield


@contextlib.contextmanager
def group_offsets_as_position(world: Simulation) -> Iterator[None]:
    """Reading goes on from the offset that the group committed."""
    claim = Ledger.claim

    async def from_group(self: Ledger, partitions: int, load: Load, prepare: Prepare | None = None) -> Restored:
        restored = await claim(self, partitions, load, prepare)
        committed = world.broker.group(world.settings.kafka.group_id).offsets.get(TopicPartition(INPUT, self.source.partition))
        if restored.position is not None and committed is not None:
            restored.position = committed
            restored.replay_from = min(restored.replay_from, committed)
        return restored

    with mock.patch.object(Ledger, "claim", from_group):
        yield


@contextlib.contextmanager
def restore_to_high_water(world: Simulation) -> Iterator[None]:
    """What is read back ends where the changelog ended when the partition was taken over, and not at a fence."""
    open_, restore = Ledger._open, Ledger._restore
    ends: dict[int, int] = {}

    async def look(self: Ledger, why: str) -> int:
        # A consumer asks for the end and positions itself, and only then does the producer say who it is.
        ends[id(self)] = world.broker.log(TopicPartition(CHANGELOG, self.source.partition)).lso
        await asyncio.sleep(0.05)
        return await open_(self, why)

    async def until_there(self: Ledger, fence: int, load: Load, prepare: Prepare | None) -> Restored:
        restored = await restore(self, min(fence, max(0, ends[id(self)] - 1)), load, prepare)
        self._known = fence
        return restored

    with mock.patch.object(Ledger, "_open", look), mock.patch.object(Ledger, "_restore", until_there):
        yield


@contextlib.contextmanager
def restore_in_callback(_: Simulation) -> Iterator[None]:
    """Partitions are restored while the client waits for the callback that assigned them, and sends no heartbeat; nothing is kept."""
    listener, assigned_ = consumer_module._Listener, Pipeline.assigned

    def forget(self: Pipeline, sources: Any) -> None:
        assigned_(self, ())
        assigned_(self, sources)

    async def wait(self: Any, assigned: Any) -> None:
        with self._consumer.failing_loudly():
            self._consumer.on_assigned(self._of, assigned)
        await asyncio.gather(*self._consumer._locating.values(), return_exceptions=True)

    with mock.patch.object(listener, "on_partitions_assigned", wait), mock.patch.object(Pipeline, "assigned", forget):
        yield


@contextlib.contextmanager
def replay_by_present_policy(_: Simulation) -> Iterator[None]:
    """A replay judges by the policy that its instance has now."""
    with mock.patch.object(Timeline, "begin", return_value=None):
        yield


@contextlib.contextmanager
def replay_by_present_correction(_: Simulation) -> Iterator[None]:
    """A replay judges by the threshold that was in force at the position."""
    begin = Control.begin

    def at_once(self: Control, state: Sequence[int], entries: Sequence[Correction], offset: int) -> None:
        begin(self, state, [(offset, entries[-1][1])] if entries else (), offset)

    with mock.patch.object(Control, "begin", at_once):
        yield


@contextlib.contextmanager
def replay_with_newest_model(_: Simulation) -> Iterator[None]:
    """A replay scores with the model that scored last, and what was written down is made its own at once."""
    begin = Models.begin

    def at_once(self: Models, restored: Restored) -> list[Detector]:
        return begin(self, replace(restored, timeline=restored.timeline[-1:]))

    with mock.patch.object(Models, "begin", at_once):
        yield


MUTATIONS: Final[dict[str, Mutation]] = {
    mutation.__name__: mutation
    for mutation in (
        commit_before_futures,
        page_ahead_of_position,
        no_fence,
        group_offsets_as_position,
        restore_to_high_water,
        restore_in_callback,
        replay_by_present_policy,
        replay_by_present_correction,
        replay_with_newest_model,
    )
}
"""By name."""
