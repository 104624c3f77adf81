"""Messages to Kafka: idempotent, acknowledged by all in-sync replicas, sent again until they are."""

import asyncio
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from anomalyd.kafka import client
from anomalyd.settings import KafkaSettings

TRUNCATED_BYTES: Final = 1_024
"""What is kept of a message that its topic refuses for its size."""

_MAX_BATCH_BYTES: Final = 512 << 10  # below the brokers' default message.max.bytes of 1 MiB, which counts whole batches
_MAX_REQUEST_BYTES: Final = 256 << 20  # the topic's limit decides, not the client's
_YIELD_EVERY: Final = 256  # send() seldom gives the loop back by itself

_log = structlog.get_logger(__name__)


class Message(NamedTuple):
    """A record to be written."""

    topic: str
    partition: int
    """Of the input that it comes from. It is written to this modulo the topic's count, so that what one input partition causes stays
    together and a transaction of it touches few partitions."""
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.key or b"") + len(self.value) + sum(len(name) + len(value) for name, value in self.headers)


class Producer:
    """Writes messages, whatever happens to brokers and to the client in between.

    A failed send leaves a gap in the sequence numbers of its partition, and everything behind it is refused for good. So a client that
    failed once is replaced, and what was not acknowledged is sent by the next one.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connects; waits for brokers as long as it takes.

        Raises:
            KafkaRefusedError: waiting would not help.
        """
        await self._connected()

    async def stop(self) -> None:
        """Lets go of the connection, within a deadline."""
        if self._client is not None:
            client_, self._client = self._client, None
            await client.close(client_)

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        return len(await (await self._connected()).partitions_for(topic))

    async def deliver(self, messages: Sequence[Message]) -> None:
        """Returns when every message is acknowledged; per partition and key in the order given, unless a send failed in between.

        A message that its topic refuses for its size is cut to its first KiB and marked with the header `anomalyd-truncated`: it must not
        hold up what comes behind it.

        Raises:
            KafkaRefusedError: trying again would not help.
        """
        waiting = list(messages)
        backoff = client.Backoff()
        while waiting:
            errors = await self._send(waiting)
            failed = [(message, error) for message, error in zip(waiting, errors, strict=True) if error is not None]
            if not failed:
                return
            await self.stop()
            first = failed[0][1]
            if refused := client.refusal(first, self._settings):
                raise refused from first
            oversize = any(isinstance(error, _OVERSIZE) for _, error in failed)
            waiting = [message for message, _ in failed]
            if oversize:
                waiting = await self._alone(waiting)
            else:
                delay_s = backoff.next_s()
                _log.warning(
                    "delivery_retry", messages=len(failed), reason=client.reason(first), attempt=backoff.attempts, wait_s=round(delay_s, 2)
                )
                await asyncio.sleep(delay_s)

    async def _alone(self, messages: Sequence[Message]) -> list[Message]:
        """Sends one by one, since a batch that is too large fails all its messages; cuts those that are too large by themselves.

        Returns what failed for another reason.
        """
        rest = []
        for message in messages:
            (error,) = await self._send([message])
            if error is None:
                continue
            await self.stop()
            if isinstance(error, _OVERSIZE) and len(message.value) > TRUNCATED_BYTES:
                _log.warning("message_truncated", topic=message.topic, bytes=len(message.value), kept=TRUNCATED_BYTES)
                rest.append(truncated(message))
            else:
                rest.append(message)
        return rest

    async def _send(self, messages: Sequence[Message]) -> list[Exception | None]:
        """Sends and waits for every acknowledgement; the error of each message, or None.

        All futures are awaited: a batch that fails tells nobody but its own futures.
        """
        errors: list[Exception | None] = [None] * len(messages)
        futures: list[asyncio.Future[Any]] = []
        owners: list[int] = []
        for i, message in enumerate(messages):
            try:
                producer = await self._connected()
                count = len(await producer.partitions_for(message.topic))
                futures.append(
                    await producer.send(
                        message.topic, message.value, message.key, partition=message.partition % count, headers=list(message.headers)
                    )
                )
                owners.append(i)
            except (KafkaError, OSError) as error:
                errors[i] = error
            if i % _YIELD_EVERY == _YIELD_EVERY - 1:
                await asyncio.sleep(0)
        for i, result in zip(owners, await asyncio.gather(*futures, return_exceptions=True), strict=True):
            if isinstance(result, Exception):
                errors[i] = result
        return errors

    async def _connected(self) -> AIOKafkaProducer:
        if self._client is not None:
            return self._client
        backoff = client.Backoff()
        while True:
            producer = AIOKafkaProducer(
                **client.options(self._settings),
                enable_idempotence=True,
                acks="all",
                max_batch_size=_MAX_BATCH_BYTES,
                max_request_size=_MAX_REQUEST_BYTES,
            )
            try:
                await producer.start()
            except (KafkaError, OSError) as error:
                await client.close(producer)
                await client.wait_for_brokers(error, backoff, self._settings)
            except BaseException:
                await client.close(producer)
                raise
            else:
                self._client = producer
                return producer


_OVERSIZE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)


def truncated(message: Message) -> Message:
    """The first KiB of a message that is too large for its topic, with the full length and checksum in the header."""
    told = f"{len(message.value)} bytes, crc32 {zlib.crc32(message.value):08x}".encode()
    key = message.key if message.key is None or len(message.key) <= TRUNCATED_BYTES else message.key[:TRUNCATED_BYTES]
    return message._replace(key=key, value=message.value[:TRUNCATED_BYTES], headers=(*message.headers, ("anomalyd-truncated", told)))
