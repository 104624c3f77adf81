"""`anomalyd notify`: the process.

It reads the alerts topic from its beginning, so it knows after any restart what is open, and tells every Alertmanager: at once what has
changed, and each minute everything.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import structlog

from anomalyd import __version__
from anomalyd.app import completed, until_signal
from anomalyd.errors import ConfigError, KafkaUnavailableError, StateError
from anomalyd.kafka.client import Backoff, pause
from anomalyd.kafka.intake import Intake, Taken
from anomalyd.notifier.book import RESOLVED_MS, Book
from anomalyd.notifier.member import OPEN_FOR, Address, Member
from anomalyd.notifier.wire import posted, read
from anomalyd.settings import Settings
from anomalyd.telemetry.notifying import NotifyMetrics
from anomalyd.telemetry.server import HttpServer

_DRAIN_S: Final = 5.0
"""How long the end of the process waits for what is under way to members."""

_LOOK_UP_S: Final = 10.0
COMPLAIN_EVERY_S: Final = 60.0
"""So often at most is said that messages cannot be read."""

_log = structlog.get_logger(__name__)


class Notifier:
    """The process.

    Args:
        settings: the configuration.

    Raises:
        ConfigError: it names no Alertmanager, or a certificate, key or password file cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self._own = settings.alertmanager
        if not self._own.urls:
            raise ConfigError(
                "alertmanager.urls: missing; notify needs the members of the Alertmanager cluster, such as "
                "alertmanager: {urls: ['http://127.0.0.1:9093']}"
            )
        self._ssl = self._own.ssl_context()
        self._own.authorization()
        self.metrics = NotifyMetrics()
        self.metrics.begin(self._own.queue)
        # What ends while nobody tells of it has ended everywhere by itself as soon as its end is not told any more.
        self._book = Book(max(RESOLVED_MS, round(OPEN_FOR * self._own.resend_s * 1000)))
        self._alerts = Intake(settings.kafka, [settings.alerts.topic], None, ours=True)
        self._members: dict[Address, tuple[Member, asyncio.Task[None]]] = {}
        self._stop = asyncio.Event()
        self._reading = False
        self._unreadable, self._complained_s = 0, -COMPLAIN_EVERY_S  # messages that were not told of yet, and when some were
        self._known = False  # everything was read that was there at the start: before that, what is over may look open
        self.port: int | None = None
        """Of the HTTP server, once it listens."""

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Asks `run` to send what waits, and return."""
        self._stop.set()

    async def run(self) -> None:
        """Reads and sends until `stop`.

        Raises:
            AnomalydError: what the operator has to change.
        """
        server = HttpServer(self._own.http, self.metrics.registry, health=lambda: (True, {}), ready=self._ready, where="alertmanager.http")
        self.port = await server.start()
        _log.info("notify_starting", version=__version__, alertmanagers=list(self._own.urls))
        _log.info("http_listening", host=self._own.http.host, port=self.port)
        again = asyncio.create_task(self._again())
        try:
            await self._read(again)
            await self._drained()
        finally:
            tasks = [again, *(task for _, task in self._members.values())]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._alerts.close()
            await server.stop()
        _log.info("stopped")

    def _ready(self) -> tuple[bool, Mapping[str, Any]]:
        return self._reading and self._known, {
            "open": len(self._book),
            "alertmanagers": {address.name: member.trouble or "ok" for address, (member, _) in self._members.items()},
        }

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _read(self, again: "asyncio.Task[None]") -> None:
        backoff = Backoff()
        while not self._stop.is_set():
            for task in (again, *(task for _, task in self._members.values())):
                if task.done():
                    task.result()
            try:
                for taken in await self._alerts.poll():
                    self._take(taken)
                known = self._known or await self._alerts.caught_up()
                lag = await self._alerts.lag()
            except KafkaUnavailableError as error:
                # What is known to be open is told on.
                self._reading = False
                await pause(error, backoff, self._stop)
                continue
            backoff.reset()
            self._reading = True
            self.metrics.look(len(self._book), lag)
            if known and not self._known:
                self._book.news()  # the round has it all
                self._known = True
                _log.info("notify_caught_up", open=len(self._book))
                await self._round()
            self._tell()

    def _take(self, taken: Taken) -> None:
        wrong, now_ms = list[tuple[int, str]](), _now_ms()
        for record in taken.records:
            try:
                alert = read(record.value)
                self._book.take(alert, posted(alert, self._own), record.timestamp, now_ms)
            except StateError as error:
                wrong.append((record.offset, str(error)))
        self.metrics.read(len(taken.records), len(wrong))
        self._unreadable += len(wrong)
        if wrong and time.monotonic() - self._complained_s >= COMPLAIN_EVERY_S:
            offset, reason = wrong[0]
            _log.warning("alerts_unreadable", **taken.source._asdict(), offset=offset, reason=reason, messages=self._unreadable)
            self._unreadable, self._complained_s = 0, time.monotonic()

    # --- telling ----------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        if (news := self._book.news()) and self._known:
            for member, _ in self._members.values():
                member.put(news)

    async def _again(self) -> None:
        while True:
            await asyncio.sleep(self._own.resend_s)
            if self._known:
                await self._round()

    async def _round(self) -> None:
        """Tells every member everything."""
        await self._meet()
        now_ms = _now_ms()
        self.metrics.forgotten(self._book.forget(now_ms))
        everything = self._book.all(now_ms)
        for member, _ in self._members.values():
            member.tell_again(everything)

    async def _meet(self) -> None:
        """Which members there are now."""
        wanted: dict[Address, None] = {}
        urls = self._own.urls
        looked_up = await asyncio.gather(*map(_addresses, urls)) if self._own.discover else []
        for i, url in enumerate(urls):
            found = [Address(url, ip) for ip in looked_up[i]] if looked_up else [Address(url)]
            # A name server that does not answer takes no member away.
            wanted |= dict.fromkeys(found or [address for address in self._members if address.url == url])
        for address in [address for address in self._members if address not in wanted]:
            member, task = self._members.pop(address)
            task.cancel()
            member.close()
        for address in wanted:
            if address not in self._members:
                member = Member(address, self._own, self._ssl, self.metrics)
                self._members[address] = member, asyncio.create_task(member.run())
        self.metrics.members(len(self._members))

    async def _drained(self) -> None:
        """What waits is sent, as far as that goes in a few seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                while not all(member.idle for member, _ in self._members.values()):  # noqa: ASYNC110  each has a loop of its own
                    await asyncio.sleep(0.02)


async def _addresses(url: str) -> list[str]:
    """All addresses of a URL's host, none where the name server does not answer in time: open alerts are to be told before they end."""
    try:
        parts = urlsplit(url)
        async with asyncio.timeout(_LOOK_UP_S):
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # a ValueError: it is no name, or no port
        _log.warning("alertmanager_unknown", alertmanager=url, reason=getattr(error, "strerror", None) or str(error) or "no answer")
        return []
    return sorted({str(entry[4][0]) for entry in found})


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- the process ----------------------------------------------------------------------------------------------------


def run(settings: Settings) -> int:
    """Runs the notifier until SIGTERM or SIGINT; the second one does not wait. Returns the exit code.

    Raises:
        AnomalydError: what the operator has to change.
    """
    return completed(until_signal(Notifier(settings)))
