import io

import pytest
from rich.console import Console

from anomalyd.demo import view
from anomalyd.demo.fleet import START_MS, STEP_MS, Incident
from anomalyd.demo.judge import Episode, Finding, Judgement

HIT = Finding(Incident(0, "a", "drop", START_MS, START_MS + 20 * STEP_MS, 0.1), Episode("a", START_MS + 3 * STEP_MS))
KEY = 'web.requests{host="web-01"}'
ALERT = {
    "alert_id": "1",
    "status": "firing",
    "series": {"key": KEY},
    "severity": "critical",
    "score": 4.25,
    "peak_score": 6.5,
    "value": 12.0,
    "expected_range": [30.0, 40.0],
    "starts_at": "2026-01-05T10:20:00.000Z",
    "ends_at": "2026-01-05T10:50:00.000Z",
}


def status(alerts: int = 1) -> view.Status:
    return view.Status(
        elapsed_s=12,
        left_s=33,
        event_ms=START_MS + 600 * STEP_MS,
        samples=120_000,
        samples_per_s=15_000,
        series=222,
        lag=40,
        firing=1,
        alerts=[view.Shown(ALERT, [1.0, 2.0, 8.0], "drop"), view.Shown(ALERT | {"status": "resolved"}, [], "")] * alerts,
        judgement=Judgement((HIT,), (Episode("b", START_MS),), 83.3),
    )


def text(renderable: object, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_sparkline_shows_the_shape() -> None:
    assert view.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert view.sparkline([5, 5, 5]) == "▅▅▅"
    assert view.sparkline([]) == ""


def test_a_line_says_how_it_stands() -> None:
    line = view.line(status())

    for part in ("120,000 samples (15,000/s)", "222 series", "lag 40", "1 firing", "1 of 1 detected, 1 false", "Mon 05 Jan 10:00"):
        assert part in line


def test_the_live_view_shows_value_against_expected_with_a_sparkline() -> None:
    shown = text(view.screen(status(), width=140), width=140)

    for part in (KEY, "6.5", "12", "30 to 40", "▁▂█", "drop", "33 s left", "15,000 samples/s", "1 of 1 incidents detected"):
        assert part in shown


@pytest.mark.parametrize("width", [80, 100])
def test_the_live_view_fits_a_narrow_terminal(width: int) -> None:
    """The series' names stay: they are what one looks for."""
    lines = text(view.screen(status(alerts=50), width=width), width=width).splitlines()

    assert max(map(len, lines)) <= width
    assert len(lines) < 40
    assert any(KEY in line for line in lines)


def test_the_summary_has_every_kind_that_was_injected() -> None:
    figures = {"samples_scored": 120_000, "series": 222, "samples_per_s": 15_000.0, "alerts_fired": 2, "alerts_resolved": 1}

    shown = text(view.summary(status().judgement, figures), width=80)

    for part in (
        "drop",
        "3 samples (3 min)",
        "1 false episodes in 83.3 series-days",
        "0.12 per 10 series-days",
        "2 alerts fired, 1 resolved",
    ):
        assert part in shown
    assert "flatline" not in shown
