"""Small drawings of numbers without time: bars, courses over a few steps, and where values lie in their usual range. SVG as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from anomalyd.alerts.text import number
from anomalyd.evaluation.chart import WIDTH, ticks

_NAMES: Final = 150
_NUMBERS: Final = 60
_ROW: Final = 20
_HEIGHT: Final = 130
_LEFT: Final = 66
_RIGHT: Final = WIDTH - 12
_TOP: Final = 10
_FLAT: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Sketch:
    """A drawing that needs no script."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Line:
    """A course over steps, drawn in one of the styles of the page: value | expected | threshold."""

    label: str
    style: str
    values: Sequence[float]


def bars(title: str, rows: Sequence[tuple[str, float]], mark: tuple[str, float] | None = None) -> Sketch:
    """Lengths side by side, with their numbers.

    Args:
        title: what it is.
        rows: name and length, none negative.
        mark: name and length of something to compare them with.
    """
    lengths = [length for _, length in rows] + ([mark[1]] if mark else [])
    scale = (WIDTH - _NAMES - _NUMBERS) / max(_FLAT, *lengths)
    parts = []
    for i, (name, length) in enumerate(rows):
        y, width = _TOP + i * _ROW, length * scale
        parts.append(f'<text x="{_NAMES - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect class="score" x="{_NAMES}" y="{y + 2}" width="{max(width, 0.5):.1f}" height="{_ROW - 6}"/>')
        parts.append(f'<text x="{_NAMES + width + 6:.1f}" y="{y + 13}">{number(length)}</text>')
    height = _TOP + len(rows) * _ROW + 4
    if mark:
        x = _NAMES + mark[1] * scale
        parts.append(f'<path class="threshold" d="M{x:.1f},{_TOP - 6}V{height}"/>')
        parts.append(f'<text x="{x - 4:.1f}" y="{height + 12}" text-anchor="end">{escape(mark[0])} {number(mark[1])}</text>')
        height += 18
    told = ", ".join(f"{name} {number(length)}" for name, length in rows)
    return Sketch(title, _svg(title, told, height, parts))


def courses(title: str, lines: Sequence[Line], bounds: tuple[float, float] | None = None) -> Sketch:
    """Lines over the same steps, the last of which is 0.

    Args:
        title: what it is.
        lines: of equal length, at least one.
        bounds: least and greatest of the scale; None: of the lines.
    """
    values = [value for line in lines for value in line.values]
    low, high = bounds or _widened(min(values), max(values))
    steps = len(lines[0].values)
    parts = _grid(low, high)
    for line in lines:
        points = [f"{_across(t, steps):.1f},{_upright(v, low, high):.1f}" for t, v in enumerate(line.values)]
        parts.append(f'<path class="{line.style}" d="M{"L".join(points)}"><title>{escape(line.label)}</title></path>')
    for t in range(steps):
        parts.append(f'<text x="{_across(t, steps):.1f}" y="{_TOP + _HEIGHT + 15}" text-anchor="middle">{t - steps + 1}</text>')
    told = "; ".join(f"{line.label}: {', '.join(map(number, line.values))}" for line in lines)
    return Sketch(title, _svg(title, told, _TOP + _HEIGHT + 22, parts))


def curves(title: str, lines: Sequence[tuple[Line, Sequence[float]]], mark: tuple[str, float] | None = None) -> Sketch:
    """Lines over a scale of numbers of their own, such as losses over steps.

    Args:
        title: what it is.
        lines: each with the place of each of its values, ascending; none is empty.
        mark: name and place of a moment to point out.
    """
    values = [value for line, _ in lines for value in line.values]
    places = [place for _, own in lines for place in own]
    (low, high), (first, last) = _widened(min(values), max(values)), (min(places), max(places))
    span = max(last - first, _FLAT)

    def across(place: float) -> float:
        return _LEFT + 14 + (place - first) * (_RIGHT - _LEFT - 28) / span

    bottom = _TOP + _HEIGHT
    parts = _grid(low, high)
    for line, own in lines:
        points = [f"{across(x):.1f},{_upright(v, low, high):.1f}" for x, v in zip(own, line.values, strict=True)]
        parts.append(f'<path class="{line.style}" d="M{"L".join(points)}"><title>{escape(line.label)}</title></path>')
    if mark:
        parts.append(f'<path class="threshold" d="M{across(mark[1]):.1f},{_TOP}V{bottom}"><title>{escape(mark[0])}</title></path>')
    for tick in ticks(first, last) if last > first else [first]:
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{number(tick)}</text>')
    for i, (line, _) in enumerate(lines):
        x = _LEFT + 14 + i * 240
        parts.append(f'<path class="{line.style}" d="M{x},{bottom + 30}H{x + 26}"/>')
        parts.append(f'<text x="{x + 34}" y="{bottom + 34}">{escape(line.label)}</text>')
    told = "; ".join(f"{line.label}: {number(line.values[0])} to {number(line.values[-1])}" for line, _ in lines)
    return Sketch(title, _svg(title, told, bottom + 42, parts))


def places(title: str, values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> Sketch:
    """Values (a stroke each) in their usual ranges (a box each), side by side; what lies outside of its range stands out."""
    least, greatest = _widened(min(*values, *low), max(*values, *high))
    parts = _grid(least, greatest)
    wide = (_RIGHT - _LEFT) / len(values)
    outside = []
    for i, (value, a, b) in enumerate(zip(values, low, high, strict=True)):
        x, top, bottom, y = _LEFT + i * wide, *(_upright(v, least, greatest) for v in (b, a, value))
        box = f'x="{x + 0.15 * wide:.1f}" y="{top:.1f}" width="{0.7 * wide:.1f}" height="{max(bottom - top, 0.5):.1f}"'
        parts.append(f'<rect class="band" {box}/>')
        strange = not a <= value <= b
        place = f'x="{x + 0.1 * wide:.1f}" y="{y - 1.5:.1f}" width="{0.8 * wide:.1f}" height="3"'
        told = f"unit {i}: {number(value)}, usually {number(a)} to {number(b)}"
        parts.append(f'<rect class="{"critical" if strange else "truth"}" {place}><title>{told}</title></rect>')
        outside += [str(i)] if strange else []
    described = f"{len(values)} units; outside of their usual range: {', '.join(outside) or 'none'}"
    return Sketch(title, _svg(title, described, _TOP + _HEIGHT + 8, parts))


def _widened(low: float, high: float) -> tuple[float, float]:
    """A scale for what lies between the two; what is equal but for rounding lies in its middle."""
    size = max(abs(low), abs(high))
    margin = 0.06 * (high - low) if high - low > _FLAT * size else 0.5 * size or 1.0
    return low - margin, high + margin


def _across(t: int, steps: int) -> float:
    return _LEFT + 14 + t * (_RIGHT - _LEFT - 28) / max(1, steps - 1)


def _upright(value: float, low: float, high: float) -> float:
    return _TOP + _HEIGHT * (high - value) / (high - low)


def _grid(low: float, high: float) -> list[str]:
    parts = []
    for tick in ticks(low, high):
        y = _upright(tick, low, high)
        parts.append(f'<path class="grid" d="M{_LEFT},{y:.1f}H{_RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3:.1f}" text-anchor="end">{number(tick)}</text>')
    return parts


def _svg(title: str, told: str, height: float, parts: Sequence[str]) -> str:
    label = escape(f"{title}. {told}", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
