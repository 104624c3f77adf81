"""Records from the partitions that the group gives us, in order, from explicit positions.

The client has habits that lose or repeat data silently, or stop it; each is answered where it would bite, and the comment there names it.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)

from anomalyd.batch import Record, Source
from anomalyd.errors import KafkaRefusedError, LostError, StateError
from anomalyd.kafka import client
from anomalyd.kafka.assignor import sticky
from anomalyd.kafka.positions import BEGUN, Located, StartFrom, locate
from anomalyd.kafka.salvage import UNREADABLE, first_readable
from anomalyd.kafka.unwrapped import fetch_ended, unwrap, verify
from anomalyd.settings import KafkaSettings
from anomalyd.unless import unasked, unless

COMMIT_DEADLINE_S: Final = 15.0
"""For positions, which the client would go on committing for ever."""

PROBE_EVERY_S: Final = 5.0
"""How soon an idle consumer notices that brokers are gone, or back."""

STALL_S: Final = 60.0
"""Records are there and none arrives for so long: the client has gone to sleep (aiokafka #625, #1037) and is replaced."""

LOST_EVERY_S: Final = 60.0
"""Between lines about the loss of one and the same partition, of which two groups that share state have one a second."""

_POLL_MS: Final = 250
_POLL_DEADLINE_S: Final = 1.0
_PROBE_DEADLINE_S: Final = 5.0
_READS_BEFORE_SALVAGE: Final = 4
_READ_AGAIN_S: Final = 0.2
_CAREFUL_S: Final = 10.0

_log = structlog.get_logger(__name__)


class Polled(NamedTuple):
    """Records of one partition."""

    source: Source
    records: Sequence[Record]
    next_offset: int
    """Position behind them; more than one past the last record where control records follow."""


Loss = Literal["expired", "corrupt", "too-large"]


class Recovered(NamedTuple):
    """Where a partition goes on."""

    read_from: int
    """The first record that is needed."""
    position: int
    """The first record that is not accounted for yet; the same or later."""


class Owner(Protocol):
    """Who works on the partitions; called on the event loop."""

    async def release(self) -> None:
        """Finish and commit everything: the partitions may go to others. Cancelled when the rebalance can't wait any longer."""

    def assigned(self, sources: Collection[Source]) -> None:
        """These partitions are ours, and no others: what was put aside of others can go. Must not wait."""

    async def recover(self, source: Source, partitions: int) -> Recovered | None:
        """Takes a partition over with all that is known of it; in the background, however long it takes.

        Args:
            source: a partition that is ours.
            partitions: how many its topic has.

        Returns:
            Where it goes on; None where nothing was ever committed.

        Raises:
            LostError: it is not ours any more.
            StateError: it cannot go on until somebody has decided what to do.
            KafkaRefusedError: waiting would not help.
        """

    def take(self, positions: Mapping[Source, int], *, begun: bool = False) -> None:
        """These partitions were recovered and will be read from these positions on.

        Called again without `recover` in between for a partition whose next records are gone.

        Args:
            positions: of partitions.
            begun: nothing is known of them, and yet the group's offsets say that something was committed.
        """


class Metrics(Protocol):
    """What is counted here."""

    def rebalanced(self, partitions: int) -> None:
        """The group gave partitions out anew; we have so many."""

    def fetch_failed(self) -> None:
        """A fetch failed and will be tried again."""

    def reconnected(self) -> None:
        """The client was replaced."""

    def lost(self, reason: str, records: int) -> None:
        """So many records, gaps in the offsets counted, can't be had and are passed over."""

    def stopped(self, partitions: int) -> None:
        """So many partitions of ours cannot go on."""


class Consumer:
    """A member of the consumer group.

    Args:
        settings: how to reach Kafka.
        start_from: by topic, where a group without a committed position begins.
        metrics: where to count.
        clock: seconds, monotonic; None: the process's.
    """

    def __init__(
        self, settings: KafkaSettings, start_from: Mapping[str, StartFrom], metrics: Metrics, *, clock: Callable[[], float] | None = None
    ) -> None:
        self._settings = settings
        self._start_from = dict(start_from)
        self._metrics = metrics
        self._clock = clock or time.monotonic  # not a default, which would be bound before the simulation puts its own in the place
        self._assignor = sticky()
        self._client: AIOKafkaConsumer | None = None
        self._owner: Owner | None = None
        self._listening: AIOKafkaConsumer | None = None  # whose assignments count; not one that is about to be replaced
        self._interrupted = asyncio.Event()
        self._giving_back = asyncio.Lock()
        self._assigned: frozenset[Source] | None = None  # None: the group has not decided
        self._assignment = 0  # what belongs to an older assignment is void
        self._position: dict[Source, int] = {}  # of located partitions: behind the last record handed over
        self._end: dict[Source, int] = {}  # log end as far as seen
        self._locating: dict[Source, asyncio.Task[None]] = {}
        self._stopped: dict[Source, str] = {}  # partitions of ours that cannot go on, and why
        self._lost: dict[Source, tuple[float, int]] = {}  # when that was last told, and how often it has come since
        self._failure: Exception | None = None
        self._missing: frozenset[str] = frozenset()
        self._held = False
        self._reachable = False
        self._stalled = False
        self._unreadable = 0  # failed reads in a row
        self._careful_until_s = 0.0
        self._replacing = client.Backoff()
        self._last_record_s = self._last_probe_s = self._clock()
        self._nothing_since_s: float | None = None  # since then somebody has asked for records, and got none

    # --- life -------------------------------------------------------------------------------------------------------

    async def start(self, owner: Owner) -> None:
        """Connects, however long brokers are away, and joins the group.

        Raises:
            KafkaRefusedError: waiting would not help.
        """
        self._owner = owner
        await self._connect()

    def interrupt(self) -> None:
        """The daemon ends: from now on poll() returns at once, even where it would replace a client while brokers are away."""
        self._interrupted.set()

    async def stop(self) -> None:
        """Leaves the group (a static member stays in it until its session ends) and disconnects, within a deadline."""
        self._listening = None
        self._forget_assignment()
        if self._client is not None:
            client_, self._client = self._client, None
            await client.close(client_)

    @property
    def ready(self) -> bool:
        """Whether brokers answer and our partitions, if the group has any for us, have their positions."""
        located = self._assigned is not None and self._assigned <= self._position.keys()  # a partition that was stopped never is
        return self._reachable and located and len(self._missing) < len(self._start_from)

    def status(self) -> dict[str, Any]:
        """Why it is ready or not, for people."""
        return {
            "kafka": "reached" if self._reachable else "unreachable",
            "group": "joined" if self._assigned is not None else "joining",
            "partitions": len(self._assigned or ()),
            "partitions_recovered": len(self._position),
            "partitions_stopped": {f"{topic}/{partition}": why for (topic, partition), why in sorted(self._stopped.items())},
            "topics_missing": sorted(self._missing),
        }

    @property
    def partitions_of_inputs(self) -> int:
        """Partitions of all input topics together, whoever reads them."""
        return sum(len(self._connected.partitions_for_topic(topic) or ()) for topic in self._start_from)

    async def _connect(self) -> None:
        backoff = client.Backoff()
        while True:
            consumer = AIOKafkaConsumer(
                **client.options(self._settings),
                group_id=self._settings.group_id,
                group_instance_id=self._settings.group_instance_id,
                partition_assignment_strategy=(self._assignor,),
                session_timeout_ms=self._settings.session_timeout_ms,
                heartbeat_interval_ms=self._settings.heartbeat_interval_ms,
                # The default is the session timeout: too short for a last checkpoint.
                rebalance_timeout_ms=self._settings.rebalance_timeout_ms,
                max_poll_interval_ms=self._settings.max_poll_interval_ms,
                fetch_max_bytes=self._settings.fetch_max_bytes,
                max_partition_fetch_bytes=self._settings.max_partition_fetch_bytes,
                fetch_max_wait_ms=self._settings.fetch_max_wait_ms,
                enable_auto_commit=False,
                # "latest", the default, jumps over everything unread when a position has expired.
                auto_offset_reset="none",
                # What an aborted transaction wrote never happened.
                isolation_level="read_committed",
            )
            try:
                await consumer.start()
                verify(consumer)
                unwrap(consumer)
                break
            except (KafkaError, OSError) as error:
                await client.close(consumer)
                await client.wait_for_brokers(error, backoff, self._settings)
            except BaseException:
                await client.close(consumer)
                raise
        self._client = self._listening = consumer
        self._heard()
        self._last_probe_s = self._last_record_s
        self._set_reachable(None)
        # After start(): topics given to the constructor would make start() wait for those that do not exist yet.
        consumer.subscribe(list(self._start_from), listener=_Listener(self, consumer))

    async def _replace_client(self, why: str) -> None:
        """A client that went wrong is not repaired. stop() calls no listener, so the partitions are handed over here."""
        delay_s = self._replacing.next_s()
        _log.warning("kafka_client_replaced", reason=why, attempt=self._replacing.attempts, wait_s=round(delay_s, 2))
        self._metrics.reconnected()
        # A rebalance that it takes part in meanwhile, and stop() lets it finish one, is not ours any more.
        self._listening = None
        await self._give_back()
        await self.stop()
        await asyncio.sleep(delay_s)
        self._stalled = False
        await self._connect()

    # --- records ----------------------------------------------------------------------------------------------------

    async def poll(self) -> list[Polled]:
        """The next records of each partition; empty when there are none within a quarter of a second, or during a rebalance.

        Call it again and again, even while the intake is held: a member that does not ask for records leaves the group.

        Raises:
            KafkaRefusedError: the group or the topics refuse us.
        """
        if self._failure is not None:
            raise self._failure
        if self._stalled:
            await unless(self._interrupted, self._replace_client("records are there, none arrives"))
        if self._interrupted.is_set():
            return []
        consumer = self._connected
        try:
            # getmany() waits for the end of a rebalance, whatever its timeout says.
            async with asyncio.timeout(_POLL_DEADLINE_S):
                got = await consumer.getmany(timeout_ms=_POLL_MS, max_records=self._most_records())
        except TimeoutError:
            fetch_ended(consumer)
            return []
        except (KafkaError, OSError, *UNREADABLE) as error:
            fetch_ended(consumer)
            # What getmany() had collected from other partitions, or from this one before a bad batch, is lost with the exception, while the
            # client's positions have moved past it. So every partition goes back to where records were last handed over, and that before
            # anybody else runs: a checkpoint would commit those positions.
            for tp in self._partitions():
                consumer.seek(tp, self._position[Source(*tp)])
            await unless(self._interrupted, self._after_failed_read(error))
            return []
        polled = []
        for tp, records in got.items():
            source = Source(*tp)
            if records and source in self._position:
                # position() does not suspend where there is one, and nothing has run since getmany() returned.
                self._position[source] = await consumer.position(tp)
                polled.append(Polled(source, records, self._position[source]))
        if polled:
            self._heard()
            self._unreadable = 0
            self._replacing.reset()
            self._set_reachable(None)
        elif self._nothing_since_s is None:
            self._nothing_since_s = self._clock()
        return polled

    def _most_records(self) -> int:
        """One by one after a batch that could not be read: what is good in front of it comes out, and the client stands right before it."""
        return 1 if self._clock() < self._careful_until_s else self._settings.max_poll_records

    def hold(self) -> None:
        """Fetches nothing until `resume`. What was fetched ahead is thrown away, so do not flap."""
        self._held = True
        for tp in self._partitions():
            self._connected.pause(tp)

    def resume(self) -> None:
        """Ends `hold`."""
        self._held = False
        self._heard()
        for tp in self._partitions():
            self._connected.resume(tp)

    async def _after_failed_read(self, error: Exception) -> None:
        """After a failed read."""
        self._metrics.fetch_failed()
        if refused := client.refusal(error, self._settings):
            raise refused from error
        if isinstance(error, OffsetOutOfRangeError):
            self._relocate(Source(*tp) for tp in error.args[0])
        elif isinstance(error, RecordTooLargeError):
            # Brokers answer so only before 0.10.1; newer ones send the record whatever its size.
            self._pass_over(Source(*error.args[1]), error.args[2] + 1, "too-large")
        elif isinstance(error, UNREADABLE):
            await self._salvage(error)
        elif not isinstance(error, NoOffsetForPartitionError):  # raised between an assignment and our seek
            await self._replace_client(client.reason(error))

    async def _salvage(self, error: Exception) -> None:
        """The client would fetch a corrupt batch for ever. It may be the network's fault, so a few times that is right."""
        self._careful_until_s = self._clock() + _CAREFUL_S
        self._unreadable += 1
        if self._unreadable < _READS_BEFORE_SALVAGE:
            await asyncio.sleep(_READ_AGAIN_S)
            return
        self._unreadable = 0
        self._careful_until_s = 0.0
        _log.error("records_unreadable", reason=client.reason(error))
        for source, position in list(self._position.items()):
            try:
                readable = await first_readable(self._settings, source, position)
            except (KafkaError, OSError) as failed:
                _log.warning("salvage_failed", topic=source.topic, partition=source.partition, reason=client.reason(failed))
                continue
            if readable > position and self._position.get(source) == position:
                self._pass_over(source, readable, "corrupt")

    def _pass_over(self, source: Source, position: int, loss: Loss) -> None:
        if source not in self._position:
            return
        records = position - self._position[source]
        _log.error("records_lost", topic=source.topic, partition=source.partition, first=self._position[source], records=records, loss=loss)
        self._position[source] = position
        self._connected.seek(TopicPartition(*source), position)
        self._metrics.lost(loss, records)
        self._owned.take({source: position})

    # --- where we are -----------------------------------------------------------------------------------------------

    def positions(self) -> dict[Source, int]:
        """By partition, the offset behind the last record handed over and behind control records, which nobody is handed."""
        for source, state in self._states():
            if state.has_valid_position:
                self._position[source] = max(self._position[source], state.position)
        return dict(self._position)

    def ends(self) -> dict[Source, int]:
        """By partition, the end of the log where it is known."""
        for source, state in self._states():
            # Behind the last stable offset nothing can be had yet: an open transaction is no lag of ours.
            seen = state.lso if state.lso is not None and state.lso >= 0 else state.highwater
            if seen is not None:
                self._end[source] = max(self._end.get(source, 0), seen)
        return {source: end for source, end in self._end.items() if source in self._position}

    async def publish(self, positions: Mapping[Source, int]) -> bool:
        """Commits positions, which our state has, for the group and whoever watches its lag; they decide nothing while that state is there.

        Returns whether the coordinator took them, which it does of a member of the present generation and of nobody else.
        """
        return bool(await self._publish(positions))

    async def _publish(self, positions: Mapping[Source, int]) -> bool | None:
        """Returns None where the coordinator has not answered."""
        ours = {TopicPartition(*source): (position, BEGUN) for source, position in positions.items() if source in (self._assigned or ())}
        if not ours or self._client is None:
            return False
        coordinator = self._client._coordinator  # noqa: SLF001  there is no public way
        if (generation := coordinator.generation) < 0:
            return False
        try:
            async with asyncio.timeout(COMMIT_DEADLINE_S):
                await self._client.commit(ours)
        except (KafkaError, OSError, TimeoutError) as error:
            _log.info("positions_not_published", partitions=len(ours), reason=client.reason(error))
            return False if isinstance(error, CommitFailedError | IllegalStateError) else None
        # Thrown out meanwhile, the client commits as nobody in particular, which an empty group grants to anybody.
        return True if coordinator.generation == generation else None

    async def is_member(self, source: Source, position: int | None) -> bool:
        """Whether the group gives us the partition, as the coordinator sees it; `position` is published with the question.

        Without a position there is nothing to ask with, and what we last heard counts. A coordinator that does not answer is asked again as
        long as we have not heard otherwise: an outage of some seconds must not have everybody restore everything.
        """
        backoff = client.Backoff()
        while source in (self._assigned or ()) and position is not None:
            if (answer := await self._publish({source: position})) is not None:
                return answer
            await asyncio.sleep(backoff.next_s())
        return source in (self._assigned or ())

    async def probe(self) -> None:
        """Looks after an idle consumer; call it about every second.

        Brokers that go away raise nothing: the client just finds no records. A client that has gone to sleep raises nothing either. So
        while nothing arrives, the brokers are asked for the ends of the logs.
        """
        now = self._clock()
        if self._client is None or now - max(self._last_record_s, self._last_probe_s) < PROBE_EVERY_S:
            return
        self._last_probe_s = now
        self._look_for_topics()
        asked = self._partitions() or self._some_partition()
        try:
            async with asyncio.timeout(_PROBE_DEADLINE_S):
                ends = await self._client.end_offsets(asked) if asked else {}
                if not asked:  # nothing to ask about, but is somebody there?
                    await self._client.topics()
        except (KafkaError, OSError, TimeoutError) as error:
            self._set_reachable(client.reason(error) if str(error) else "no answer")
            return
        self._set_reachable(None)
        self._end.update((Source(*tp), end) for tp, end in ends.items())
        behind = any(self._end.get(source, 0) > position for source, position in self.positions().items())
        if behind and not self._held and self._nothing_since_s is not None and now - self._nothing_since_s > STALL_S:
            self._stalled = True

    def _heard(self) -> None:
        """Records have come, or cannot have come until now."""
        self._last_record_s, self._nothing_since_s = self._clock(), None

    def _look_for_topics(self) -> None:
        missing = frozenset(topic for topic in self._start_from if self._connected.partitions_for_topic(topic) is None)
        if missing - self._missing:
            _log.warning(
                "input_topics_missing", topics=sorted(missing), help="waiting for them; producers own them, anomalyd does not create them"
            )
        elif self._missing - missing:
            _log.info("input_topics_found", topics=sorted(self._missing - missing))
            # The leader of the group looks out for that, but a static one that came back does not know that it leads.
            self._connected._coordinator.request_rejoin()  # noqa: SLF001  there is no public way
        self._missing = missing
        refused = missing & self._connected._client.cluster.unauthorized_topics  # noqa: SLF001  metadata refuses without raising
        if refused:
            self._failure = KafkaRefusedError(f"Kafka: not authorised to read {', '.join(sorted(refused))}; allow Read and Describe")

    def _set_reachable(self, why_not: str | None) -> None:
        if why_not is None and not self._reachable:
            _log.info("kafka_reached", servers=self._settings.bootstrap_servers)
        elif why_not is not None and self._reachable:
            _log.warning("kafka_unreachable", servers=self._settings.bootstrap_servers, reason=why_not)
        self._reachable = why_not is None

    # --- assignment -------------------------------------------------------------------------------------------------

    def on_assigned(self, of: AIOKafkaConsumer, partitions: Iterable[TopicPartition]) -> None:
        """Partitions were assigned. Must not wait: no heartbeat is sent meanwhile, so a slow callback ends in endless rebalancing."""
        if of is not self._listening:
            return
        given = sorted(partitions)
        self._assigned = frozenset(Source(*tp) for tp in given)
        self._assignment += 1
        for tp in given:
            # A placeholder: for a partition without a position the client goes and looks for one itself.
            self._connected.seek(tp, 0)
            self._connected.pause(tp)
        _log.info("partitions_assigned", count=len(given), partitions=_names(given))
        self._metrics.rebalanced(len(given))
        self._look_for_topics()
        self._owned.assigned(self._assigned)
        for source in sorted(self._assigned):
            self._locate(source)

    async def on_revoked(self, of: AIOKafkaConsumer) -> None:
        """The group rebalances. The client hands out nothing now and heartbeats go on: this may take time, but the others wait for it."""
        if of is self._client and self._assigned is not None:
            # A rebalance leaves us our generation; who has none any more was thrown out.
            if self._settings.group_instance_id is not None and self._connected._coordinator.generation < 0:  # noqa: SLF001  there is no public way
                _log.warning("membership_lost", group_instance_id=self._settings.group_instance_id)
            _log.info("partitions_revoked", count=len(self._assigned), partitions=_names(self._assigned))
            await self._give_back()

    async def _give_back(self) -> None:
        """Once for each assignment, though a rebalance and a replacement of the client may both ask for it at the same time."""
        deadline_s = self._settings.rebalance_timeout_ms / 2_000
        self._stop_locating()
        async with self._giving_back:
            try:
                if self._assigned is not None:
                    async with asyncio.timeout(deadline_s):
                        await self._owned.release()
            except TimeoutError:
                _log.warning("handover_late", deadline_s=deadline_s, help="the next owner does again what was not committed")
            finally:
                self._forget_assignment()

    def _forget_assignment(self) -> None:
        self._assignment += 1
        self._assigned = None
        self._position.clear()
        self._end.clear()
        if self._stopped:
            self._stopped.clear()
            self._metrics.stopped(0)
        self._stop_locating()

    def _stop_locating(self) -> None:
        for task in self._locating.values():
            task.cancel()

    def reclaim(self, source: Source, lost: str = "") -> None:
        """The owner has lost what it knew of a partition: it is recovered again, if it still is ours.

        Args:
            source: the partition.
            lost: how, if it was because of somebody else.
        """
        if lost:
            self._tell_lost(source, lost)
        # Who is being put out of the group must not fence whoever comes next; who stays is asked again with the next assignment.
        if self._assigned is not None and source in self._assigned and not self._giving_back.locked():
            self._leave_alone(source)
            self._locate(source)

    def stop_partition(self, source: Source, why: str) -> None:
        """A partition cannot go on until somebody has decided what to do; the others do."""
        if self._assigned is not None and source in self._assigned:
            self._leave_alone(source)
            self._stopped[source] = why
            self._metrics.stopped(len(self._stopped))
            _log.error("partition_stopped", topic=source.topic, partition=source.partition, reason=why)

    def _leave_alone(self, source: Source) -> None:
        for tp in self._partitions():
            if Source(*tp) == source:
                self._connected.pause(tp)
        self._position.pop(source, None)
        if (locating := self._locating.get(source)) is not None and locating is not asyncio.current_task():
            locating.cancel()

    def _relocate(self, sources: Iterable[Source]) -> None:
        for source in sources:
            if source in self._position:
                position = self._position[source]
                self._leave_alone(source)
                self._locate(source, Recovered(position, position))

    def _locate(self, source: Source, known: Recovered | None = None) -> None:
        if (before := self._locating.get(source)) is not None:
            before.cancel()
        task = asyncio.create_task(self._begin(source, known))
        self._locating[source] = task
        task.add_done_callback(lambda done: self._locating.pop(source) if self._locating.get(source) is done else None)

    async def _ask_owner(self, source: Source) -> Recovered | None:
        """What the owner knows of a partition."""
        backoff = client.Backoff()
        while True:
            partitions = len(self._connected.partitions_for_topic(source.topic) or ())
            if partitions <= source.partition:
                # Metadata comes on its own way: not yet, or from a broker that has just started and knows nothing of the topic.
                delay_s = backoff.next_s()
                _log.warning(
                    "partitions_unknown", topic=source.topic, partition=source.partition, known=partitions, wait_s=round(delay_s, 2)
                )
                await asyncio.sleep(delay_s)
                continue
            try:
                return await self._owned.recover(source, partitions)
            except LostError as error:
                # The group decides: while it gives the partition to us, somebody who thought it his has fenced us, and will not again.
                self._tell_lost(source, str(error) or "the group's coordinator")
                await asyncio.sleep(backoff.next_s())

    def _tell_lost(self, source: Source, why: str) -> None:
        told_s, times = self._lost.get(source, (-math.inf, 0))
        if self._clock() - told_s < LOST_EVERY_S:
            self._lost[source] = (told_s, times + 1)
            return
        self._lost[source] = (self._clock(), 0)
        _log.warning("partition_lost", topic=source.topic, partition=source.partition, reason=why, times=times + 1)

    async def _begin(self, source: Source, known: Recovered | None) -> None:
        """Finds where to read a partition from (None: the owner knows), and begins; in the background, unless the group rebalances."""
        with self.failing_loudly():
            assignment, backoff = self._assignment, client.Backoff()
            try:
                recovered = known or await self._ask_owner(source)
            except StateError as error:
                self.stop_partition(source, str(error))
                return
            while assignment == self._assignment:
                try:
                    located = await locate(self._connected, source, recovered and recovered.read_from, self._start_from[source.topic])
                except (CommitFailedError, IllegalStateError):
                    return  # the group rebalances, and the next assignment starts over
                except (KafkaError, OSError) as error:
                    if refused := client.refusal(error, self._settings):
                        raise refused from error
                    delay_s = backoff.next_s()
                    _log.warning("positions_unknown", reason=client.reason(error), attempt=backoff.attempts, wait_s=round(delay_s, 2))
                    await asyncio.sleep(delay_s)
                else:
                    if assignment == self._assignment:
                        self._go_on(source, located, recovered)
                    return

    def _go_on(self, source: Source, located: Located, recovered: Recovered | None) -> None:
        tp = TopicPartition(*source)
        self._connected.seek(tp, located.position)
        self._position[source] = located.position
        self._end[source] = located.end
        if recovered is not None and located.first > recovered.position:
            self._metrics.lost("expired", located.first - recovered.position)
        if not self._held:
            self._connected.resume(tp)
        self._heard()
        self._owned.take({source: located.position}, begun=located.begun)

    @contextlib.contextmanager
    def failing_loudly(self) -> Iterator[None]:
        """Keeps the first exception for the next poll(): out of a task or a callback of the client it would at most be logged."""
        try:
            yield
        except asyncio.CancelledError as error:
            if (failure := unasked(error)) is None:
                raise
            self._failure = self._failure or failure
        except Exception as error:  # noqa: BLE001  whatever it is, it has to end the daemon
            self._failure = self._failure or error

    # --- the client's side ------------------------------------------------------------------------------------------

    @property
    def _connected(self) -> AIOKafkaConsumer:
        if self._client is None:
            raise RuntimeError("start() comes first")
        return self._client

    @property
    def _owned(self) -> Owner:
        if self._owner is None:
            raise RuntimeError("start() comes first")
        return self._owner

    def _partitions(self) -> list[TopicPartition]:
        """Located partitions that the client, too, holds for ours at this moment."""
        return [TopicPartition(*source) for source, _ in self._states()]

    def _some_partition(self) -> list[TopicPartition]:
        """One partition of any input topic, to have something to ask brokers about."""
        known = ((topic, self._connected.partitions_for_topic(topic)) for topic in self._start_from)
        return next(([TopicPartition(topic, min(partitions))] for topic, partitions in known if partitions), [])

    def _states(self) -> list[tuple[Source, Any]]:
        """Located partitions with what the client knows of them. Its public methods raise where a rebalance has just taken a partition."""
        subscription = self._client._subscription.subscription if self._client is not None else None  # noqa: SLF001
        if subscription is None or subscription.assignment is None:
            return []
        states = ((source, subscription.assignment.state_value(TopicPartition(*source))) for source in self._position)
        return [(source, state) for source, state in states if state is not None]


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the client ships no types
    def __init__(self, consumer: Consumer, of: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._of = of

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        del revoked  # all of them: rebalances are eager
        with self._consumer.failing_loudly():
            await self._consumer.on_revoked(self._of)

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        with self._consumer.failing_loudly():
            self._consumer.on_assigned(self._of, assigned)


def _names(partitions: Iterable[tuple[str, int]]) -> list[str]:
    return [f"{topic}/{partition}" for topic, partition in sorted(partitions)]
