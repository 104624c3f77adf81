"""A report as one HTML file that needs nothing but a browser: no network, no fonts, no libraries."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from typing import Final

from anomalyd.alerts.messages import iso
from anomalyd.alerts.text import duration, number
from anomalyd.evaluation.chart import Chart, Episode, Window, draw, severity_class
from anomalyd.evaluation.sketch import Sketch

__all__ = ["MAX_CHARTS", "Chart", "Episode", "Figure", "Report", "Section", "Table", "Window", "render"]

MAX_CHARTS: Final = 100
"""A browser shows this many without effort, and nobody looks at more."""

_MAX_ROWS: Final = 1000

_LEGEND: Final = (
    ('<path class="value" d="M1,8L9,3L17,9L25,4"/>', "value"),
    ('<path class="expected" d="M0,6H26"/>', "expected"),
    ('<path class="band" d="M0,1H26V11H0Z"/>', "expected range"),
    ('<path class="score" d="M0,11L8,9L13,2L18,9L26,11Z"/>', "score (square root; 1 is the threshold)"),
    ('<rect class="warning" width="26" height="9" y="2"/>', "alert, warning"),
    ('<rect class="critical" width="26" height="9" y="2"/>', "alert, critical"),
    ('<rect class="truth" width="26" height="9" y="2"/>', "known incident"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A number worth a glance."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first thousand are shown."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """Charts that belong together, the most telling first."""

    title: str
    charts: Sequence[Chart] = ()
    text: str = ""
    table: Table | None = None
    sketches: Sequence[Sketch] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What a page says."""

    title: str
    figures: Sequence[Figure] = ()
    sections: Sequence[Section] = ()
    text: str = ""


def render(report: Report, max_charts: int = MAX_CHARTS) -> str:
    """The page, a function of its arguments only.

    Args:
        report: what to say. All texts are plain; whatever they hold is escaped.
        max_charts: of all sections together; each section says how many of its charts are left out.
    """
    parts = []
    left = max_charts
    for index, section in enumerate(report.sections):
        shown = section.charts[:left]
        left -= len(shown)
        parts.append(_section(section, shown, f"s{index}"))
    script = _file("report.js")
    # The page may run this script and nothing else, whatever a series is called.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_hash(script)}'"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report.title)}</title>\n<style>\n{_file('report.css')}</style>\n</head>\n<body>\n<main>",
            f"<header>\n<h1>{escape(report.title)}</h1>{_paragraph(report.text)}\n</header>",
            _figures(report.figures),
            _contents(report.sections),
            _legend(report.sections),
            *parts,
            f"</main>\n<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    cells = "".join(f"<div><dt>{escape(f.label)}</dt><dd>{escape(f.value)}</dd></div>" for f in figures)
    return f'<dl class="summary">{cells}</dl>'


def _contents(sections: Sequence[Section]) -> str:
    if len(sections) < 2:  # one section needs no list
        return ""
    entries = "".join(f'<li><a href="#s{i}">{escape(s.title)}</a></li>' for i, s in enumerate(sections))
    return f'<nav aria-label="Sections"><ul>{entries}</ul></nav>'


def _legend(sections: Sequence[Section]) -> str:
    charts = [chart for section in sections for chart in section.charts]
    if not charts:
        return ""
    entries = _LEGEND if any(chart.windows for chart in charts) else _LEGEND[:-1]
    return (
        '<ul class="legend">' + "".join(f'<li><svg viewBox="0 0 26 12" aria-hidden="true">{d}</svg>{t}</li>' for d, t in entries) + "</ul>"
    )


def _section(section: Section, shown: Sequence[Chart], name: str) -> str:
    missing = len(section.charts) - len(shown)
    note = f'<p class="quiet">{missing} more {"chart is" if missing == 1 else "charts are"} left out.</p>' if missing else ""
    table = _table(section.table) if section.table else ""
    charts = "\n".join([*(_chart(chart, f"{name}c{i}") for i, chart in enumerate(shown)), *map(_sketch, section.sketches)])
    return f'<section id="{name}">\n<h2>{escape(section.title)}</h2>{_paragraph(section.text)}{table}\n{charts}{note}\n</section>'


def _chart(chart: Chart, name: str) -> str:
    drawing = draw(chart, name)
    caption = f'<figcaption><span class="series">{escape(chart.series)}</span>{_paragraph(chart.caption)}</figcaption>'
    if not drawing.svg:
        return f'<figure id="{name}">{caption}<p class="quiet">No samples.</p></figure>'
    # Numbers only, so nothing in it can end the element early.
    points = json.dumps(drawing.points, allow_nan=False, separators=(",", ":"))
    return (
        f'<figure id="{name}">{caption}{drawing.svg}<output></output>{_episodes(chart)}'
        f'<script type="application/json">{points}</script></figure>'
    )


def _sketch(sketch: Sketch) -> str:
    return f"<figure><figcaption>{escape(sketch.title)}</figcaption>{sketch.svg}</figure>"


def _episodes(chart: Chart) -> str:
    """The alerts of a chart in words, folded."""
    if not chart.episodes:
        return ""
    rows = [
        (
            iso(episode.start_ms),
            "still open" if episode.end_ms is None else iso(episode.end_ms),
            "" if episode.end_ms is None else duration(max(0, episode.end_ms - episode.start_ms)),
            severity_class(episode.severity),
            number(episode.peak_score),
        )
        for episode in chart.episodes
    ]
    count = len(chart.episodes)
    table = _table(Table(("start", "end", "lasted", "severity", "peak score"), rows))
    return f"<details><summary>{count} alert{'s' if count != 1 else ''}</summary>{table}</details>"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows[:_MAX_ROWS])
    missing = len(table.rows) - _MAX_ROWS
    note = f'<p class="quiet">{missing} more rows are left out.</p>' if missing > 0 else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}'


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


@cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
