"""Records of whole topics for those who only learn from them: every partition, from given positions, in no hurry."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata

from anomalyd.batch import Record, Source
from anomalyd.errors import TopicError
from anomalyd.kafka import client
from anomalyd.kafka.past import missing, offsets_since, partitions_of, unanswered
from anomalyd.kafka.salvage import UNREADABLE, first_readable
from anomalyd.settings import KafkaSettings

_DEADLINE_S: Final = 60.0
_POLL_MS: Final = 250
_MOST_RECORDS: Final = 5_000
_LOOK_EVERY_S: Final = 5.0
_LOOK_DEADLINE_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Taken(NamedTuple):
    """Records of one partition, in order."""

    source: Source
    records: Sequence[Record]


class Intake:
    """Reads all partitions of some topics, committed records only. Errors close the connection; the next call opens it again.

    Args:
        settings: how to reach Kafka.
        topics: they have to exist.
        ours: whether anomalyd makes them.
        group: whose offsets are committed, so that its lag can be seen; it assigns nothing. None: no group.
        since_ms: partitions without a position begin at the first record produced then; None: at the beginning of their log.
    """

    def __init__(
        self, settings: KafkaSettings, topics: Sequence[str], group: str | None, since_ms: int | None = None, *, ours: bool = False
    ) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._group = group
        self._since_ms = since_ms
        self._ours = ours
        self._client: AIOKafkaConsumer | None = None
        self._ends: dict[TopicPartition, int] = {}  # when the connection was opened
        self._answered_s = 0.0  # when brokers were last known to answer
        self.positions: dict[Source, int] = {}
        """The next record of each partition."""

    def begin(self, positions: Mapping[Source, int]) -> None:
        """Goes on from these; before the first `poll`."""
        self.positions = {source: position for source, position in positions.items() if source.topic in self._topics}

    async def poll(self, wait_ms: int | None = None) -> list[Taken]:
        """The next records, few or none if there is nothing new within `wait_ms`, by default a quarter of a second.

        Raises:
            KafkaUnavailableError: no answer.
            KafkaRefusedError: waiting would not help.
            TopicError: a topic does not exist.
        """
        try:
            consumer = self._client or await self._connected()
            got = await consumer.getmany(timeout_ms=_POLL_MS if wait_ms is None else wait_ms, max_records=_MOST_RECORDS)
            if self._grown(consumer):
                await self.close()  # those that were added are read from the next call on
        except OffsetOutOfRangeError:
            await self.close()  # where it goes on is found out anew
            return []
        except UNREADABLE as error:
            await self._pass_over(error)
            return []
        except (KafkaError, OSError) as error:
            await self.close()
            raise client.unavailable(error, self._settings) from error
        if got:
            self._answered_s = time.monotonic()
        elif self._client is not None:
            await self._look(self._client)
        taken = []
        for partition, records in got.items():
            source = Source(partition.topic, partition.partition)
            self.positions[source] = records[-1].offset + 1
            taken.append(Taken(source, records))
        return taken

    def _grown(self, consumer: AIOKafkaConsumer) -> bool:
        """Whether a topic has partitions, by the metadata that the client renews by itself, that are not read yet."""
        return any(
            TopicPartition(topic, number) not in self._ends
            for topic in self._topics
            for number in consumer.partitions_for_topic(topic) or ()
        )

    async def _look(self, consumer: AIOKafkaConsumer) -> None:
        """Now and then, while nothing arrives: brokers that are away raise nothing, the client just finds no records.

        Raises:
            KafkaUnavailableError: no answer, or a topic is gone. The connection is kept, since some partitions may still be read.
        """
        if time.monotonic() - self._answered_s < _LOOK_EVERY_S:
            return
        try:
            async with asyncio.timeout(_LOOK_DEADLINE_S):
                await consumer.end_offsets(list(self._ends))
        except (KafkaError, OSError) as error:
            raise await unanswered(consumer, self._topics, error, self._settings, ours=self._ours) from error
        self._answered_s = time.monotonic()

    async def caught_up(self) -> bool:
        """Whether everything was read that was there when the connection was opened."""
        if self._client is None:
            return False
        return all([await self._client.position(partition) >= end for partition, end in self._ends.items()])

    async def lag(self) -> int:
        """Records not read yet, as far as is known."""
        if self._client is None:
            return 0
        return sum(max(0, (self._client.highwater(TopicPartition(*source)) or 0) - position) for source, position in self.positions.items())

    async def commit(self) -> None:
        """Writes the positions down for the group, for those who watch its lag; nothing is read from there. Raises as `poll`."""
        if self._client is None or self._group is None or not self.positions:
            return
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await self._client.commit({TopicPartition(*source): OffsetAndMetadata(at, "") for source, at in self.positions.items()})
        except (KafkaError, OSError) as error:
            raise client.unavailable(error, self._settings) from error

    async def close(self) -> None:
        """Lets go of the connection."""
        if self._client is not None:
            consumer, self._client = self._client, None
            await client.close(consumer)

    async def _connected(self) -> AIOKafkaConsumer:
        arguments: dict[str, Any] = client.groupless(self._settings) | {"group_id": self._group}
        consumer = AIOKafkaConsumer(**arguments)
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await consumer.start()
                partitions = await self._partitions(consumer)
                first = await consumer.beginning_offsets(partitions)
                ends = await consumer.end_offsets(partitions)
                begin = first if self._since_ms is None else await offsets_since(consumer, self._since_ms, first, ends)
                consumer.assign(partitions)
                known = {Source(p.topic, p.partition) for p in partitions}  # a topic that was made anew may have fewer than we remember
                self.positions = {source: position for source, position in self.positions.items() if source in known}
                for p in partitions:
                    source = Source(p.topic, p.partition)
                    at = self.positions.get(source, begin[p])
                    # Outside of the log: records have expired, or the topic was made anew.
                    self.positions[source] = at if first[p] <= at <= ends[p] else begin[p]
                    consumer.seek(p, self.positions[source])
        except BaseException:
            await client.close(consumer)
            raise
        self._client, self._ends, self._answered_s = consumer, dict(ends), time.monotonic()
        return consumer

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        found = []
        for topic in self._topics:
            own = await partitions_of(consumer, topic)
            if not own:
                raise TopicError(missing(topic, ours=self._ours))
            found += own
        return found

    async def _pass_over(self, error: Exception) -> None:
        """Goes on behind what cannot be read."""
        await self.close()
        for source, position in self.positions.items():
            try:
                behind = await first_readable(self._settings, source, position)
            except (KafkaError, OSError) as failure:
                raise client.unavailable(failure, self._settings) from failure
            if behind != position:
                _log.warning("intake_records_unreadable", **source._asdict(), records=behind - position, reason=repr(error))
                self.positions[source] = behind
