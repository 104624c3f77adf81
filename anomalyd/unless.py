"""Work that may take as long as brokers are away, and that the end of the daemon must not wait for."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Does the work, and leaves off when the event comes first. Raises what the work raises."""
    doing, waiting = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait({doing, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        doing.cancel()
        await asyncio.wait({doing})
    if not doing.cancelled():
        doing.result()
