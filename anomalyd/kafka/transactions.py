"""Writing what was computed for one input partition: alerts, dead letters and state, in one transaction or in an order that loses nothing.

A writer is used until its first error and then thrown away. The client offers no way to be sure of anything after one: a batch that failed
tells only its own futures, and the commit that follows succeeds without it; an abort may send nothing; a sender that met an error it does
not know has ended for good. Opening the next writer under the same id ends whatever transaction this one left open.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, Final, NamedTuple, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RecordListTooLargeError,
)

from anomalyd.batch import Entry, Source
from anomalyd.crashpoints import reached
from anomalyd.errors import AnomalydError, DeliveryError, FencedError, KafkaRefusedError, StateError, TooLargeError
from anomalyd.kafka import client
from anomalyd.kafka.message import Message, Metrics, fitting
from anomalyd.kafka.watch import RETRY_BACKOFF_MS, Watch, discard, look_at
from anomalyd.settings import KafkaSettings, Settings

OPEN_DEADLINE_S: Final = 60.0

TRANSACTION_TIMEOUT_MS: Final = 60_000
"""So long after its beginning do brokers abort a transaction themselves, and readers of the topics wait for it so long at most."""

_BATCH_BYTES: Final = 512 << 10  # below the brokers' default message.max.bytes of 1 MiB, which counts whole batches
_REQUEST_BYTES: Final = 96 << 20  # the topic's limit decides; but above socket.request.max.bytes, 100 MiB, brokers just hang up
_GROUP_BYTES: Final = 4 << 10  # what any topic takes
_YIELD_EVERY: Final = 256  # send() seldom gives the loop back by itself

_OVERSIZE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
_FENCED: Final = (ProducerFenced, InvalidProducerEpoch)

_FAILURES: Final = (
    KafkaError,
    OSError,
    # The client says so where its sender has ended with an error in between.
    AssertionError,
    IllegalOperation,
    asyncio.InvalidStateError,
)


class Producing(Protocol):
    """What is used of a client."""

    async def start(self) -> None:
        """Connects; with a transactional id, fences whoever had it and aborts what it left open."""

    async def stop(self) -> None:
        """Disconnects."""

    async def partitions_for(self, topic: str) -> Collection[int]:
        """Partitions of a topic."""

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None, *, partition: int, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[Any]:
        """Takes a record in; the future is its acknowledgement, with `offset`."""

    async def begin_transaction(self) -> None:
        """What is sent from here on becomes visible with the commit."""

    async def commit_transaction(self) -> None:
        """Makes it visible."""


class _Sent(NamedTuple):
    """What became of a record."""

    offset: int = -1
    error: Exception | None = None


class _Writer:
    def __init__(
        self, settings: KafkaSettings, topic: str, partition: int, metrics: Metrics, make: Callable[..., Producing], **more: object
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._partition = partition
        self._metrics = metrics
        self._make = make
        self._more = more
        self._producer: Producing | None = None
        self._watch: Watch | None = None
        self._limit: asyncio.Timeout | None = None
        self._usable = False
        # Twice what a request may take: the client repeats requests for ever.
        self._deadline_s = 2 * settings.request_timeout_ms / 1000

    async def open(self) -> None:
        """Connects and gets a producer id; under a transactional id whoever wrote before is fenced, and what it left open is aborted.

        Raises:
            DeliveryError: no answer; another writer may be tried.
            KafkaRefusedError: waiting would not help.
        """
        self._producer = self._make(
            **client.options(self._settings),
            enable_idempotence=True,
            acks="all",
            max_batch_size=_BATCH_BYTES,
            max_request_size=_REQUEST_BYTES,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            **self._more,
        )
        self._watch = Watch.of(self._producer)
        try:
            async with self._within(OPEN_DEADLINE_S):
                await self._producer.start()
        except BaseException as error:
            await self.close()
            if isinstance(error, _FAILURES):
                raise self._failure(error, f"no answer within {OPEN_DEADLINE_S:g} s") from error
            raise
        self._usable = True

    async def close(self) -> None:
        """Lets go of the connections within a few seconds. Nothing is sent any more; a transaction that is open stays open.

        A call that is under way in another task ends with a DeliveryError.
        """
        self._usable = False
        if self._producer is not None:
            producer, self._producer = self._producer, None
            if self._limit is not None:
                with contextlib.suppress(RuntimeError):  # it has just run out by itself
                    self._limit.reschedule(asyncio.get_running_loop().time())
            await discard(producer, self._watch)

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        async with asyncio.timeout(seconds) as limit:
            self._limit = limit
            try:
                yield
            finally:
                self._limit = None

    async def commit(self, messages: Sequence[Message], entries: Sequence[Entry], *, singly: int = 0) -> list[int]:
        """Writes messages to their topics and entries, in order, to the changelog partition; returns the entries' offsets.

        Args:
            messages: alerts and dead letters.
            entries: for the changelog.
            singly: a few messages in a request, more and more of them up to so many bytes, and each alone where those are refused, so that
                all that are too large are known. 0: all at once.

        Raises:
            FencedError: another producer has opened our transactional id since, or brokers gave the transaction up.
            TooLargeError: a topic refuses a message for its size; nothing was committed. `instead` is what to send instead, or None where
                only a batch is known to be too large, and not which of its messages.
            DeliveryError: it is not known whether it was written.
            KafkaRefusedError: waiting would not help.
        """
        if self._producer is None or not self._usable:
            raise DeliveryError("the writer is closed, or failed before")
        self._usable = False  # until it is certain that everything went well
        try:
            async with self._within(self._deadline_s):
                offsets = await self._write(self._producer, messages, entries, singly=singly)
        except _FAILURES as error:
            raise self._failure(error, f"not acknowledged within {self._deadline_s:g} s") from error
        self._usable = True
        return offsets

    async def _write(self, producer: Producing, messages: Sequence[Message], entries: Sequence[Entry], *, singly: int) -> list[int]:
        raise NotImplementedError

    # --- sending ----------------------------------------------------------------------------------------------------

    async def _send_messages(self, producer: Producing, messages: Sequence[Message]) -> list[asyncio.Future[Any]]:
        return [await self._send_message(producer, message, i) for i, message in enumerate(messages)]

    async def _send_message(self, producer: Producing, message: Message, i: int) -> asyncio.Future[Any]:
        partition = await self._partition_of(producer, message)
        return await _send(producer, message.topic, message.value, message.key, partition, list(message.headers), i)

    async def _partition_of(self, producer: Producing, message: Message) -> int:
        return message.partition % len(await producer.partitions_for(message.topic))

    async def _send_entries(self, producer: Producing, entries: Sequence[Entry]) -> list[asyncio.Future[Any]]:
        if self._partition not in await producer.partitions_for(self._topic):
            raise StateError(
                f"topic {self._topic} has no partition {self._partition}: if its input was given more partitions see "
                f"`anomalyd state restart --help`, else make it with `anomalyd topics create`; then restart"
            )
        return [await _send(producer, self._topic, entry.value, entry.key, self._partition, [], i) for i, entry in enumerate(entries)]

    async def _send_singly(self, producer: Producing, messages: Sequence[Message], most: int) -> list[_Sent]:
        """Sends a few messages at a time, each of these alone where they are refused together, until it is known which are too large.

        Ends early where that does not matter any more. A few and not one, and twice as many after each success: tens of thousands of round
        trips would outlast the transaction.
        """
        sent: list[_Sent] = []
        gaps = set[tuple[str, int]]()
        size = _GROUP_BYTES
        while (first := len(sent)) < len(messages):
            stop, sound = _group(messages, first, size), not gaps
            found = await _settled([await self._send_message(producer, messages[i], i) for i in range(first, stop)])
            for i, result in zip(range(first, stop), found, strict=True):
                place = (messages[i].topic, await self._partition_of(producer, messages[i]))
                if isinstance(result.error, _OVERSIZE):
                    gaps.add(place)
                    if stop - first > 1:
                        (result,) = await _settled([await self._send_message(producer, messages[i], i)])  # noqa: PLW2901  what it is alone
                if isinstance(result.error, OutOfOrderSequenceNumber) and place in gaps:
                    # A refused message has left a gap in the sequence numbers. The size is looked at first: this one would fit.
                    result = _Sent()  # noqa: PLW2901  likewise
                sent.append(result)
                if result.error is not None and place not in gaps:
                    return sent
            if gaps and sound and size > _GROUP_BYTES and not any(isinstance(result.error, _OVERSIZE) for result in sent):
                # The gap spoils the transaction, though each of them would have been taken.
                raise TooLargeError(f"{stop - first} messages are too large together", None, size // 2)
            size = _GROUP_BYTES if gaps else max(size, min(2 * size, most))
        if gaps and not any(isinstance(result.error, _OVERSIZE) for result in sent):
            topics = ", ".join(sorted({topic for topic, _ in gaps}))
            raise KafkaRefusedError(f"Kafka: {topics} takes less than {_GROUP_BYTES} bytes at a time; raise its max.message.bytes")
        return sent

    def _check_messages(self, messages: Sequence[Message], sent: Sequence[_Sent], *, singly: bool) -> None:
        """Raises what came of them, unless all are acknowledged."""
        failures = [(self._failure(result.error), result.error) for result in sent if result.error is not None]
        for failure, error in failures:
            if isinstance(failure, FencedError | KafkaRefusedError):
                raise failure from error
        too_large = [i for i, result in enumerate(sent) if isinstance(result.error, _OVERSIZE)]
        if too_large:
            # What fills a batch by itself travels alone, so that its error is about nothing else.
            known = singly or all(messages[i].size >= _BATCH_BYTES for i in too_large)
            topics = ", ".join(sorted({messages[i].topic for i in too_large}))
            instead = fitting(messages, set(too_large), self._metrics) if known else None
            raise TooLargeError(f"{len(too_large)} messages are too large for {topics}, alone or together", instead, _BATCH_BYTES)
        for failure, error in failures:
            raise failure from error

    def _check_entries(self, entries: Sequence[Entry], sent: Sequence[_Sent]) -> list[int]:
        """Returns their offsets; raises what came of them, unless all are acknowledged."""
        errors = [result.error for result in sent if result.error is not None]
        if any(isinstance(error, _OVERSIZE) for error in errors):
            largest = max(len(entry.key) + len(entry.value or b"") for entry in entries)
            raise KafkaRefusedError(
                f"Kafka: topic {self._topic} refuses state records for their size, the largest has {largest} bytes; raise its "
                f"max.message.bytes, see: anomalyd topics plan"
            )
        if errors:
            raise self._failure(errors[0]) from errors[0]
        offsets = [result.offset for result in sent]
        if any(offset < 0 for offset in offsets):
            raise DeliveryError("a batch was written twice, its offsets are not known")
        return offsets

    def _failure(self, error: BaseException, late: str = "") -> AnomalydError:
        """The error as callers know it."""
        if isinstance(error, AnomalydError):
            return error
        if type(error) is TimeoutError and late:
            return DeliveryError(late)
        # What ended the client's sender comes wrapped.
        cause: BaseException | None = error
        while isinstance(cause, Exception):
            if isinstance(cause, _FENCED):
                return FencedError("another producer has opened our transactional id, or brokers gave the transaction up")
            if refused := client.refusal(cause, self._settings, "Write"):
                return refused
            error, cause = cause, cause.__cause__
        return DeliveryError(client.reason(error) if isinstance(error, Exception) else str(error))


class TransactionalWriter(_Writer):
    """Writes everything in one transaction.

    Args:
        settings: how to reach Kafka.
        transactional_id: whoever opens it fences all that have it.
        topic: of the changelog.
        partition: of the changelog.
        metrics: where to count.
        make: makes a client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        transactional_id: str,
        topic: str,
        partition: int,
        metrics: Metrics,
        *,
        make: Callable[..., Producing] = AIOKafkaProducer,
    ) -> None:
        more = {"transactional_id": transactional_id, "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS}
        super().__init__(settings, topic, partition, metrics, make, **more)
        # Brokers abort it after that, and it would look as if somebody had taken the id.
        self._deadline_s = min(self._deadline_s, TRANSACTION_TIMEOUT_MS / 1000)

    async def _write(self, producer: Producing, messages: Sequence[Message], entries: Sequence[Entry], *, singly: int) -> list[int]:
        if not messages and not entries:
            return []
        loop = asyncio.get_running_loop()
        if self._watch is not None:
            self._watch.begin()
        await producer.begin_transaction()
        if singly:
            self._check_messages(messages, await self._send_singly(producer, messages, singly), singly=True)
        futures = [] if singly else await self._send_messages(producer, messages)
        count = len(futures)
        futures += await self._send_entries(producer, entries)
        reached("sent")
        sent = await _settled(futures)
        self._check_messages(messages, sent[:count], singly=False)
        offsets = self._check_entries(entries, sent[count:])
        reached("before-commit")
        began_s = loop.time()
        await producer.commit_transaction()
        if self._watch is not None:
            doubt = self._watch.doubt()
        else:
            # The client sleeps before it repeats a request, so a commit that took less was not repeated.
            repeated = loop.time() - began_s >= RETRY_BACKOFF_MS / 1000
            doubt = "it took long enough to have been repeated" if repeated else None
        if doubt is not None:
            raise DeliveryError(f"the commit is in doubt: {doubt}")
        return offsets


class PlainWriter(_Writer):
    """Writes without transactions: messages first, then entries, the last of them alone, each when those before are acknowledged.

    What was written in front of a crash or an error is written again. Nobody is fenced.

    Args:
        settings: how to reach Kafka.
        topic: of the changelog.
        partition: of the changelog.
        metrics: where to count.
        make: makes a client.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        partition: int,
        metrics: Metrics,
        *,
        make: Callable[..., Producing] = AIOKafkaProducer,
    ) -> None:
        super().__init__(settings, topic, partition, metrics, make)

    async def _write(self, producer: Producing, messages: Sequence[Message], entries: Sequence[Entry], *, singly: int) -> list[int]:
        if singly:
            self._check_messages(messages, await self._send_singly(producer, messages, singly), singly=True)
        else:
            futures = await self._send_messages(producer, messages)
            reached("sent")
            self._check_messages(messages, await _settled(futures), singly=False)
        offsets = self._check_entries(entries[:-1], await _settled(await self._send_entries(producer, entries[:-1])))
        reached("before-commit")
        return offsets + self._check_entries(entries[-1:], await _settled(await self._send_entries(producer, entries[-1:])))


def writer_of(settings: Settings, source: Source, metrics: Metrics) -> TransactionalWriter | PlainWriter:
    """A writer for what is computed of an input partition, of the kind that `delivery` asks for."""
    changelog = settings.changelog_topic(source.topic)
    if settings.transactional:
        return TransactionalWriter(settings.kafka, settings.transactional_id(source), changelog, source.partition, metrics)
    return PlainWriter(settings.kafka, changelog, source.partition, metrics)


def _group(messages: Sequence[Message], first: int, most: int) -> int:
    """The end of a run of messages that have so many bytes together at most, or of one."""
    stop, size = first + 1, messages[first].size
    while stop < len(messages) and (size := size + messages[stop].size) <= most:
        stop += 1
    return stop


async def _send(
    producer: Producing, topic: str, value: bytes | None, key: bytes | None, partition: int, headers: list[tuple[str, bytes]], i: int
) -> asyncio.Future[Any]:
    try:
        future = await producer.send(topic, value, key, partition=partition, headers=headers)
    except _OVERSIZE as error:  # the client's own limit
        future = asyncio.get_running_loop().create_future()
        future.set_exception(error)
    # If nobody comes to ask, because another one failed before, that is no fault.
    look_at(future)
    if i % _YIELD_EVERY == _YIELD_EVERY - 1:
        await asyncio.sleep(0)
    return future


async def _settled(futures: Sequence[asyncio.Future[Any]]) -> list[_Sent]:
    """What became of each. All are looked at: a batch that fails tells nobody but its own futures."""
    if futures:
        await asyncio.wait(futures)
    return [_outcome(future) for future in futures]


def _outcome(future: asyncio.Future[Any]) -> _Sent:
    if future.cancelled():
        return _Sent(error=KafkaError("given up by the client"))
    error = future.exception()
    if error is None:
        return _Sent(future.result().offset)
    if isinstance(error, Exception):
        return _Sent(error=error)
    raise error
