"""What the demo shows: a live view on a terminal, plain lines elsewhere, a summary at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from anomalyd.alerts.text import number
from anomalyd.demo.fleet import KINDS, STEP_MS
from anomalyd.demo.judge import Judgement

SPARK: Final = 40
"""Samples in a sparkline."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_STYLE: Final[Mapping[str, str]] = {"critical": "bold red", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Status:
    """A moment of the demo."""

    elapsed_s: float
    left_s: float
    event_ms: int
    """Simulated time."""
    records: int
    samples: int
    samples_per_s: float
    series: int
    lag: int
    """Samples produced and not yet scored."""
    fired: int
    firing: Sequence[Mapping[str, Any]]
    """Alert messages."""
    recent: Sequence[Mapping[str, Any]]
    """Likewise, resolved."""
    sparks: Mapping[str, Sequence[float]]
    """Latest values of series that have an alert in `firing`, by key."""
    judgement: Judgement


def sparkline(values: Sequence[float]) -> str:
    """One character a value; a constant is a line at mid-height."""
    finite = np.asarray(values, dtype=np.float64)
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    level = (finite - low) / (high - low) if high > low else np.full(len(finite), 0.5)
    return "".join(_BARS[int(min(x, 0.999) * len(_BARS))] for x in level)


def line(status: Status) -> str:
    """A plain progress line."""
    judgement = status.judgement
    return (
        f"{status.elapsed_s:4.0f} s  {_clock(status.event_ms)}  {status.samples:>9,} samples ({status.samples_per_s:,.0f}/s)  "
        f"{status.series} series  lag {status.lag:,}  {len(status.firing)} firing  "
        f"incidents: {judgement.detected} of {len(judgement.findings)} detected, {len(judgement.false)} false"
    )


def screen(status: Status, rows: int = 8) -> RenderableType:
    """The live view, `rows` alerts at most."""
    judgement = status.judgement
    head = Table.grid(padding=(0, 3))
    head.add_row(
        f"[bold]{_clock(status.event_ms)}[/] simulated",
        f"[bold]{status.samples_per_s:,.0f}[/] samples/s",
        f"[bold]{status.series:,}[/] series",
        f"lag [bold]{status.lag:,}[/]",
        f"incidents [bold green]{judgement.detected}[/] of [bold]{len(judgement.findings)}[/] detected",
        f"[bold]{len(judgement.false)}[/] false in {judgement.series_days:,.0f} series-days",
    )
    firing = Table(box=box.SIMPLE_HEAD, expand=True, title=f"firing ({len(status.firing)})", title_justify="left", title_style="bold")
    for name, justify in (("series", "left"), ("score", "right"), ("value", "right"), ("expected", "right"), ("", "left")):
        firing.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]  # rich's Literal
    for alert in status.firing[:rows]:
        style = _STYLE[alert["severity"]]
        low, high = alert["expected_range"]
        firing.add_row(
            Text(alert["series"]["key"]),
            Text(f"{alert['score']:.1f}", style),
            Text(number(alert["value"]), style),
            f"{number(low)} to {number(high)}",
            Text(sparkline(status.sparks.get(alert["series"]["key"], ())), style),
        )
    recent = Table(box=box.SIMPLE_HEAD, expand=True, title="resolved", title_justify="left", title_style="bold")
    for name, justify in (("series", "left"), ("peak", "right"), ("from", "left"), ("to", "left")):
        recent.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]  # rich's Literal
    for alert in status.recent[: max(3, rows // 2)]:
        recent.add_row(Text(alert["series"]["key"]), f"{alert['peak_score']:.1f}", alert["starts_at"][5:16], alert["ends_at"][5:16])
    return Panel(
        Group(head, firing, recent),
        title="[bold]anomalyd demo[/]: Kafka in, LSTM autoencoder, Kafka out",
        subtitle=f"{status.left_s:.0f} s left, Ctrl-C ends",
    )


def summary(judgement: Judgement, figures: Mapping[str, Any]) -> RenderableType:
    """The closing table."""
    table = Table(box=box.SIMPLE_HEAD, title="anomalyd demo", title_justify="left", title_style="bold")
    for name in ("incidents", "detected", "injected", "median delay"):
        table.add_column(name, justify="left" if name == "incidents" else "right")
    counts = judgement.by_kind()
    for kind in (kind for kind in KINDS if kind in counts):
        detected, injected = counts[kind]
        delays = [f.delay for f in judgement.findings if f.incident.kind == kind and f.delay is not None]
        table.add_row(kind, str(detected), str(injected), samples(float(np.median(delays)) if delays else None))
    table.add_section()
    table.add_row("all", str(judgement.detected), str(len(judgement.findings)), samples(judgement.median_delay))
    false = f"{len(judgement.false)} false episodes in {judgement.series_days:,.1f} series-days"
    rate = f"{figures['samples_scored']:,} samples of {figures['series']:,} series scored, {figures['samples_per_s']:,.0f} a second"
    return Group(
        table,
        f"{false}: {judgement.false_per_10_series_days:.2f} per 10 series-days",
        rate,
        f"{figures['alerts_fired']} alerts fired, {figures['alerts_resolved']} resolved",
    )


def samples(delay: float | None) -> str:
    """A delay in samples and simulated time."""
    return "-" if delay is None else f"{delay:g} samples ({delay * STEP_MS / 60_000:g} min)"


def _clock(event_ms: int) -> str:
    return datetime.fromtimestamp(event_ms / 1000, UTC).strftime("%a %d %b %H:%M")
