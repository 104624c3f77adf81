"""The log's vocabulary and the code say the same."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from anomalyd.telemetry.events import EVENTS

PACKAGE = Path(__file__).parent.parent.parent / "anomalyd"
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


def logged() -> Iterator[tuple[str, str, str]]:
    """Every (event, level, place) that the package logs: calls such as `_log.info("name", …)`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log" | "_log"), attr=method), args=[first, *_]) if method in LEVELS:
                    assert isinstance(first, ast.Constant), f"{path}:{node.lineno}: an event's name is written out"
                    yield str(first.value), LEVELS[method], f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_every_logged_event_is_in_the_vocabulary_with_its_level() -> None:
    wrong = [f"{where}: {event} at {level}" for event, level, where in logged() if event not in EVENTS or EVENTS[event].level != level]
    assert wrong == []


def test_every_event_of_the_vocabulary_is_logged() -> None:
    assert set(EVENTS) - {event for event, _, _ in logged()} == {"library_message"}


def test_events_are_named_alike_and_tell_what_to_do() -> None:
    for name, event in EVENTS.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert event.meaning.endswith(".")
        assert (event.action != "nothing") or event.level in {"debug", "info"}
