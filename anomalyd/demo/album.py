"""The demo's report: a chart for each incident, and for each false alarm."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from anomalyd.demo.board import Board, Stretch, epoch_ms
from anomalyd.demo.fleet import KINDS, STEP_MS, Incident
from anomalyd.demo.judge import Episode, Finding, Judgement
from anomalyd.demo.view import samples
from anomalyd.evaluation.report import Chart, Figure, Report, Section, Table, Window, render
from anomalyd.evaluation.report import Episode as Drawn

BEFORE: Final = 300
AFTER: Final = 120
"""Samples drawn before an incident or false alarm, and after it."""


class Album:
    """Cuts what is to be drawn out of the board's memory before it is forgotten."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._incidents: dict[Incident, Stretch] = {}
        self._false: dict[Episode, Stretch] = {}

    def collect(self, incidents: Sequence[Incident], false: Sequence[Episode], now_ms: int, *, last: bool = False) -> None:
        """Takes what has a full picture by the event time `now_ms`; with `last` what there is."""
        for incident in incidents:
            if incident not in self._incidents and (last or incident.end_ms + AFTER * STEP_MS <= now_ms):
                self._incidents[incident] = self._cut(incident.key, incident.start_ms, incident.end_ms)
        for episode in false:
            if episode not in self._false and (last or episode.fired_ms + AFTER * STEP_MS <= now_ms):
                self._false[episode] = self._cut(episode.key, episode.fired_ms, episode.fired_ms)

    def page(self, judgement: Judgement, figures: Mapping[str, Any]) -> str:
        """The page."""
        counts = judgement.by_kind()
        kinds = Table(["incidents", "detected", "injected"], [[kind, *map(str, counts[kind])] for kind in KINDS if kind in counts])
        missed = [finding for finding in judgement.findings if finding.episode is None]
        hits = [finding for finding in judgement.findings if finding.episode is not None]
        # On a page with room for so many charts the misses come first: they say more.
        sections = [Section("Missed incidents", [self._incident(finding) for finding in missed])] if missed else []
        if judgement.false:
            sections.append(Section("False alarms", [self._false_alarm(episode) for episode in judgement.false]))
        sections.append(Section("Detected incidents", [self._incident(finding) for finding in hits], table=kinds))
        host = [self._host(key) for key in self._board.keys_alerted(fleet=False)]
        if host:
            sections.append(Section("This host", host))
        return render(
            Report(
                "anomalyd demo",
                figures=[
                    Figure("incidents detected", f"{judgement.detected} of {len(judgement.findings)}"),
                    Figure("false alarms", f"{len(judgement.false)}"),
                    Figure("false per 10 series-days", f"{judgement.false_per_10_series_days:.2f}"),
                    Figure("median delay", samples(judgement.median_delay)),
                    Figure("samples scored", f"{figures['samples_scored']:,}"),
                    Figure("samples/s", f"{figures['samples_per_s']:,.0f}"),
                ],
                sections=sections,
                text=(
                    f"A generated fleet and this host, {figures['series']:,} series together, went through Kafka, the detector and back: "
                    f"{judgement.series_days:,.0f} series-days of simulated time, one sample a minute. "
                    "Incidents were injected; their windows are known."
                ),
            )
        )

    def _cut(self, key: str, from_ms: int, to_ms: int) -> Stretch:
        return self._board.cut(key, from_ms - BEFORE * STEP_MS, to_ms + AFTER * STEP_MS)

    def _incident(self, finding: Finding) -> Chart:
        incident = finding.incident
        minutes = (incident.end_ms - incident.start_ms) // STEP_MS
        what = {
            "drop": f"only {incident.size:.0%} of the value left",
            "burst": f"noise × {incident.size:.1f}",
            "flatline": "stuck at one value",
        }.get(incident.kind, f"{incident.size:+.1f} × the series' noise")
        outcome = "missed" if finding.delay is None else f"detected after {samples(finding.delay)}"
        window = Window(incident.start_ms, incident.end_ms, incident.kind)
        return self._chart(incident.key, self._incidents[incident], f"{incident.kind}, {what}, {minutes} samples: {outcome}", window)

    def _false_alarm(self, episode: Episode) -> Chart:
        return self._chart(episode.key, self._false[episode], "no incident here")

    def _host(self, key: str) -> Chart:
        return self._chart(key, self._board.cut(key, -(1 << 62), 1 << 62), "")

    def _chart(self, key: str, stretch: Stretch, caption: str, *windows: Window) -> Chart:
        first, last = (int(stretch.time_ms[0]), int(stretch.time_ms[-1])) if len(stretch.time_ms) else (0, 0)
        episodes = []
        for alert in self._board.alerts(key):
            starts_ms = epoch_ms(alert["starts_at"])
            ends_ms = None if alert["ends_at"] is None else epoch_ms(alert["ends_at"])
            if starts_ms <= last and (ends_ms is None or ends_ms >= first):
                episodes.append(Drawn(starts_ms, ends_ms, alert["severity"], alert["peak_score"]))
        return Chart(
            series=key,
            times_ms=stretch.time_ms,
            value=stretch.value,
            low=stretch.low,
            high=stretch.high,
            expected=stretch.expected,
            score=stretch.score,
            episodes=episodes,
            windows=windows,
            caption=caption,
        )
