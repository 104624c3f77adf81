"""What the demo's alerts are worth: held against the incidents that were injected."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, NamedTuple

from anomalyd.demo.fleet import DAY, KINDS, STEP_MS, Incident, Kind

GRACE: Final = 30
"""Samples after the end of an incident in which an episode still counts as its detection: the way back is part of it."""


class Episode(NamedTuple):
    """An alert's life, as far as the judge cares."""

    key: str
    """Canonical key of the series."""
    fired_ms: int
    """Event time of the sample that made it fire."""


@dataclass(frozen=True, slots=True)
class Finding:
    """An incident and what became of it."""

    incident: Incident
    episode: Episode | None
    """The first one that was opened by it."""

    @property
    def delay(self) -> int | None:
        """Samples from the first changed one to the one that fired, 0 if it is the same."""
        return None if self.episode is None else (self.episode.fired_ms - self.incident.start_ms) // STEP_MS


@dataclass(frozen=True, slots=True)
class Judgement:
    """The closing figures."""

    findings: tuple[Finding, ...]
    """One for every incident that was streamed to its end and through the grace behind it."""
    false: tuple[Episode, ...]
    """Episodes that no incident explains."""
    series_days: float
    """Simulated time over all series."""

    @property
    def detected(self) -> int:
        """Incidents with an episode."""
        return sum(finding.episode is not None for finding in self.findings)

    @property
    def false_per_10_series_days(self) -> float:
        """False episodes in ten days of a series."""
        return 10 * len(self.false) / self.series_days if self.series_days else 0.0

    @property
    def median_delay(self) -> float | None:
        """Samples; None if nothing was detected."""
        delays = [finding.delay for finding in self.findings if finding.delay is not None]
        return float(median(delays)) if delays else None

    def by_kind(self) -> dict[Kind, tuple[int, int]]:
        """Detected and injected."""
        return {
            kind: (sum(finding.episode is not None for finding in own), len(own))
            for kind in KINDS
            if (own := [finding for finding in self.findings if finding.incident.kind == kind])
        }


def judge(incidents: Sequence[Incident], episodes: Iterable[Episode], *, series: int, ticks: int, until_ms: int) -> Judgement:
    """Holds episodes against incidents.

    An episode belongs to an incident on its series if it fires from the first changed sample to GRACE samples after the last. Any number of
    episodes may belong to an incident; one that belongs to none is false. Incidents that the stream left unfinished count neither way.

    Args:
        incidents: all that have begun.
        episodes: of the fleet's series, in any order.
        series: in the fleet.
        ticks: streamed.
        until_ms: event time up to which all samples have been judged.
    """
    first: dict[Incident, Episode] = {}
    false = []
    for episode in sorted(episodes, key=lambda episode: episode.fired_ms):
        incident = cause(incidents, episode)
        if incident is None:
            false.append(episode)
        else:
            first.setdefault(incident, episode)
    findings = tuple(Finding(incident, first.get(incident)) for incident in incidents if _last_ms(incident) <= until_ms)
    return Judgement(findings, tuple(false), series * ticks / DAY)


def cause(incidents: Iterable[Incident], episode: Episode) -> Incident | None:
    """The incident that an episode belongs to."""
    own = (incident for incident in incidents if incident.key == episode.key)
    return next((incident for incident in own if incident.start_ms <= episode.fired_ms <= _last_ms(incident)), None)


def _last_ms(incident: Incident) -> int:
    """Event time of the last sample in which an episode may fire for it."""
    return incident.end_ms + (GRACE - 1) * STEP_MS
