"""`anomalyd demo`: the daemon in this process, fed and watched through Kafka."""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live

from anomalyd.app import App
from anomalyd.demo import view
from anomalyd.demo.album import Album
from anomalyd.demo.board import Board, epoch_ms
from anomalyd.demo.fleet import START_MS, STEP_MS, Fleet
from anomalyd.demo.host import Host
from anomalyd.demo.judge import Episode, Judgement, cause, judge
from anomalyd.demo.wire import MOST_SAMPLES_PER_S, TICKS_PER_S, AlertReader, Feeder, Wire, lay
from anomalyd.errors import ConfigError
from anomalyd.settings import AlertSettings, DeadLetterSettings, HttpSettings, KafkaSettings, LogSettings, Settings, StreamSettings

SECONDS: Final = 120.0
_FLEET: Final = "fleet"
_HOST: Final = "host"
_REFRESH_S: Final = 0.25
_LINE_S: Final = 5.0
_DRAIN_S: Final = 20.0
_PATIENCE_S: Final = 4.0
_START_S: Final = 600.0


def run(*, seconds: float | None, series: int, json_output: bool, kafka: str | None, report: Path | None, seed: int) -> int:
    """Runs the demo and returns the exit code; Ctrl-C ends it early, with its summary.

    Args:
        seconds: for how long records are produced; None: two minutes. Start and end come on top, a few seconds.
        series: in the generated fleet.
        json_output: one JSON object on the last line of stdout.
        kafka: host:port of a cluster to use instead of the embedded broker.
        report: HTML file to write.
        seed: of the fleet.

    Raises:
        ConfigError: the extra is not installed, or the report cannot be written.
        KafkaUnavailableError: the cluster does not answer.
    """
    if report is not None and not report.parent.is_dir():
        raise ConfigError(f"--report {report}: there is no folder {report.parent}")
    host = Host()
    with lay(kafka) as wire:
        demo = _Demo(wire, Fleet(series, seed), host, seconds or SECONDS, drawn=report is not None)
        asyncio.run(demo.run())
    judgement, figures = demo.judgement(), demo.figures()
    Console(stderr=json_output, highlight=False).print(view.summary(judgement, figures))
    if report is not None and demo.album is not None:
        try:
            report.write_text(demo.album.page(judgement, figures), "utf-8")
        except OSError as error:
            raise ConfigError(f"--report {report}: {error.strerror or error}") from None
    if json_output:
        print(json.dumps(figures))  # noqa: T201  the command's result
    return 0


class _Demo:
    """One run."""

    def __init__(self, wire: Wire, fleet: Fleet, host: Host, seconds: float, *, drawn: bool) -> None:
        self._wire, self._fleet, self._seconds = wire, fleet, seconds
        self._board = Board(wire.fleet, _FLEET)
        ticks = int(seconds * min(TICKS_PER_S, MOST_SAMPLES_PER_S / len(fleet)))
        self._feeder = Feeder(wire, fleet, host, max(1, ticks), seconds, lambda: self._board.fleet_samples)
        self._reader = AlertReader(wire, self._board.read)
        self.album = Album(self._board) if drawn else None
        self._sparks: dict[str, list[float]] = {}
        self._began = time.monotonic()
        self._elapsed_s = 0.0
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """From start to end, or to Ctrl-C."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        self._reader.start()
        try:
            async with App(_settings(self._wire), observer=self._board.observe) as app:
                await _ready(app)
                self._began = time.monotonic()
                self._feeder.start()
                async with self._display():
                    await self._until(lambda: not self._feeder.is_alive() or self._stop.is_set(), self._seconds + _DRAIN_S)
                    self._feeder.stop()
                    await self._until(lambda: not self._feeder.is_alive() and self._lag() <= 0, _DRAIN_S)
                    self._elapsed_s = time.monotonic() - self._began
                    await self._until(lambda: self._board.messages_read >= self._board.messages_made, _DRAIN_S)
        finally:
            self._feeder.stop()
            self._reader.stop()
            self._reader.join(5)
        if self._feeder.failure is not None:
            raise self._feeder.failure
        self._collect(last=True)

    def _interrupt(self) -> None:
        # The second one does not wait.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
        self._stop.set()

    async def _until(self, done: Callable[[], bool], deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while not done() and time.monotonic() < end:  # noqa: ASYNC110  what happens in other threads has no event for us
            await asyncio.sleep(0.02)

    # --- what is known --------------------------------------------------------------------------------------------

    def _lag(self) -> int:
        return self._feeder.fleet_samples - self._board.fleet_samples

    def _now_ms(self) -> int:
        """Event time up to which the fleet has been scored."""
        return START_MS + (self._board.fleet_samples // len(self._fleet) - 1) * STEP_MS

    def judgement(self) -> Judgement:
        """How it stands."""
        return judge(
            list(self._fleet.incidents),
            self._board.episodes(),
            series=len(self._fleet),
            ticks=self._board.fleet_samples // len(self._fleet),
            until_ms=self._now_ms(),
        )

    def figures(self) -> dict[str, Any]:
        """What `--json` prints."""
        board, judgement = self._board, self.judgement()
        delay = judgement.median_delay
        return {
            "records_in": self._feeder.fleet_records + self._feeder.host_records,
            "samples_scored": board.samples,
            "series": board.series,
            "alerts_fired": board.fired,
            "alerts_resolved": board.resolved,
            "incidents_injected": len(judgement.findings),
            "incidents_detected": judgement.detected,
            "false_episodes": len(judgement.false),
            "series_days": round(judgement.series_days, 3),
            "median_detection_delay_s": None if delay is None else delay * STEP_MS / 1000,
            "samples_per_s": round(board.samples / self._elapsed_s, 1) if self._elapsed_s else 0.0,
        }

    def _status(self, rate: float, alerts: int = 0) -> view.Status:
        board, elapsed_s = self._board, time.monotonic() - self._began
        return view.Status(
            elapsed_s=elapsed_s,
            left_s=max(0.0, self._seconds - elapsed_s),
            event_ms=self._now_ms(),
            samples=board.samples,
            samples_per_s=rate,
            series=board.series,
            lag=max(0, self._lag()),
            firing=board.firing,
            alerts=[self._shown_alert(alert) for alert in board.newest(alerts)],
            judgement=self.judgement(),
        )

    def _shown_alert(self, alert: dict[str, Any]) -> view.Shown:
        key, fired_ms = alert["series"]["key"], epoch_ms(alert["event_time"])
        values = self._sparks.get(alert["alert_id"]) or self._board.around(key, fired_ms, view.BEFORE, view.AFTER)
        if len(values) == view.BEFORE + view.AFTER:
            self._sparks[alert["alert_id"]] = values  # the board forgets, the view may go on showing it
        incident = cause(list(self._fleet.incidents), Episode(key, fired_ms))
        return view.Shown(alert, values, incident.kind if incident is not None else "")

    # --- what is shown --------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _display(self) -> AsyncIterator[None]:
        console = Console(stderr=True)
        task = asyncio.create_task(self._show_live(console) if console.is_terminal else self._show_lines())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _show_live(self, console: Console) -> None:
        with Live(console=console, auto_refresh=False, screen=False, transient=True) as live:
            async for rate in self._rates(_REFRESH_S):
                rows = max(3, console.height - 10)
                live.update(view.screen(self._status(rate, rows), rows, live.console.width), refresh=True)

    async def _show_lines(self) -> None:
        shown_s = 0.0
        async for rate in self._rates(_REFRESH_S):
            if time.monotonic() - shown_s >= _LINE_S:
                shown_s = time.monotonic()
                print(view.line(self._status(rate)), file=sys.stderr, flush=True)  # noqa: T201  progress

    async def _rates(self, every_s: float) -> AsyncIterator[float]:
        """Samples a second, smoothed, again and again."""
        before, samples, rate = time.monotonic(), self._board.samples, 0.0
        while True:
            await asyncio.sleep(every_s)
            now, total = time.monotonic(), self._board.samples
            current = (total - samples) / (now - before)
            rate = current if not rate else 0.8 * rate + 0.2 * current
            before, samples = now, total
            self._collect()
            yield rate

    def _collect(self, *, last: bool = False) -> None:
        if self.album is not None:
            self.album.collect(list(self._fleet.incidents), self.judgement().false, self._now_ms(), last=last)


async def _ready(app: App) -> None:
    """Waits for the daemon, and says why it takes so long where it does."""
    try:
        await app.until_ready(_PATIENCE_S)
    except TimeoutError:
        print("the first start compiles machine code: about half a minute, longer on a busy machine", file=sys.stderr, flush=True)  # noqa: T201  progress
        await app.until_ready(_START_S)


def _settings(wire: Wire) -> Settings:
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=wire.bootstrap_servers, group_id=wire.group_id),
        streams=(
            StreamSettings(name=_FLEET, topics=(wire.fleet,), format="telegraf-json", start_from="earliest"),
            StreamSettings(name=_HOST, topics=(wire.host,), format="telegraf-json", start_from="earliest"),
        ),
        alerts=AlertSettings(topic=wire.alerts),
        dead_letters=DeadLetterSettings(topic=wire.dead_letters),
        http=HttpSettings(host="127.0.0.1", port=0),
        log=LogSettings(level="warning"),
    )
