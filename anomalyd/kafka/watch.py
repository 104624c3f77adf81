"""What has to be known of a producer's requests, and how to silence it: the private parts of the client that writers need.

aiokafka repeats a request by itself when a connection breaks or an answer is late, and does not tell. For the one that ends a transaction
that is a danger: requests carry no number of their transaction, so a first attempt that some queue held up may decide a *later* one
(KAFKA-17754). A transaction whose requests did not go through at the first attempt is therefore in doubt, even if the client reports
success, and its producer is not used again: the epoch of the next one makes brokers refuse whatever is still under way.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, Self

from aiokafka.errors import ConcurrentTransactions, NoError, OperationNotAttempted, ProducerClosed, for_code

from anomalyd.kafka import client

RETRY_BACKOFF_MS: Final = 100
"""The client sleeps at least so long before it repeats a request; but for the one that adds partitions, where it may be less."""

_END: Final = "EndTxnRequest"
_ADD: Final = "AddPartitionsToTxnRequest"
_DECISIVE: Final = frozenset({_END, _ADD, "ProduceRequest"})

# The brokers are still marking the transaction before, so there is nothing to add to yet; with that, others are not attempted.
_NOT_YET: Final = frozenset({NoError, ConcurrentTransactions, OperationNotAttempted})


class Watch:
    """Looks on as a producer sends requests.

    Args:
        client_: what the producer sends with.
    """

    def __init__(self, client_: Any) -> None:  # noqa: ANN401  the client ships no types
        self._send: Callable[..., Awaitable[Any]] = client_.send
        self._under_way: set[asyncio.Future[Any]] = set()
        self._silenced = False
        self._ends = 0
        self._trouble: str | None = None
        client_.send = self._watched

    @classmethod
    def of(cls, producer: Any) -> Self | None:  # noqa: ANN401  the client ships no types
        """Watches a producer that has not begun yet; None if it is not built as expected."""
        sender = getattr(producer, "client", None)
        return cls(sender) if hasattr(sender, "send") else None

    def begin(self) -> None:
        """A transaction begins."""
        self._ends, self._trouble = 0, None

    def doubt(self) -> str | None:
        """Why a transaction that ended well, as the client says, may not have, or may still be decided anew; None: it is certain."""
        if self._trouble is None and self._ends != 1:
            return f"{self._ends} requests to end it were seen"
        return self._trouble

    def silence(self) -> None:
        """From here on no request leaves, whatever goes on in the client; those under way are given up."""
        self._silenced = True
        for request in self._under_way:
            request.cancel()

    async def _watched(self, node_id: int, request: Any, **more: Any) -> Any:  # noqa: ANN401  the signature of the client's own
        if self._silenced:
            raise ProducerClosed
        kind = type(request).__name__
        # A task of its own, so that it can be given up while it still waits for a connection: its request would leave long after.
        sending = asyncio.ensure_future(self._send(node_id, request, **more))
        self._under_way.add(sending)
        try:
            response = await sending
        except asyncio.CancelledError:
            self._note(kind, "given up")
            task = asyncio.current_task()
            if self._silenced and task is not None and not task.cancelling():
                raise ProducerClosed from None
            raise
        except Exception as error:
            self._note(kind, client.reason(error))
            raise
        finally:
            self._under_way.discard(sending)
        if kind == _END:
            self._ends += 1
            self._judge(kind, [response.error_code], frozenset({NoError}))
        elif kind == _ADD:
            self._judge(kind, [code for _, partitions in response.errors for _, code in partitions], _NOT_YET)
        return response

    def _judge(self, kind: str, codes: list[int], harmless: frozenset[type]) -> None:
        for code in codes:
            if (error := for_code(code)) not in harmless:
                self._note(kind, error.__name__)

    def _note(self, kind: str, what: str) -> None:
        if kind in _DECISIVE and self._trouble is None:
            self._trouble = f"{kind}: {what}"


async def discard(producer: Any, watch: Watch | None) -> None:  # noqa: ANN401  the client ships no types
    """Closes a producer, whatever it is doing, within a few seconds; nothing is sent any more, and no task of it stays. Never raises.

    The client's own stop() sends what waits and then waits for answers, for ever. Interrupted, it leaves its sender running.
    """
    if watch is not None:
        watch.silence()
        with _private():
            # What is under way ends by itself now, and would stumble if it had been failed.
            _fail(batch for batches in producer._message_accumulator._batches.values() for batch in batches)  # noqa: SLF001  no other way
            look_at(producer._txn_manager._transaction_waiter)  # noqa: SLF001  failed with the sender, and nobody waits for it
        with _private():
            for connection in producer.client._conns.values():  # noqa: SLF001  a close() would first send what its buffer holds
                if connection._writer is not None:  # noqa: SLF001  likewise
                    connection._writer.transport.abort()  # noqa: SLF001  likewise
    with contextlib.suppress(Exception):  # whatever it is, it is over
        await client.close(producer)
    if watch is not None:
        with contextlib.suppress(Exception):  # likewise
            await client.close(_Rest(producer))


class _Rest:
    """What stop() leaves behind where its time was up."""

    def __init__(self, producer: Any) -> None:  # noqa: ANN401  the client ships no types
        self._producer = producer

    async def stop(self) -> None:
        sender = self._producer._sender.sender_task  # noqa: SLF001  it goes on if stop() was interrupted
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait([sender], timeout=client.CLOSE_DEADLINE_S / 2)
        await self._producer.client.close()
        waited_for = self._producer.client._md_update_fut  # noqa: SLF001  requests that failed wait for metadata, which nobody fetches now
        if waited_for is not None and not waited_for.done():
            waited_for.set_result(False)
        accumulator = self._producer._message_accumulator  # noqa: SLF001  a flush waits for what nobody sends any more
        _fail([*(batch for batches in accumulator._batches.values() for batch in batches), *accumulator._pending_batches])  # noqa: SLF001


def _fail(batches: Iterable[Any]) -> None:
    for batch in list(batches):
        batch.failure(ProducerClosed())
        look_at(batch._drain_waiter)  # noqa: SLF001  nobody waits for it


def look_at(future: asyncio.Future[Any] | None) -> None:
    """Takes note of what became of a future, now or later: an exception that nobody asks for would be reported."""
    if future is not None:
        future.add_done_callback(lambda done: done.cancelled() or done.exception())


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Of a client that is built another way, more is left to end by itself; it is silenced all the same."""
    with contextlib.suppress(AttributeError):
        yield
