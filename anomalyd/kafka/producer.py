"""Messages to Kafka: idempotent, acknowledged by all in-sync replicas, sent again until they are."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError

from anomalyd.kafka import client
from anomalyd.kafka.message import TRUNCATED_BYTES, Message, Metrics, truncated
from anomalyd.settings import KafkaSettings

_MAX_BATCH_BYTES: Final = 512 << 10  # below the brokers' default message.max.bytes of 1 MiB, which counts whole batches
_MAX_REQUEST_BYTES: Final = 256 << 20  # the topic's limit decides, not the client's
_YIELD_EVERY: Final = 256  # send() seldom gives the loop back by itself

_log = structlog.get_logger(__name__)


class Producer:
    """Writes messages, whatever happens to brokers and to the client in between.

    A failed send leaves a gap in the sequence numbers of its partition, and everything behind it is refused for good. So a client that
    failed once is replaced, and what was not acknowledged is sent by the next one.
    """

    def __init__(self, settings: KafkaSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        # Twice what a request may take: an idempotent client repeats requests for ever.
        self._acknowledged_within_s = 2 * settings.request_timeout_ms / 1000
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

    async def deliver(self, messages: Sequence[Message]) -> None:
        """Returns when every message is acknowledged; per partition and key in the order given, unless a send failed in between.

        What a topic refuses for its size must not hold up what comes behind it: a dead letter is cut and marked with the header
        `anomalyd-truncated`; an alert, or a dead letter that is too large even so, is dropped with an error in the log.

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
            waiting, first = [message for message, _ in failed], failed[0][1]
            if any(isinstance(error, _OVERSIZE) for _, error in failed):
                waiting, other = await self._alone(waiting)
                if other is None:
                    return
                first = other
            if refused := client.refusal(first, self._settings):
                raise refused from first
            delay_s = backoff.next_s()
            _log.warning(
                "delivery_retry", messages=len(waiting), reason=client.reason(first), attempt=backoff.attempts, wait_s=round(delay_s, 2)
            )
            await asyncio.sleep(delay_s)

    async def _alone(self, messages: Sequence[Message]) -> tuple[list[Message], Exception | None]:
        """Sends one by one, since a batch that is too large fails all its messages; cuts or drops those that are too large by themselves.

        Stops at the first that fails for another reason; returns that one and all behind it, and the reason.
        """
        waiting = deque(messages)
        while waiting:
            message = waiting.popleft()
            (error,) = await self._send([message])
            if error is None:
                continue
            await self.stop()
            if not isinstance(error, _OVERSIZE):
                return [message, *waiting], error
            if message.dead_letter and max(len(message.value), len(message.key or b"")) > TRUNCATED_BYTES:
                _log.warning("message_truncated", topic=message.topic, bytes=message.size, kept=TRUNCATED_BYTES)
                waiting.appendleft(truncated(message))
            else:
                kind = "dead-letter" if message.dead_letter else "alert"
                _log.error("message_dropped", topic=message.topic, kind=kind, bytes=message.size, reason=client.reason(error))
                self._metrics.dropped(kind)
        return [], None

    async def _send(self, messages: Sequence[Message]) -> list[Exception | None]:
        """Sends and waits for every acknowledgement, within a deadline; the error of each message, or None.

        All futures are looked at: a batch that fails tells nobody but its own futures.
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
        if futures:
            await asyncio.wait(futures, timeout=self._acknowledged_within_s)
        for i, future in zip(owners, futures, strict=True):
            errors[i] = self._error_of(future)
        return errors

    def _error_of(self, future: asyncio.Future[Any]) -> Exception | None:
        """Why the message of a future is not known to be written; None if it is acknowledged."""
        error: BaseException | None
        if not future.done():
            # Its client is replaced now, and nobody asks for what becomes of it.
            future.add_done_callback(lambda late: late.cancelled() or late.exception())
            error = KafkaTimeoutError(f"not acknowledged within {self._acknowledged_within_s:g} s")
        elif future.cancelled():
            error = KafkaError("given up by the client")
        else:
            error = future.exception()
        if error is None or isinstance(error, Exception):
            return error
        raise error

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
