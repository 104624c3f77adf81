"""What a log line looks like, and that outages do not flood."""

import io
import json
import logging
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from anomalyd.settings import LogFormat, LogLevel, LogSettings
from anomalyd.telemetry.logging import Repeats, configure

Start = Callable[..., io.StringIO]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def start() -> Iterator[Start]:
    """Configures logging onto a fresh stream; afterwards all is as it was."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    def starter(level: LogLevel = "info", format_: LogFormat = "json", stream: io.StringIO | None = None) -> io.StringIO:
        stream = stream or io.StringIO()
        configure(LogSettings(level=level, format=format_), stream)
        return stream

    yield starter
    root.handlers, root.level = before
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_time_level_and_event_first(start: Start) -> None:
    stream = start()
    structlog.get_logger("x").info("kafka_reached", servers="a:1", topic="µ")
    (line,) = lines(stream)

    assert list(line) == ["time", "level", "event", "servers", "topic"]
    assert line["time"].endswith("Z")
    assert (line["level"], line["event"], line["topic"]) == ("info", "kafka_reached", "µ")


def test_level_holds_back_what_is_below(start: Start) -> None:
    stream = start(level="warning")
    log = structlog.get_logger()
    log.info("kafka_reached")
    log.warning("kafka_unreachable")

    assert [line["event"] for line in lines(stream)] == ["kafka_unreachable"]


def test_values_that_are_not_json_are_written_as_text(start: Start) -> None:
    stream = start()
    structlog.get_logger().info("started", partitions={1}, error=ValueError("no"))

    assert lines(stream)[0]["partitions"] == "{1}"


def test_traceback_is_a_field_of_one_line(start: Start) -> None:
    stream = start()
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("record_crashed")
    (line,) = lines(stream)

    assert line["exception"].startswith("Traceback")
    assert "RuntimeError: broken" in line["exception"]


def test_terminal_gets_readable_lines_and_never_the_values_of_variables(start: Start) -> None:
    stream = start(format_="auto", stream=Terminal())
    password = str(10**9 + 7)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        structlog.get_logger().exception("record_crashed", offset=5)

    assert "record_crashed" in stream.getvalue()
    assert "RuntimeError: broken" in stream.getvalue()
    assert password not in stream.getvalue()


def test_auto_is_json_off_a_terminal(start: Start) -> None:
    stream = start(format_="auto")
    structlog.get_logger().info("kafka_reached")

    assert lines(stream)[0]["event"] == "kafka_reached"


def test_libraries_speak_in_the_same_shape_from_warning_on(start: Start) -> None:
    stream = start(level="debug")
    logging.getLogger("aiohttp.server").warning("lost %s", "x")
    logging.getLogger("asyncio").info("selector")
    (line,) = lines(stream)

    assert (line["event"], line["level"], line["logger"], line["message"]) == ("library_message", "warning", "aiohttp.server", "lost x")


def test_a_libraries_traceback_is_a_field(start: Start) -> None:
    stream = start()
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("asyncio").exception("Task exception was never retrieved")

    assert "RuntimeError: broken" in lines(stream)[0]["exception"]


def test_python_warnings_come_as_lines(start: Start) -> None:
    stream = start()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("careful", stacklevel=1)

    assert lines(stream)[0]["logger"] == "py.warnings"


def test_configuring_again_does_not_double_lines(start: Start) -> None:
    start()
    stream = start()
    logging.getLogger("a").warning("once")
    structlog.get_logger().info("started")

    assert len(lines(stream)) == 2


def test_repeated_lines_of_a_library_are_counted_and_shown_once_a_minute() -> None:
    now = [0.0]
    repeats = Repeats(clock=lambda: now[0])

    def say(template: str, *args: object, logger: str = "a") -> logging.LogRecord | None:
        record = logging.LogRecord(logger, logging.WARNING, __file__, 1, template, args, None)
        return record if repeats.filter(record) else None

    assert say("node %s away", 1) is not None
    for _ in range(9):
        assert say("node %s away", 2) is None
    assert say("something else") is not None
    assert say("node %s away", 1, logger="b") is not None
    now[0] = 60.0
    later = say("node %s away", 3)
    assert later is not None
    assert later.__dict__["repeats"] == 9


def test_texts_without_a_template_do_not_pile_up() -> None:
    repeats = Repeats(clock=lambda: 0.0)
    tracemalloc.start()
    for i in range(5000):
        assert repeats.filter(logging.LogRecord("a", logging.WARNING, __file__, 1, f"text {i}", (), None))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < 500_000
