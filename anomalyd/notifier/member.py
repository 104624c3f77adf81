"""One Alertmanager: what waits for it, and the loop that sends it. Each has its own, so that a slow or dead one holds up no other."""

import asyncio
import json
import math
import socket
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult

from anomalyd.errors import ConfigError
from anomalyd.kafka.client import Backoff
from anomalyd.notifier.wire import Labels, Post
from anomalyd.settings import AlertmanagerSettings
from anomalyd.telemetry.notifying import NotifyMetrics
from anomalyd.tls import unreached

OPEN_FOR: Final = 4.0
"""An open alert ends after so many rounds that nobody has sent it again."""

_PATH: Final = "/api/v2/alerts"
_CONTENT: Final = frozenset({400, 413, 422})
"""Answers that are about what was sent: the same again gets the same. 400: what is good in the batch was taken; 422: nothing was."""
_MOST_TEXT: Final = 300
_MOST_READ: Final = 16_384
"""More than is told, so that no secret is cut in two in front of where it is looked for."""
_TELL_EVERY_S: Final = 300.0
"""So often is it told that a member does not take alerts."""
_REFUSED_ROUNDS: Final = 5
"""What was refused is tried again after so many rounds, even if it is the same: it may have been a proxy, or a port that speaks TLS, that
answered 400 to everything."""

_log = structlog.get_logger(__name__)


class Address(NamedTuple):
    """A member."""

    url: str
    ip: str | None = None
    """Which of the addresses that its host name has; None: whichever."""

    @property
    def name(self) -> str:
        """For people and metrics."""
        return self.url if self.ip is None else f"{self.url} ({self.ip})"


class _Failed(Exception):  # noqa: N818  goes no further than this module
    """A request that may succeed at another time."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Refused(Exception):  # noqa: N818  likewise
    """Something in a batch is not accepted."""


class _Refusal(NamedTuple):
    post: Post
    """As it was when it was not accepted."""
    round: int


class Member:
    """Sends to one Alertmanager: news first, which wait in a bounded queue, then what is told again.

    That does not go through the queue: were there more of it than fits, the same ones would be dropped in every round and end while they
    are open.

    Args:
        address: where it is.
        settings: how to reach it.
        ssl_context: of all members.
        metrics: where to count.
    """

    def __init__(self, address: Address, settings: AlertmanagerSettings, ssl_context: Any, metrics: NotifyMetrics) -> None:  # noqa: ANN401  an ssl.SSLContext
        self.address = address
        self._settings = settings
        self._ssl = ssl_context
        self._metrics = metrics
        self._waiting: OrderedDict[Labels, Post] = OrderedDict()
        self._again: OrderedDict[Labels, Post] = OrderedDict()
        self._rounds = 0
        self._refused: dict[Labels, _Refusal] = {}
        self._wake = asyncio.Event()
        self._busy = False
        self.trouble: str | None = None
        """Why it takes nothing; None where all is well, as far as is known."""
        self._told_s = -math.inf
        metrics.member(address.name)

    @property
    def idle(self) -> bool:
        """Nothing waits, and nothing is under way."""
        return not self._waiting and not self._again and not self._busy

    def put(self, news: Iterable[Post]) -> None:
        """These are to be sent; of each alert the latest counts. Where too many wait, the oldest go."""
        for post in news:
            self._again.pop(post.labels, None)
            self._waiting.pop(post.labels, None)
            if not self._is_refused(post):
                self._waiting[post.labels] = post
        excess = len(self._waiting) - self._settings.queue
        if excess > 0:
            for _ in range(excess):
                self._waiting.popitem(last=False)
            self._metrics.dropped(self.address.name, excess)
        self._metrics.queued(self.address.name, len(self._waiting))
        if self._waiting:
            self._wake.set()

    def tell_again(self, everything: Mapping[Labels, Post]) -> None:
        """A round: all this is to be sent. What the round before did not come to goes first."""
        self._rounds += 1
        self._refused = {labels: refusal for labels, refusal in self._refused.items() if labels in everything}
        ordered = (*(labels for labels in self._again if labels in everything), *everything)
        self._again = OrderedDict(
            (labels, everything[labels]) for labels in ordered if labels not in self._waiting and not self._is_refused(everything[labels])
        )
        # Even with nothing to tell: that a member is there, and that this is its path, should not show with the first incident only.
        self._wake.set()

    def _is_refused(self, post: Post) -> bool:
        refusal = self._refused.get(post.labels)
        return refusal is not None and refusal.post == post and self._rounds - refusal.round < _REFUSED_ROUNDS

    async def run(self) -> None:
        """Sends what waits, until it is cancelled."""
        backoff = Backoff(first_s=0.5, most_s=30.0)
        async with self._session() as session:
            while True:
                await self._wake.wait()
                news = self._next(self._waiting, self._settings.batch)
                again = self._next(self._again, self._settings.batch - len(news))
                if not self._waiting and not self._again:
                    self._wake.clear()
                self._metrics.queued(self.address.name, len(self._waiting))
                self._busy = True
                try:
                    await self._send(session, [*news, *again])
                except _Failed as error:
                    self._busy = False
                    self._back(news, again)
                    await asyncio.sleep(self._failed(error, backoff))
                else:
                    self._busy = False
                    if self.trouble is not None:
                        _log.info("alertmanager_reached", alertmanager=self.address.name)
                    self.trouble, self._told_s = None, -math.inf
                    backoff.reset()

    def _back(self, news: Sequence[Post], again: Sequence[Post]) -> None:
        """What could not be sent waits on, in front, unless there is news of it by now. Of what was refused meanwhile nothing is news."""
        for queue, posts in ((self._waiting, news), (self._again, again)):
            for post in reversed(posts):
                if post.labels not in self._waiting and post.labels not in self._again and not self._is_refused(post):
                    queue[post.labels] = post
                    queue.move_to_end(post.labels, last=False)
        self.put(())
        self._wake.set()

    @staticmethod
    def _next(queue: OrderedDict[Labels, Post], most: int) -> list[Post]:
        return [queue.popitem(last=False)[1] for _ in range(min(len(queue), most))]

    def _failed(self, error: _Failed, backoff: Backoff) -> float:
        """Counts, and tells now and then until it is well again; returns how long to wait."""
        self._metrics.failed(self.address.name, error.reason)
        self.trouble = f"{error.reason}: {error}"
        if time.monotonic() - self._told_s >= _TELL_EVERY_S:
            self._told_s = time.monotonic()
            _log.warning("alertmanager_unreachable", alertmanager=self.address.name, reason=self.trouble)
        return backoff.next_s()

    async def _send(self, session: aiohttp.ClientSession, batch: Sequence[Post]) -> None:
        """Sends a batch, which may be empty; of one in which something is not accepted the halves, and so on down to what it is.

        Raises:
            _Failed: it may succeed at another time.
        """
        try:
            await self._post(session, batch)
        except _Refused as error:
            if not batch:
                raise _Failed("refused", str(error)) from None
            if len(batch) == 1:
                (post,) = batch
                before = self._refused.get(post.labels)
                self._refused[post.labels] = _Refusal(post, self._rounds)
                if before is None or before.post != post:
                    self._metrics.rejected(self.address.name)
                    _log.error("alert_rejected", alertmanager=self.address.name, labels=dict(post.labels), reason=str(error))
                return
            half = len(batch) // 2
            await self._send(session, batch[:half])
            await self._send(session, batch[half:])
        else:
            self._metrics.sent(self.address.name, len(batch))
            for post in batch if self._refused else ():
                self._refused.pop(post.labels, None)

    async def _post(self, session: aiohttp.ClientSession, batch: Sequence[Post]) -> None:
        settings = self._settings
        now_ms = time.time_ns() // 1_000_000
        until_ms = now_ms + round(OPEN_FOR * settings.resend_s * 1000)
        body = json.dumps([post.as_json(now_ms, until_ms) for post in batch]).encode()
        began_s = time.monotonic()
        try:
            proof = settings.authorization() or ""
            headers = {"Content-Type": "application/json"} | ({"Authorization": proof} if proof else {})
            async with session.post(
                self.address.url.rstrip("/") + _PATH,
                data=body,
                headers=headers,
                ssl=self._ssl,
                proxy=settings.proxy_url,
                # Whoever answers with another address would get the proof of who we are.
                allow_redirects=False,
            ) as answer:
                text = (await answer.content.read(_MOST_READ)).decode(errors="replace").strip()
        except ConfigError as error:
            raise _Failed("refused", str(error)) from error
        except TimeoutError as error:
            raise _Failed("timeout", f"no answer after {settings.timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:  # a ValueError: no request can be made of this name or header
            raise _Failed("unreachable", unreached(error)) from error
        self._metrics.answered(time.monotonic() - began_s)
        if 200 <= answer.status < 300:
            return
        if secret := proof.rpartition(" ")[2]:  # there are those who answer with what they were sent
            text = text.replace(secret, "…")
        text = text[:_MOST_TEXT]
        said = f"status {answer.status}" + (f": {text}" if text.isprintable() and text else "")
        if answer.status in _CONTENT:
            raise _Refused(said)
        raise _Failed("overloaded" if answer.status >= 500 or answer.status == 429 else "refused", said)

    def _session(self) -> aiohttp.ClientSession:
        resolver = None if self.address.ip is None else _Pinned(self.address.ip)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=1, resolver=resolver, use_dns_cache=False),
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_s),
            trust_env=False,
        )

    def close(self) -> None:
        """There is no such member any more."""
        self._metrics.gone(self.address.name)


class _Pinned(AbstractResolver):
    """Every name has one address: so a request goes to a certain member, and is still made, and its certificate checked, by name."""

    def __init__(self, ip: str) -> None:
        self._ip = ip

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """See the class."""
        return [
            ResolveResult(
                hostname=host,
                host=self._ip,
                port=port,
                family=socket.AF_INET6 if ":" in self._ip else family,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
        ]

    async def close(self) -> None:
        """Nothing to close."""
