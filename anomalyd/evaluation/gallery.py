"""The report of a backtest: a chart for each series, the strangest first."""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.messages import Alert
from anomalyd.evaluation.chart import Chart, Episode, Window
from anomalyd.evaluation.readers import Table
from anomalyd.evaluation.replay import Replay, Trace
from anomalyd.evaluation.report import MAX_CHARTS, Figure, Report, Section, render
from anomalyd.evaluation.report import Table as ReportTable


class Gallery:
    """Collects charts, never more than fit a page."""

    def __init__(self, size: int = MAX_CHARTS) -> None:
        self._size = size
        self._order = count()  # equal peaks: the earlier series stays in front
        self._charts: list[tuple[float, int, Chart]] = []

    def hang(self, replay: Replay, table: Table | None) -> None:
        """Takes the series of a file in, as far as they are among the strangest so far."""
        alerts: dict[str, list[Alert]] = {}
        for alert in replay.alerts:
            alerts.setdefault(alert.series.key, []).append(alert)
        trace = replay.trace
        peaks = np.zeros(len(trace.keys))
        np.maximum.at(peaks, trace.series, trace.verdicts.score)
        for series in np.argsort(-peaks, kind="stable")[: self._size].tolist():
            rank = (float(peaks[series]), -next(self._order))
            if len(self._charts) == self._size and rank < self._charts[0][:2]:
                break
            key = trace.keys[series]
            chart = chart_of(trace, np.flatnonzero(trace.series == series), tuple(episodes(alerts.get(key, ()))), table)
            push = heapq.heappushpop if len(self._charts) == self._size else heapq.heappush
            push(self._charts, (*rank, chart))

    def page(self, files: Sequence[Mapping[str, Any]], took_s: float) -> str:
        """The page. `files` are rows of path, series, samples, episodes."""
        series, samples, fired = (sum(int(file[name]) for file in files) for name in ("series", "samples", "episodes"))
        charts = [chart for _, _, chart in sorted(self._charts, key=lambda item: item[:2], reverse=True)]
        rows = [[str(file["path"]), *(f"{file[name]:,}" for name in ("series", "samples", "episodes"))] for file in files]
        left_out = f"{series - len(charts):,} more series are left out." if series > len(charts) else ""
        report = Report(
            "anomalyd backtest",
            figures=[
                Figure("files", f"{len(files):,}"),
                Figure("series", f"{series:,}"),
                Figure("samples", f"{samples:,}"),
                Figure("episodes", f"{fired:,}"),
                Figure("samples/s", f"{samples / took_s:,.0f}"),
            ],
            sections=[
                Section("Series, the strangest first", charts, left_out),
                Section("Files", table=ReportTable(["file", "series", "samples", "episodes"], rows)),
            ],
        )
        return render(report)


def episodes(alerts: Iterable[Alert]) -> list[Episode]:
    """Episodes out of messages, in the order of their first."""
    found: dict[str, Episode] = {}
    for alert in alerts:
        ends_ms = None if alert.ends_at is None else epoch_ms(alert.ends_at)
        found[alert.alert_id] = Episode(epoch_ms(alert.starts_at), ends_ms, alert.severity, alert.peak_score)
    return list(found.values())


def epoch_ms(moment: str) -> int:
    """Milliseconds since the epoch out of an ISO 8601 moment of a message."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def chart_of(trace: Trace, rows: NDArray[np.intp], found: tuple[Episode, ...], table: Table | None, *, caption: str = "") -> Chart:
    """A chart of some rows of one series.

    Args:
        trace: what was scored.
        rows: of the trace, shape (k,).
        found: episodes; what lies outside of these rows is not drawn.
        table: for the truth, if it is known.
        caption: below the drawing.
    """
    # Times may step back in files; a drawing needs them in order.
    own = rows[np.argsort(trace.time_ms[rows], kind="stable")]
    verdicts = trace.verdicts
    feature, blamed = _feature(verdicts.share[own], verdicts.score[own])
    own = own[~np.isnan(verdicts.observed[own, feature])]  # some samples may lack it
    first, last = (int(trace.time_ms[own[0]]), int(trace.time_ms[own[-1]])) if len(own) else (0, 0)
    return Chart(
        series=trace.keys[int(trace.series[own[0]])] if len(own) else "",
        times_ms=trace.time_ms[own],
        value=verdicts.observed[own, feature],
        low=verdicts.low[own, feature],
        high=verdicts.high[own, feature],
        expected=verdicts.expected[own, feature],
        score=verdicts.score[own],
        episodes=tuple(one for one in found if one.start_ms <= last and (one.end_ms is None or one.end_ms >= first)),
        windows=tuple(one for one in _truth(table) if one.start_ms <= last and one.end_ms >= first),
        caption="; ".join(part for part in (caption, blamed) if part),
    )


def _feature(share: NDArray[np.float32], score: NDArray[np.float64]) -> tuple[int, str]:
    """Which of several features to draw: the one that was to blame most."""
    if share.shape[1] == 1 or not len(score):
        return 0, ""
    blame = share[score >= min(1.0, float(score.max()))].mean(axis=0)
    feature = int(blame.argmax())
    return feature, f"feature {feature} of {share.shape[1]}, the one with the largest share"


def _truth(table: Table | None) -> tuple[Window, ...]:
    if table is None or table.label is None or not table.label.any():
        return ()
    edges = np.flatnonzero(np.diff(table.label.astype(np.int8), prepend=0, append=0))
    return tuple(
        Window(int(table.time_ms[start]), int(table.time_ms[end - 1]), "label") for start, end in zip(edges[::2], edges[1::2], strict=True)
    )
