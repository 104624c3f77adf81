"""Silent series: when a series that stopped sending is an alert of its own, and what the alert says."""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from anomalyd.alerts.text import duration, moment, number, shortened
from anomalyd.errors import ConfigError

HEARTBEAT_MS: Final = 24 * 3_600_000
"""A silence is told of again after every so much of the partition's event time."""


@dataclass(frozen=True, slots=True)
class SilencePolicy:
    """When a series counts as silent.

    Raises:
        ConfigError: a field is out of range; the message names it.
    """

    enabled: Literal["auto", "on", "off"] = "auto"
    """auto: only series with a steady step; on: all of them."""
    after_steps: float = 10.0
    """Usual steps of the series without a sample, and"""
    after_ms: int = 600_000
    """event time without one, after which it is silent: the longer of both."""

    def __post_init__(self) -> None:
        if self.enabled not in {"auto", "on", "off"}:
            raise ConfigError(f"enabled: got {self.enabled!r}, valid are auto, on, off")
        if not 2 <= self.after_steps < 1e6:
            raise ConfigError(f"after_steps: got {self.after_steps}, valid is 2 or more")
        if not 60_000 <= self.after_ms < 1 << 62:
            raise ConfigError(f"after_ms: got {self.after_ms}, valid is 60000 or more")

    def patience_ms(self, step_ms: float) -> int:
        """How long a series with this usual step may send nothing."""
        return max(self.after_ms, int(self.after_steps * step_ms))


class Silence(NamedTuple):
    """What became of the silence of a series, as far as an alert tells of it."""

    status: Literal["firing", "updated", "resolved"]
    forgotten: bool
    """Resolved because the series is no longer kept, and not because it sends again."""
    starts_ms: int
    """Event time of its last sample before."""
    ends_ms: int | None
    """For resolved: event time of its next sample, or up to which it was silent as far as is known."""
    event_ms: int
    """Of this message: the partition's time, or that of the sample that ended it."""
    step_ms: float
    """Its usual step."""
    patience_ms: int
    value: float
    """Its newest value, as it was judged."""
    rate: bool
    """It is a rate per second."""
    several: bool = False
    """It is an entity, of whose values none stands for all: there is no value to tell of."""

    @property
    def score(self) -> float:
        """How often its patience has gone by; 0 once it sends again or is forgotten."""
        return 0.0 if self.status == "resolved" else self.peak_score

    @property
    def peak_score(self) -> float:
        """The same at its longest."""
        return max(1.0, ((self.event_ms if self.ends_ms is None else self.ends_ms) - self.starts_ms) / self.patience_ms)

    def annotate(self, series: str, stream: str, starts_at: str) -> tuple[str, str]:
        """The summary (one line) and the description (a few sentences)."""
        lasted = duration(max(0, (self.event_ms if self.ends_ms is None else self.ends_ms) - self.starts_ms))
        usual = f"usually it sends every {duration(round(self.step_ms))}" if self.step_ms >= 1 else "how often it used to send is not known"
        last = "" if self.several else f"Its last value was {number(self.value)}{'/s' if self.rate else ''}. "
        source = f"{last}Series {series} of stream {stream}."
        since = moment(starts_at)
        if self.forgotten:
            summary = f"{shortened(series)} is not waited for any longer: it sent nothing for {lasted}"
            return summary, f"Silent since {since}; {usual}. The alert was closed because the series is no longer kept. {source}"
        if self.status == "resolved":
            return f"{shortened(series)} sends again after {lasted}", f"Silent from {since} for {lasted}; {usual}. {source}"
        still = "" if self.status == "firing" else "still "
        summary = f"{shortened(series)} is {still}silent: nothing for {lasted}, {usual}"
        return summary, f"Silent since {since}, for {lasted} now, while others of its partition send; {usual}. {source}"
