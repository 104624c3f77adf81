"""The log, configured once: JSON lines off a terminal, for people on one.

Code logs through `structlog.get_logger()`: an event name out of `events.EVENTS` plus fields, one line per batch at most.
Libraries log through the standard library; from WARNING on their lines come out in the same shape, as event `library_message`.
"""

import logging
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from anomalyd.settings import LogSettings

_REPEAT_S: Final = 60.0


def configure(settings: LogSettings, stream: TextIO | None = None) -> None:
    """Sends every log line of the process to `stream` (default: stderr). Called once, by the entry point."""
    stream = sys.stderr if stream is None else stream
    level = getattr(logging, settings.level.upper())
    console = settings.format == "console" or (settings.format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[*shared, *_renderers(stream, console=console)],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(stream),
        cache_logger_on_first_use=False,  # a test or a second call may configure anew
    )
    handler = logging.StreamHandler(stream)
    handler.addFilter(Repeats())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _from_library],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(stream, console=console)],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    logging.captureWarnings(capture=True)


def _renderers(stream: TextIO, *, console: bool) -> list[Processor]:
    if console:
        # Plain tracebacks: the default ones print local variables, passwords among them.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), timestamp_key="time", exception_formatter=plain)]
    return [_ordered, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str, ensure_ascii=False)]


def _ordered(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Time, level and event first: lines are read by people too."""
    head = {key: event.pop(key) for key in ("time", "level", "event") if key in event}
    return {**head, **event}


def _from_library(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """A library's line as an event of ours with its text as a field: what is searched for stays a closed set."""
    record: logging.LogRecord = event["_record"]
    event["logger"] = record.name
    event["message"] = str(event["event"])
    event["event"] = "library_message"
    if held := getattr(record, "repeats", 0):
        event["repeats"] = held
    return event


class Repeats(logging.Filter):
    """Passes a line once a minute per logger and template, and says how many it held back: outages are logged once, not by the thousand."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the line; a line that was held back before carries the count as `repeats`."""
        now = self._clock()
        key = (record.name, str(record.msg)[:200])
        since, held = self._seen.get(key, (float("-inf"), 0))
        if now - since < _REPEAT_S:
            self._seen[key] = (since, held + 1)
            return False
        if len(self._seen) >= 1_000:  # texts without a template would otherwise pile up
            self._seen.clear()
        self._seen[key] = (now, 0)
        record.repeats = held
        return True
