"""Work that may take as long as brokers are away, and that the end of the daemon must not wait for; cancellations that nobody asked for."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, and leaves off when the event comes first. Raises what the work raises."""
    doing, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    left_off = False
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        left_off = doing.cancel()
        await asyncio.wait({doing})
    if not doing.cancelled():
        doing.result()
    elif not left_off:
        raise RuntimeError("cancelled by nobody")


def unasked(cancelled: asyncio.CancelledError) -> RuntimeError | None:
    """What to raise instead of a cancellation that nobody asked for; None where the task that runs was really cancelled.

    The Kafka client awaits what it has cancelled, and now and then lets the answer out. Taken for a cancellation of ours it would end a
    task without a word.
    """
    task = asyncio.current_task()
    return None if task is not None and task.cancelling() else RuntimeError(f"cancelled by nobody: {cancelled!r}")
