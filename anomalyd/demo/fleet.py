"""A generated fleet of hosts whose metrics have daily shapes, noise and drift, with injected incidents whose truth is known.

Simulated time runs one minute a tick. Everything follows from the seed alone: how fast the ticks are taken, and how many, changes nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Kind = Literal["spike", "shift", "drop", "burst", "flatline", "ramp"]
KINDS: Final[tuple[Kind, ...]] = ("spike", "shift", "drop", "burst", "flatline", "ramp")
DEMONSTRATED: Final[tuple[Kind, ...]] = KINDS[:-1]
"""What the demo injects. The detector mostly misses slow ramps, as `benchmarks/fleet.py` shows and the README says."""

STEP_MS: Final = 60_000
"""Simulated time between two samples of a series."""
DAY: Final = 1440
"""Ticks of a simulated day."""
WARM_UP: Final = 500
"""No incident starts before every series has this many samples."""
START_MS: Final = 1_767_571_200_000
"""Event time of the first tick: Monday, 2026-01-05, midnight UTC."""
BLOCK: Final = 60
"""Ticks that are generated together."""
GAP: Final = (30, 90)
"""Ticks from the start of an incident to the start of the next one."""
REST: Final = 720
"""Ticks that a series is left alone after an incident."""
_SHAPES: Final = 48


class Strength(NamedTuple):
    """How hard and how long an incident is; both are drawn uniformly."""

    size: tuple[float, float]
    ticks: tuple[int, int]


# In units of the series' own noise, the standard deviation of its values around its daily shape; drop: part of the value that is left;
# burst: the noise is multiplied. Daily swings are 3 to 12 of these units and the noise is mostly 2 to 8 % of the level, so these are
# incidents as operators know them (traffic half as high again, a third of it left, a queue that doubles), many of them within the range of
# an ordinary day.
STRENGTHS: Final[dict[Kind, Strength]] = {
    "spike": Strength((10, 20), (2, 5)),
    "shift": Strength((9, 18), (30, 90)),
    "drop": Strength((0.0, 0.3), (15, 60)),
    "burst": Strength((6, 10), (20, 60)),
    "flatline": Strength((0, 0), (90, 180)),
    "ramp": Strength((15, 30), (30, 90)),
}


class Profile(NamedTuple):
    """What kind of metric a field is."""

    field: str
    level: tuple[float, float]
    """Decades (log10) between which the level is drawn, in the field's unit."""
    noise: tuple[float, float] = (0.02, 0.06)
    """Noise, as part of the level."""
    swing: tuple[float, float] = (3, 12)
    """Height of the daily shape, in noise."""
    tail: Literal["normal", "laplace", "skewed"] = "normal"
    memory: tuple[float, float] = (0.0, 0.5)
    """Correlation of the noise from tick to tick."""
    drift: float = 0.0
    """Change of the level a day, in noise."""
    quantum: float = 0.0
    """Values are multiples of this (0: not quantised)."""
    counter: bool = False
    """The value is the running total, the level is a rate per second."""
    incidents: tuple[Kind, ...] = KINDS


_SMOOTH: Final[tuple[Kind, ...]] = ("spike", "shift", "burst", "flatline", "ramp")
_ROLES: Final[dict[str, tuple[Profile, ...]]] = {
    "web": (
        Profile("requests", (1, 4)),
        Profile("latency_ms", (0, 2.5), noise=(0.05, 0.12), swing=(2, 6), tail="skewed", incidents=("spike", "shift", "burst", "ramp")),
        Profile("cpu_percent", (1.2, 1.6), noise=(0.03, 0.08), tail="laplace", drift=0.5),
        Profile("bytes_total", (4, 8), noise=(0.03, 0.08), counter=True, incidents=("spike", "shift", "drop", "burst", "ramp")),
        # Mostly 0: the noise is one count.
        Profile("errors", (0, 0), noise=(1, 1), swing=(0, 0), quantum=1, incidents=("shift",)),
    ),
    "db": (
        Profile("queries", (2, 5), tail="laplace"),
        Profile("connections", (1.7, 2.7), noise=(0.03, 0.06), quantum=1, incidents=("spike", "shift", "drop", "burst", "ramp")),
        Profile("disk_used_bytes", (10, 12), noise=(0.002, 0.004), swing=(0, 3), memory=(0.3, 0.6), drift=3, incidents=_SMOOTH),
        Profile("memory_bytes", (8.5, 10.5), noise=(0.01, 0.03), swing=(2, 6), memory=(0.7, 0.9), drift=1, incidents=_SMOOTH),
        Profile("replicas", (0, 0.9), noise=(0, 0), swing=(0, 0), quantum=1, incidents=()),
    ),
    "queue": (
        Profile("depth", (1.5, 4), noise=(0.05, 0.1), tail="laplace", memory=(0.4, 0.8)),
        Profile("consumed_total", (1, 5), noise=(0.03, 0.08), counter=True, incidents=("spike", "shift", "drop", "burst", "ramp")),
        Profile("age_s", (-2, 1), noise=(0.05, 0.15), swing=(2, 6), tail="skewed", incidents=("spike", "shift", "burst", "ramp")),
        Profile("temperature_c", (1.5, 1.8), noise=(0.01, 0.02), memory=(0.6, 0.9), quantum=0.1, incidents=_SMOOTH),
        Profile("consumers", (0, 1.2), noise=(0, 0), swing=(0, 0), quantum=1, incidents=()),
    ),
}
FIELDS_PER_HOST: Final = 5


@dataclass(frozen=True, slots=True)
class Incident:
    """One injected incident."""

    series: int
    """Column of the series."""
    key: str
    """Canonical key of the series, as it stands in alerts."""
    kind: Kind
    start_ms: int
    """Event time of the first changed sample."""
    end_ms: int
    """Event time of the first sample that is normal again."""
    size: float
    """Signed; in the units of STRENGTHS."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive ticks of all series in columns."""

    time_ms: NDArray[np.int64]
    """Event times, shape (T,)."""
    value: NDArray[np.float64]
    """Values, shape (T, S)."""

    def __len__(self) -> int:
        return len(self.time_ms)


class Fleet:
    """S series on hosts of five fields each (the last host may have fewer).

    Args:
        series: how many, at least 1.
        seed: everything follows from it.
        kinds: of incidents to inject.
    """

    def __init__(self, series: int = 200, seed: int = 0, kinds: Sequence[Kind] = DEMONSTRATED) -> None:
        streams = np.random.SeedSequence(seed).spawn(5)
        draw = np.random.default_rng(streams[0])
        self._normal, self._laplace, self._skewed = (np.random.default_rng(stream) for stream in streams[1:4])
        self._chance = np.random.default_rng(streams[4])
        self._hosts = list(_hosts(series))
        self.profiles = [profile for _, _, profiles in self._hosts for profile in profiles]
        self.keys = [f'{role}.{profile.field}{{host="{host}"}}' for role, host, profiles in self._hosts for profile in profiles]
        self._templates = [_template(*host) for host in self._hosts]
        self.incidents: list[Incident] = []
        """Every incident that has started so far, in order."""

        def uniform(pick: Callable[[Profile], tuple[float, float]]) -> NDArray[np.float64]:
            ends = np.array([pick(profile) for profile in self.profiles], dtype=np.float64)  # (S, 2)
            return ends[:, 0] + draw.random(series) * (ends[:, 1] - ends[:, 0])

        quantum = np.array([profile.quantum for profile in self.profiles])
        level = 10.0 ** uniform(lambda p: p.level)
        level = np.where(quantum > 0, np.maximum(quantum, _multiple(level, quantum)), level)
        self._quantum = quantum
        self._counter = np.array([profile.counter for profile in self.profiles])
        self._noise = level * uniform(lambda p: p.noise)  # (S,)
        swing = self._noise * uniform(lambda p: p.swing)
        # An error or two in most hours, none in most minutes.
        idle = np.array([profile.field == "errors" for profile in self.profiles])
        self._level = np.where(idle, -1.6 * self._noise, np.maximum(level, 1.5 * swing + 4 * self._noise) * ~idle)
        self._level = np.where(self._noise == 0, level, self._level)
        self._swing = swing
        self._drift = self._noise * np.array([p.drift for p in self.profiles]) * draw.choice([-1.0, 1.0], series) / DAY
        self._memory = uniform(lambda p: p.memory)
        tails = np.array([profile.tail for profile in self.profiles])
        self._is_laplace, self._is_skewed = tails == "laplace", tails == "skewed"
        self._shapes = _daily_shapes(draw)  # (_SHAPES, DAY)
        self._shape = draw.integers(0, _SHAPES, series)
        # Hosts of one fleet live in a few time zones, not in all.
        self._phase = draw.choice([0, 360, 540, 960], series) + draw.integers(-45, 46, series)
        self._walk = np.zeros(series)
        self._total = np.where(self._counter, 10.0 ** draw.uniform(3, 9, series), 0.0)
        self._rested = np.zeros(series, dtype=np.int64)  # tick from which an incident may start
        self._held = np.full(series, np.nan)  # what a flatline is stuck at
        self._tick = 0
        self._next = WARM_UP + int(self._chance.integers(*GAP))
        self._all_kinds = kinds
        self._kinds: list[Kind] = []  # still to come before any comes again

    def __len__(self) -> int:
        return len(self.keys)

    def block(self, ticks: int = BLOCK) -> Block:
        """The next ticks of all series, incidents in them."""
        tick = self._tick + np.arange(ticks)  # (T,)
        self._tick += ticks
        self._start_incidents(self._tick)
        noise = self._noise_of(ticks)  # (T, S), unit variance
        shape = self._shapes[self._shape, (tick[:, None] + self._phase) % DAY]  # (T, S), within -0.5..0.5
        calm = self._level + self._swing * shape + self._drift * tick[:, None]
        time_ms = START_MS + tick * STEP_MS
        for incident in self.incidents:
            if incident.end_ms > time_ms[0]:
                self._disturb(incident, time_ms, calm, noise)
        value = np.maximum(calm + self._noise * noise, 0.0)
        for incident in self.incidents:
            if incident.kind == "flatline" and incident.end_ms > time_ms[0]:
                self._hold(incident, time_ms, value)
        value = np.where(self._quantum > 0, _multiple(value, self._quantum), value)
        rates = value[:, self._counter] * (STEP_MS / 1000)
        totals = np.cumsum(np.vstack([self._total[self._counter], rates]), axis=0)[1:]  # added up in one order, whatever the blocks
        self._total[self._counter] = totals[-1]
        value[:, self._counter] = np.floor(totals)
        return Block(time_ms, value)

    def records(self, block: Block, tick: int) -> list[tuple[str, str]]:
        """The telegraf-json records of one tick of a block, one a host: (Kafka key, value)."""
        seconds, values = int(block.time_ms[tick]) // 1000, block.value[tick].tolist()
        return [
            (host, template % (*values[i * FIELDS_PER_HOST : (i + 1) * FIELDS_PER_HOST], seconds))
            for i, ((_, host, _), template) in enumerate(zip(self._hosts, self._templates, strict=True))
        ]

    def _noise_of(self, ticks: int) -> NDArray[np.float64]:
        """Correlated noise of unit variance, shape (T, S): normal, with Laplace tails, or skewed like latencies."""
        series = len(self)
        fresh = self._normal.standard_normal((ticks, series))
        fresh[:, self._is_laplace] = self._laplace.laplace(scale=np.sqrt(0.5), size=(ticks, int(self._is_laplace.sum())))
        sigma = 0.4
        skewed = np.exp(sigma * self._skewed.standard_normal((ticks, int(self._is_skewed.sum()))) - sigma**2 / 2) - 1
        fresh[:, self._is_skewed] = skewed / np.sqrt(np.expm1(sigma**2))
        # An AR(1) process that keeps its variance.
        keep, add = self._memory, np.sqrt(1 - self._memory**2)
        for t in range(ticks):
            self._walk = fresh[t] = keep * self._walk + add * fresh[t]
        return fresh

    def _start_incidents(self, until: int) -> None:
        while self._next < until:
            if not self._kinds:
                self._kinds = [self._all_kinds[i] for i in self._chance.permutation(len(self._all_kinds))]
            kind = self._kinds.pop()
            free = [s for s, profile in enumerate(self.profiles) if kind in profile.incidents and self._rested[s] <= self._next]
            if free:
                self._start(kind, free[int(self._chance.integers(len(free)))])
            self._next += int(self._chance.integers(*GAP))

    def _start(self, kind: Kind, series: int) -> None:
        strength = STRENGTHS[kind]
        ticks = int(self._chance.integers(strength.ticks[0], strength.ticks[1] + 1))
        size = float(self._chance.uniform(*strength.size))
        # What only goes up (a leak, errors, latency) goes up; the rest goes either way where there is room below.
        upward = kind in ("drop", "burst", "flatline", "ramp") or self._level[series] < (size + 3) * self._noise[series]
        sign = 1.0 if upward or self._chance.random() < 0.5 else -1.0
        start_ms = START_MS + self._next * STEP_MS
        self.incidents.append(Incident(series, self.keys[series], kind, start_ms, start_ms + ticks * STEP_MS, sign * size))
        self._rested[series] = self._next + ticks + REST

    def _disturb(self, incident: Incident, time_ms: NDArray[np.int64], calm: NDArray[np.float64], noise: NDArray[np.float64]) -> None:
        during = (time_ms >= incident.start_ms) & (time_ms < incident.end_ms)  # (T,)
        s, size, unit = incident.series, incident.size, self._noise[incident.series]
        if incident.kind in ("spike", "shift"):
            calm[during, s] += size * unit
        elif incident.kind == "ramp":
            calm[during, s] += size * unit * (time_ms[during] - incident.start_ms) / (incident.end_ms - incident.start_ms)
        elif incident.kind == "drop":
            calm[during, s] *= size
            noise[during, s] *= size
        elif incident.kind == "burst":
            noise[during, s] *= size

    def _hold(self, incident: Incident, time_ms: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        during = np.flatnonzero((time_ms >= incident.start_ms) & (time_ms < incident.end_ms))
        if len(during):
            if time_ms[during[0]] == incident.start_ms:
                self._held[incident.series] = value[during[0], incident.series]
            value[during, incident.series] = self._held[incident.series]


def _hosts(series: int) -> Iterator[tuple[str, str, tuple[Profile, ...]]]:
    """(role, host, profiles) until there are so many series."""
    roles = list(_ROLES)
    for i in range(-(-series // FIELDS_PER_HOST)):
        role = roles[i % len(roles)]
        yield role, f"{role}-{i // len(roles) + 1:02d}", _ROLES[role][: series - i * FIELDS_PER_HOST]


def _template(role: str, host: str, profiles: tuple[Profile, ...]) -> str:
    # Running totals are written in full: a cut digit would be as large as a minute's increase.
    values = ",".join(f'"{profile.field}":{"%d" if profile.counter else "%.8g"}' for profile in profiles)
    return f'{{"fields":{{{values}}},"name":"{role}","tags":{{"host":"{host}"}},"timestamp":%d}}'


def _multiple(value: NDArray[np.float64], quantum: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = np.rint(value / np.where(quantum > 0, quantum, 1)) * quantum
    return rounded


def _daily_shapes(draw: np.random.Generator) -> NDArray[np.float64]:
    """Smooth days, days of two humps, office hours and nightly jobs: shape (_SHAPES, DAY), values within -0.5..0.5."""
    day = np.arange(DAY) / DAY
    shapes = np.zeros((_SHAPES, DAY))
    for k in range(_SHAPES):
        shape = -np.cos(2 * np.pi * day) + sum(
            draw.normal(0, 0.35 / harmonic) * np.cos(2 * np.pi * (harmonic * day + draw.random())) for harmonic in (2, 3, 4)
        )
        if k % 4 == 2:  # office hours: steep flanks, flat top
            shape = np.tanh(3 * (shape - np.median(shape)))
        elif k % 4 == 3:  # a job each hour or half hour on top of a mild day
            period = int(draw.choice([30, 60]))
            shape = 0.5 * shape + 1.2 * ((np.arange(DAY) % period) < draw.integers(3, 8))
        shapes[k] = (shape - shape.min()) / np.ptp(shape) - 0.5
    return shapes
