"""Sends scores to where they are wanted, beside everything else: nothing waits for it, and what finds no room is dropped.

Scores are handed over once the records that they come from are committed, so that a store never knows more than the alerts topic. They
wait in memory only: a process that ends loses what waits, and sends nothing twice.
"""

import asyncio
import contextlib
import math
import ssl
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import aiohttp
import structlog

from anomalyd.batch import Points
from anomalyd.remote.protobuf import HEADERS
from anomalyd.remote.series import Names, Request, Requests
from anomalyd.tls import unreached

_FIRST_PAUSE_S: Final = 0.1
_MOST_PAUSE_S: Final = 30.0
_LINGER_S: Final = 0.5
"""So long does a request wait for company."""
_LEAVE_S: Final = 2.0
"""So long is tried to send what waits when the process ends."""
_TOLD_EVERY_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Metrics(Protocol):
    """What is counted here."""

    def remote_written(self, samples: int, seconds: float) -> None:
        """A request was taken."""

    def remote_failed(self) -> None:
        """A request was not, and is tried again."""

    def remote_dropped(self, reason: str, samples: int) -> None:
        """Samples were given up."""

    def remote_queued(self, samples: int) -> None:
        """So many wait."""


class RemoteWriter:
    """A bounded queue, and a task that empties it.

    Args:
        url: where to.
        names: of the time series.
        labels: added to each.
        headers: sent with each request.
        token_file: holds a bearer token.
        most_waiting: samples in the queue.
        most_at_once: samples in a request.
        timeout_s: for a request.
        ssl_context: for a `url` with TLS.
        metrics: where to count.
    """

    def __init__(
        self,
        url: str,
        *,
        names: Names,
        labels: Mapping[str, str],
        headers: Mapping[str, str],
        token_file: Path | None,
        most_waiting: int,
        most_at_once: int,
        timeout_s: float,
        ssl_context: ssl.SSLContext,
        metrics: Metrics,
    ) -> None:
        self._url = url
        self._requests = Requests(names, labels)
        self._headers = dict(headers)
        self._token_file = token_file
        self._most_waiting = most_waiting
        self._most_at_once = most_at_once
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._ssl = ssl_context
        self._metrics = metrics
        self._queue: deque[Points] = deque()
        self._waiting = 0
        self._arrived = asyncio.Event()
        self._leaving = asyncio.Event()
        self._told_s = -math.inf
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to send. On the event loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Sends what waits if that is possible at once, and ends."""
        if self._task is None:
            return
        self._leaving.set()
        self._arrived.set()
        done, _ = await asyncio.wait({self._task}, timeout=_LEAVE_S)
        if not done:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._task = None

    def offer(self, parts: Sequence[Points]) -> None:
        """Takes scores in. Where there is no room the oldest ones go."""
        for points in parts:
            self._queue.extend(_cut(points, self._most_at_once))
            self._waiting += len(points)
        dropped = 0
        while self._waiting > self._most_waiting:
            oldest = len(self._queue.popleft())
            self._waiting -= oldest
            dropped += oldest
        if dropped:
            self._metrics.remote_dropped("no-room", dropped)
            self._tell("no room: the receiver takes them slower than they come, or not at all", dropped)
        self._metrics.remote_queued(self._waiting)
        self._arrived.set()

    async def _run(self) -> None:
        async with aiohttp.ClientSession(timeout=self._timeout) as session:
            while self._queue or not self._leaving.is_set():
                self._arrived.clear()
                if not self._queue:
                    await self._arrived.wait()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._leaving.wait(), _LINGER_S)
                    continue
                parts = [self._queue.popleft()]
                samples = len(parts[0])
                while self._queue and samples + len(self._queue[0]) <= self._most_at_once:
                    parts.append(self._queue.popleft())
                    samples += len(parts[-1])
                self._waiting -= samples
                self._metrics.remote_queued(self._waiting)
                try:
                    request = await asyncio.to_thread(self._requests.make, parts)
                except Exception:  # noqa: BLE001  scores that cannot be written down must not end those behind them
                    _log.exception("remote_write_crashed", samples=samples)
                    self._metrics.remote_dropped("crashed", samples)
                else:
                    await self._send(session, request)

    async def _send(self, session: aiohttp.ClientSession, request: Request) -> None:
        """Tries until it is taken or refused for good. Meanwhile the queue fills."""
        if request.stale:
            self._metrics.remote_dropped("out-of-order", request.stale)
        pause_s = _FIRST_PAUSE_S
        while request.samples:
            began_s = time.monotonic()
            try:
                async with session.post(self._url, data=request.body, headers=self._all_headers(), ssl=self._ssl) as answer:
                    if answer.status < 300:
                        self._metrics.remote_written(request.samples, time.monotonic() - began_s)
                        return
                    reason = f"HTTP {answer.status}: {(await answer.text(errors='replace')).strip()[:300]}"
                    # 429 asks for patience; any other 4xx will be the same the next time.
                    if answer.status != 429 and answer.status < 500:
                        self._metrics.remote_dropped("refused", request.samples)
                        self._tell(reason, request.samples)
                        return
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                reason = unreached(error)
            self._metrics.remote_failed()
            self._tell(reason, 0)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), pause_s)
                return  # nobody waits for scores when the process ends
            pause_s = min(2 * pause_s, _MOST_PAUSE_S)

    def _all_headers(self) -> dict[str, str]:
        token = {} if self._token_file is None else {"Authorization": f"Bearer {self._token_file.read_text('utf-8').strip()}"}
        return self._headers | token | HEADERS

    def _tell(self, reason: str, dropped: int) -> None:
        """A receiver that is away must not fill the log."""
        now_s = time.monotonic()
        if now_s - self._told_s >= _TOLD_EVERY_S:
            self._told_s = now_s
            _log.warning("remote_write_failed", url=self._url, reason=reason, dropped=dropped)


def _cut(points: Points, most: int) -> list[Points]:
    if len(points) <= most:
        return [points]
    return [points.part(slice(start, start + most)) for start in range(0, len(points), most)]
