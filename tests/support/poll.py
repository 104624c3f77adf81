"""Waiting for an effect: never by sleeping, always with a deadline and a word for what was awaited."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def poll_until(condition: Callable[[], T], what: str, timeout_s: float = 30.0, interval_s: float = 0.02) -> T:
    """Return the first truthy answer of `condition`; fail, saying `what` was awaited, after `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; last answer: {answer!r}")
        time.sleep(interval_s)
    return answer


async def until(condition: Callable[[], T | Awaitable[T]], what: str, timeout_s: float = 30.0, interval_s: float = 0.02) -> T:
    """Do the same on the event loop; `condition` may be a coroutine function."""
    deadline = time.monotonic() + timeout_s
    while True:
        asked = condition()
        answer: T = await asked if isinstance(asked, Awaitable) else asked
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s for {what}; last answer: {answer!r}")
        await asyncio.sleep(interval_s)
