"""What an alert says to a person on call: what, where, how far, since when, how unusual."""

from dataclasses import dataclass
from typing import Final

from anomalyd.alerts.rarity import Recurrence

_LONGEST_SERIES: Final = 120
_TOLD_FEATURES: Final = 3
_LONGEST_DAYS: Final = 365
_SUFFIXES: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


@dataclass(frozen=True, slots=True)
class Reading:
    """What the texts are made of; with several features the values are those of the first in `features`."""

    series: str
    """Canonical key."""
    stream: str
    status: str
    """firing | updated | resolved."""
    lapsed: bool
    """Resolved because the series had stayed away."""
    value: float
    expected: float
    low: float
    high: float
    rate: bool
    """Values are rates per second."""
    score: float
    peak_score: float
    starts_at: str
    """ISO 8601."""
    ends_at: str | None
    """ISO 8601, for resolved."""
    lasted_ms: int
    """From the start to the end, or to now where there is none."""
    features: tuple[tuple[str, float], ...]
    """Name and share (0 to 1), largest share first; empty for a series with one feature."""
    forgotten: bool = False
    """Lapsed because the series is no longer kept; the value is the last one that was seen, and nothing is known of what was expected."""
    told_at: str = ""
    """ISO 8601: event time of the sample that this is told at, of an end the last of the calm ones that it wants; empty: not known."""
    recurrence: Recurrence | None = None
    """How often normal data is as strange as this episode at its peak; None: not known."""


def annotate(reading: Reading) -> tuple[str, str]:
    """The summary (one line, for a list or a pager) and the description.

    The first sentence of the description says what was seen, what was expected, since when and how unusual that is; what follows is for
    looking it up.
    """
    series = shortened(reading.series)
    start, lasted = moment(reading.starts_at), duration(reading.lasted_ms)
    finding, rarity = _finding(reading), _rarity(reading)
    source = f"Series {reading.series} of stream {reading.stream}."
    if reading.ends_at is not None:
        end = moment(reading.ends_at)
        if reading.lapsed:
            summary = f"{series} is no longer anomalous as far as is known: it sent nothing for a long time"
            why = "because the series is no longer kept" if reading.forgotten else "when the series came back after a long gap"
            course = f"Anomalous from {start}, last seen so at {end}{rarity}; the alert was closed {why}"
        else:
            sure = "" if reading.told_at in {"", reading.ends_at} else f", as the samples up to {moment(reading.told_at)} confirm"
            summary = f"{series} is back to normal after {lasted}{sure}"
            course = f"Anomalous from {start} to {end} ({lasted}){rarity}"
        whose = f"the last value of {reading.features[0][0]}" if reading.features else "its last value"
        now = f"{whose} was {_value(reading)}" if reading.forgotten else f"now {finding}"
        return summary, f"{course}; {now}. Peak score {number(reading.peak_score)}, where 1 is the threshold. {source}"
    still = "" if reading.status == "firing" else "still "
    summary = f"{series} is {still}anomalous: {finding}"
    course = f"Anomalous since {start}" + (f", for {lasted} now" if reading.lasted_ms > 0 else "")
    scores = f"Score {number(reading.score)}" + (f", peak {number(reading.peak_score)}" if reading.peak_score != reading.score else "")
    parts = [f"{course}: {finding}{rarity}.", f"{scores}, where 1 is the threshold."]
    if reading.features:
        told = ", ".join(f"{name} {share:.0%}" for name, share in reading.features[:_TOLD_FEATURES])
        parts.append(f"Features that contribute most: {told}.")
    return summary, " ".join([*parts, source])


def _finding(reading: Reading) -> str:
    """The value against what was expected, as a clause."""
    unit = "/s" if reading.rate else ""
    what = f"{reading.features[0][0]} " if reading.features else ""
    value, expected = _value(reading), number(reading.expected) + unit
    band = f"{number(reading.low)} to {number(reading.high)}{unit}"
    if reading.value > reading.high:
        return f"{what}{value} is above the expected {expected} ({band})"
    if reading.value < reading.low:
        return f"{what}{value} is below the expected {expected} ({band})"
    # Novelty is about the course of values, not about the newest alone.
    return f"{what}{value} lies in the expected range ({band})" + ("" if reading.ends_at else ", but its course is unusual")


def _rarity(reading: Reading) -> str:
    """How unusual it is, as the end of a clause."""
    if reading.recurrence is None:
        return ""
    # What was said before it is about the newest sample; the worst may lie behind.
    peak = "at its peak " if reading.ends_at is not None or reading.peak_score > reading.score else ""
    return f", {peak}as strange as normal data is {frequency(reading.recurrence)}"


def _value(reading: Reading) -> str:
    return number(reading.value) + ("/s" if reading.rate else "")


def number(value: float) -> str:
    """Four significant digits, large numbers with an SI suffix: 97.1, 1766, 12.35G."""
    size = abs(value)
    for scale, suffix in _SUFFIXES:
        if 0.99995 * scale <= size < 1e18:  # where four digits round up to the next unit
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.0f}" if 1000 <= size < 1e6 else f"{value:.4g}"


def frequency(recurrence: Recurrence) -> str:
    """About once in 40 days; longer than a year nobody has counted, so it is not told."""
    days, at_least = recurrence
    if days > _LONGEST_DAYS:
        return "less than once in a year"
    count, unit = next(((days * n, unit) for unit, n in (("days", 1), ("hours", 24)) if days * n >= 2), (days * 1440, "minutes"))
    size = 10 if count >= 100 else 1  # two digits are all that is known
    whole = int(count // size if at_least else round(count / size)) * size
    much = "less than" if at_least else "about"
    return f"{much} once in {whole} {unit}" if whole > 1 else f"{much} once a minute"


def duration(length_ms: int) -> str:
    """The two largest units: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if length_ms < 1000:
        return f"{length_ms} ms"
    seconds = length_ms // 1000
    for unit, size, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            rest = seconds % size // part
            return f"{seconds // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds} s"


def moment(iso: str) -> str:
    """2026-01-01T12:00:00.000Z → 2026-01-01 12:00:00 UTC."""
    return f"{iso[:10]} {iso[11:19]} UTC"


def shortened(series: str) -> str:
    """A canonical key, cut where a line would be too long."""
    return series if len(series) <= _LONGEST_SERIES else series[: _LONGEST_SERIES - 1] + "…"
