"""One series as an SVG drawing: value against what was expected, alerts, known incidents, and the score."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.messages import iso
from anomalyd.alerts.text import number

Floats = NDArray[np.float64]
Number = TypeVar("Number", float, Floats)

POINTS: Final = 600
"""A drawing holds about as many points as it has pixels to show them."""

WIDTH: Final = 960
_LEFT: Final = 66
_RIGHT: Final = WIDTH - 12
_TOP: Final = 8
_VALUE_HEIGHT: Final = 150
_STRIP_HEIGHT: Final = 9
_STRIP_GAP: Final = 5
_SCORE_GAP: Final = 13
_SCORE_HEIGHT: Final = 52
_AXIS_HEIGHT: Final = 22
_LARGEST: Final = 1e300  # differences of what is drawn stay finite

_SECOND: Final = 1000
_DAY: Final = 86_400_000
_TIME_STEPS: Final = tuple(
    [m * _SECOND for m in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)]
    + [d * _DAY for d in (1, 2, 7, 14, 30, 91, 182, 365, 730, 1826, 3652)]
)


@dataclass(frozen=True, slots=True)
class Episode:
    """An alert, from start to end."""

    start_ms: int
    end_ms: int | None
    """None: still open."""
    severity: str
    """warning | critical."""
    peak_score: float


@dataclass(frozen=True, slots=True)
class Window:
    """An incident whose truth is known."""

    start_ms: int
    end_ms: int
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One series over time; all columns have shape (n,), rows in any order. Rows with a number that is not finite are not drawn."""

    series: str
    """Canonical key."""
    times_ms: NDArray[np.int64]
    value: Floats
    low: Floats
    high: Floats
    expected: Floats
    score: Floats
    """1.0 is the threshold."""
    episodes: Sequence[Episode] = ()
    windows: Sequence[Window] = ()
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a page shows of a chart."""

    svg: str
    points: dict[str, list[float]]
    """The drawn points, for reading values off: `x` in pixels of the drawing, `time` in ms, `value`, `expected`, `low`, `high`, `score`."""


def draw(chart: Chart, name: str) -> Drawing:
    """Draws a chart.

    Args:
        chart: what to draw.
        name: unique in the page; prefix of the drawing's element ids.
    """
    chart = _drawable(chart)
    if not len(chart.times_ms):
        return Drawing("", {})
    chosen = thin(chart.value, chart.score, POINTS)
    time = chart.times_ms[chosen]
    drawn = {c: np.clip(getattr(chart, c)[chosen], -_LARGEST, _LARGEST) for c in ("value", "expected", "low", "high", "score")}
    value, expected, low, high, score = drawn.values()
    first, last = int(time[0]), int(time[-1])
    across = _Scale(first, max(last, first + 1), _LEFT, _RIGHT)
    x = across(time.astype(np.float64))

    bottom = _TOP + _VALUE_HEIGHT
    least, greatest = _value_range(value, expected, low, high)
    upright = _Scale(least, greatest, bottom, _TOP)
    # Far outside of the drawing is far enough: a browser has no use for a billion pixels.
    low, high, expected = (np.clip(c, 2 * least - greatest, 2 * greatest - least) for c in (low, high, expected))
    parts = [
        f'<clipPath id="{name}-clip"><rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_VALUE_HEIGHT}"/></clipPath>',
        *(_grid_line(upright(tick), number(tick)) for tick in ticks(upright.low, upright.high)),
    ]
    parts += [_box("truth-shade", across, w.start_ms, w.end_ms, _TOP, _VALUE_HEIGHT) for w in chart.windows]
    parts += [_box("episode-shade", across, e.start_ms, _end(e, last), _TOP, _VALUE_HEIGHT) for e in chart.episodes]
    band = f"{_path(x, upright(high))}L{_points(x[::-1], upright(low)[::-1])}Z"
    parts += [
        f'<g clip-path="url(#{name}-clip)">',
        f'<path class="band" d="{band}"/>',
        f'<path class="expected" d="{_path(x, upright(expected))}"/>',
        f'<path class="value" d="{_path(x, upright(value))}"/>',
        "</g>",
    ]

    bottom += _STRIP_GAP
    if chart.windows:
        parts.append(_label(bottom + _STRIP_HEIGHT, "truth"))
        parts += [_box("truth", across, w.start_ms, w.end_ms, bottom, _STRIP_HEIGHT, _window_title(w)) for w in chart.windows]
        bottom += _STRIP_HEIGHT + _STRIP_GAP
    parts.append(_label(bottom + _STRIP_HEIGHT, "alerts"))
    parts += [
        _box(severity_class(e.severity), across, e.start_ms, _end(e, last), bottom, _STRIP_HEIGHT, episode_text(e)) for e in chart.episodes
    ]
    bottom += _STRIP_HEIGHT + _SCORE_GAP

    # The square root shows the threshold and a score of 50 in one picture.
    highest = max(2.0, float(score.max()))
    strange = _Scale(0.0, math.sqrt(highest), bottom + _SCORE_HEIGHT, bottom)
    root = np.sqrt(np.maximum(score, 0.0))
    parts += [
        _grid_line(strange(0.0), "0"),
        _grid_line(strange(math.sqrt(highest)), number(highest)),
        f'<path class="score" d="{_path(x, strange(root))}L{x[-1]:.1f},{strange(0.0):.1f}L{x[0]:.1f},{strange(0.0):.1f}Z"/>',
        f'<path class="threshold" d="M{_LEFT},{strange(1.0):.1f}H{_RIGHT}"/>',
        _label(strange(1.0) + 3, "score 1"),
    ]
    bottom += _SCORE_HEIGHT

    for tick, text in time_ticks(first, last):
        parts.append(f'<path class="grid" d="M{across(tick):.1f},{_TOP}V{bottom}"/>')
        anchor = "end" if across(tick) > _RIGHT - 40 else "middle" if across(tick) > _LEFT + 40 else "start"
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 15}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<path class="cursor" d="M0,{_TOP}V{bottom}" visibility="hidden"/>')
    height = bottom + _AXIS_HEIGHT
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" tabindex="0" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(chart.series)}</title><desc id="{name}-text">{escape(_in_words(chart))}</desc>'
        f"{''.join(parts)}</svg>"
    )
    points = {"x": [round(v, 1) for v in x.tolist()], "time": time.tolist()}
    return Drawing(svg, points | {name: [float(f"{v:.5g}") for v in column.tolist()] for name, column in drawn.items()})


def thin(value: Floats, score: Floats, points: int) -> NDArray[np.int64]:
    """Indices, ascending, of about `points` samples that look like all of them.

    Of each stretch these are its least and greatest value and its greatest score.
    """
    n = len(value)
    if n <= points:
        return np.arange(n)
    edges = np.linspace(0, n, max(1, points // 3) + 1).astype(np.int64)
    chosen = [0, n - 1]
    for start, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        stretch = value[start:end]
        chosen += [start + int(stretch.argmin()), start + int(stretch.argmax()), start + int(score[start:end].argmax())]
    return np.unique(np.array(chosen, np.int64))


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers between low and high."""
    raw = (high - low) / 4
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next((m * scale for m in (1, 2, 2.5, 5) if m * scale >= raw), 10 * scale)
    first = math.ceil(low / step)
    return [i * step for i in range(first, first + 8) if i * step <= high]


def time_ticks(first_ms: int, last_ms: int) -> list[tuple[int, str]]:
    """At most nine round moments between the two, and how to write them (UTC)."""
    step = next((s for s in _TIME_STEPS if (last_ms - first_ms) / s <= 8), _TIME_STEPS[-1])
    while (last_ms - first_ms) / step > 8:
        step *= 2
    start = -(-first_ms // step) * step
    out, day = [], ""
    for moment in range(start, last_ms + 1, step):
        text = iso(moment)
        date, clock = text[:10], text[11:19] if step < 60 * _SECOND else text[11:16]
        # The date stands where it changes; days need no clock.
        out.append((moment, date if step >= _DAY else clock if date == day else f"{date[5:]} {clock}"))
        day = date
    return out


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps low..high to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, v: Number) -> Number:
        return self.start + (v - self.low) * ((self.end - self.start) / (self.high - self.low))


def _drawable(chart: Chart) -> Chart:
    """Rows with finite numbers, in the order of time."""
    columns = (chart.value, chart.low, chart.high, chart.expected, chart.score)
    order = np.argsort(chart.times_ms, kind="stable")
    keep = order[np.logical_and.reduce([np.isfinite(c[order]) for c in columns])]
    value, low, high, expected, score = (c[keep] for c in columns)
    return replace(chart, times_ms=chart.times_ms[keep], value=value, low=low, high=high, expected=expected, score=score)


def _value_range(value: Floats, expected: Floats, low: Floats, high: Floats) -> tuple[float, float]:
    """What the drawing shows: every value, and of band and expectation what lies no further away than the values reach."""
    least, greatest = float(value.min()), float(value.max())
    # What differs by less than this is flat, and a flat line lies in the middle.
    flat = max(1e-9 * max(abs(least), abs(greatest)), 1e-290)
    reach = max(greatest - least, flat)
    # Extreme ends of a band belong to moments of doubt; they would press everything else flat.
    around = np.concatenate([np.quantile(low, [0.05]), np.quantile(high, [0.95]), np.quantile(expected, [0.01, 0.99])])
    least = max(min(least, float(around.min())), least - reach)
    greatest = min(max(greatest, float(around.max())), greatest + reach)
    margin = 0.04 * (greatest - least) if greatest - least > flat else 0.05 * abs(least) if abs(least) > flat else 1.0
    return least - margin, greatest + margin


def _end(episode: Episode, last_ms: int) -> int:
    return last_ms if episode.end_ms is None else episode.end_ms


def _points(x: Floats, y: Floats) -> str:
    return "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _path(x: Floats, y: Floats) -> str:
    return "M" + _points(x, y)


def _box(style: str, across: _Scale, start_ms: int, end_ms: int, top: float, height: float, title: str = "") -> str:
    """A stretch of time; never thinner than can be seen, nothing where it lies outside the drawing."""
    if end_ms < across.low or start_ms > across.high:
        return ""
    left, right = across(float(max(start_ms, across.low))), across(float(min(end_ms, across.high)))
    text = f"<title>{escape(title)}</title>" if title else ""
    return f'<rect class="{style}" x="{left:.1f}" y="{top}" width="{max(right - left, 2.0):.1f}" height="{height}">{text}</rect>'


def _grid_line(y: float, text: str) -> str:
    return f'<path class="grid" d="M{_LEFT},{y:.1f}H{_RIGHT}"/>' + _label(y + 3, text)


def _label(y: float, text: str) -> str:
    return f'<text x="{_LEFT - 6}" y="{y:.1f}" text-anchor="end">{escape(text)}</text>'


def severity_class(severity: str) -> str:
    """The style of a severity."""
    return "critical" if severity == "critical" else "warning"


def episode_text(episode: Episode) -> str:
    """An episode in words."""
    end = "still open" if episode.end_ms is None else f"to {iso(episode.end_ms)}"
    return f"{episode.severity}, peak score {number(episode.peak_score)}, {iso(episode.start_ms)} {end}"


def _window_title(window: Window) -> str:
    return f"{window.label}, {iso(window.start_ms)} to {iso(window.end_ms)}"


def _in_words(chart: Chart) -> str:
    """The drawing for those who do not see it."""
    told = [
        f"{len(chart.value)} samples from {iso(int(chart.times_ms[0]))} to {iso(int(chart.times_ms[-1]))}",
        f"values {number(float(chart.value.min()))} to {number(float(chart.value.max()))}",
        f"highest score {number(float(chart.score.max()))}",
        f"alerts: {len(chart.episodes)}",
        f"known incidents: {len(chart.windows)}",
    ]
    return "; ".join(told)
