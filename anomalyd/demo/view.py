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

BEFORE: Final = 18
AFTER: Final = 12
"""Samples in a sparkline before an alert fired and after it."""
_BARS: Final = "▁▂▃▄▅▆▇█"
_STYLE: Final[Mapping[str, str]] = {"critical": "bold red", "warning": "yellow"}


@dataclass(frozen=True, slots=True)
class Shown:
    """An alert with what is known about it."""

    alert: Mapping[str, Any]
    """Its latest message."""
    values: Sequence[float]
    """Of its series around the moment in which it fired."""
    truth: str
    """Kind of the incident behind it; empty: none."""


@dataclass(frozen=True, slots=True)
class Status:
    """A moment of the demo."""

    elapsed_s: float
    left_s: float
    event_ms: int
    """Simulated time."""
    samples: int
    samples_per_s: float
    series: int
    lag: int
    """Samples produced and not yet scored."""
    firing: int
    """Alerts that fire now."""
    alerts: Sequence[Shown]
    """The latest, newest first."""
    judgement: Judgement


def sparkline(values: Sequence[float]) -> str:
    """One character a value; a constant is a line at mid-height."""
    finite = np.asarray(values, dtype=np.float64)
    if not len(finite):
        return ""
    low, high = float(finite.min()), float(finite.max())
    level = (finite - low) / (high - low) if high > low else np.full(len(finite), 0.5)
    return "".join(_BARS[int(min(x, 0.999) * len(_BARS))] for x in level)


_WIDE: Final = 130
_MIDDLING: Final = 100
"""Columns of a terminal from which the expected range and the latest values have room beside a series' name."""


def line(status: Status) -> str:
    """A plain progress line."""
    judgement = status.judgement
    return (
        f"{status.elapsed_s:4.0f} s  {_clock(status.event_ms)}  {status.samples:>9,} samples ({status.samples_per_s:,.0f}/s)  "
        f"{status.series} series  lag {status.lag:,}  {status.firing} firing  "
        f"incidents: {judgement.detected} of {len(judgement.findings)} detected, {len(judgement.false)} false"
    )


def screen(status: Status, rows: int = 8, width: int = 120) -> RenderableType:
    """The live view, `rows` alerts at most; on a narrow terminal the series' names stay and other columns go."""
    judgement = status.judgement
    head = (
        f"[bold]{_clock(status.event_ms)}[/] simulated   [bold]{status.samples_per_s:,.0f}[/] samples/s   "
        f"[bold]{status.series:,}[/] series   lag [bold]{status.lag:,}[/]   [bold]{status.firing}[/] firing"
    )
    truth = (
        f"[bold green]{judgement.detected}[/] of [bold]{len(judgement.findings)}[/] incidents detected   "
        f"[bold]{len(judgement.false)}[/] false alerts in {judgement.series_days:,.0f} series-days"
    )
    table = Table(box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    table.add_column("alert", no_wrap=True, overflow="ellipsis", ratio=1)
    expectation, spark = width >= _WIDE, width >= _MIDDLING
    for name in ("score", "value", *(("expected",) if expectation else ())):
        table.add_column(name, justify="right", no_wrap=True)
    if spark:
        table.add_column("", no_wrap=True, width=BEFORE + AFTER)
    table.add_column("truth", no_wrap=True, width=8)
    for shown in status.alerts[:rows]:
        alert = shown.alert
        style = "dim" if alert["status"] == "resolved" else _STYLE[alert["severity"]]
        low, high = alert["expected_range"]
        cells = [Text(alert["series"]["key"], style), Text(f"{alert['peak_score']:.1f}", style), Text(number(alert["value"]), style)]
        if expectation:
            cells.append(Text(f"{number(low)} to {number(high)}", style))
        if spark:
            cells.append(Text(sparkline(shown.values), _STYLE[alert["severity"]]))
        table.add_row(*cells, Text(shown.truth, "green") if shown.truth else Text("-", "dim"))
    return Panel(
        Group(head, truth, table),
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
