"""Alert messages, schema version 1: what consumers of the alerts topic read.

A message depends on the transition, the series and the stream's settings only, and equal input gives equal bytes; `detected_at` is the
one field that a clock has written.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.episodes import Transitions
from anomalyd.alerts.machine import ABOVE, BELOW, CRITICAL, FIRING, RESOLVED, UPDATED, WARNING
from anomalyd.alerts.rarity import Rarity
from anomalyd.alerts.silence import Silence
from anomalyd.alerts.text import Reading, annotate

SCHEMA_VERSION: Final = 1
THRESHOLD: Final = 1.0

Kind = Literal["anomaly", "silent"]
Status = Literal["firing", "updated", "resolved"]
Severity = Literal["warning", "critical"]
Direction = Literal["above", "below"]

_STATUS: Final[dict[int, Status]] = {FIRING: "firing", UPDATED: "updated", RESOLVED: "resolved"}
_SEVERITY: Final[dict[int, Severity]] = {WARNING: "warning", CRITICAL: "critical"}
_DIRECTION: Final[dict[int, Direction]] = {ABOVE: "above", BELOW: "below"}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_MS: Final = -62_135_596_800_000  # year 1
_LAST_MS: Final = 253_402_300_799_999  # year 9999


class Series(msgspec.Struct, frozen=True):
    """The series an alert is about."""

    key: str
    name: str
    labels: dict[str, str]


class Feature(msgspec.Struct, frozen=True):
    """One feature of a sample with several, and its part of the score."""

    name: str
    value: float | None
    """None: the sample lacks it."""
    expected: float | None
    """None: nothing is known of it yet."""
    share: float


class Source(msgspec.Struct, frozen=True):
    """The record whose sample made this message."""

    topic: str
    partition: int
    offset: int


class Model(msgspec.Struct, frozen=True):
    """The artifact that gave the score."""

    name: str
    version: str
    hash: str


class Alert(msgspec.Struct, frozen=True):
    """One message; the fields are described in alert.schema.json."""

    schema_version: int
    alert_id: str
    kind: Kind
    status: Status
    stream: str
    series: Series
    severity: Severity
    direction: Direction
    score: float
    peak_score: float
    threshold: float
    value: float
    expected: float
    expected_range: tuple[float, float]
    features: list[Feature] | None
    starts_at: str
    ends_at: str | None
    event_time: str
    detected_at: str
    source: Source
    model: Model
    labels: dict[str, str]
    annotations: dict[str, str]


@dataclass(frozen=True, slots=True)
class Message:
    """An alert as it goes to a sink."""

    key: bytes
    """The alert id: all messages of an episode keep their order and compaction keeps its last."""
    value: bytes
    """The alert as JSON."""
    alert: Alert


def leading(share: NDArray[np.floating[Any]], observed: NDArray[np.float64]) -> NDArray[np.int64]:
    """The feature to tell of each sample, (...): that with the largest share (..., F) among those which the sample has, (..., F).

    Shares are smoothed, so one that the sample lacks may have the largest; but it has no value to tell of.
    """
    top: NDArray[np.int64] = np.where(np.isnan(observed), -1.0, share).argmax(axis=-1)
    return top


class MessageBuilder:
    """Makes the messages of one shard.

    Args:
        stream: the stream's name.
        topic: where the shard's samples come from.
        partition: of that topic.
        model: the artifact that gives the scores.
        labels: put into every message as they are.
        annotations: put into every message; `summary` and `description` replace the generated ones.
        feature_names: of samples with several features, F of them; left out: feature_0, feature_1, …
        rarity: what scores and evidence mean in days; None: the texts do not say how unusual an alert is.
    """

    def __init__(
        self,
        *,
        stream: str,
        topic: str,
        partition: int,
        model: Model,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        feature_names: Sequence[str] = (),
        rarity: Rarity | None = None,
    ) -> None:
        self._stream = stream
        self._topic = topic
        self._partition = partition
        self._model = model
        self._labels = dict(labels or {})
        self._annotations = dict(annotations or {})
        self._feature_names = tuple(feature_names)
        self._rarity = rarity
        self._encoder = msgspec.json.Encoder(order="deterministic")

    def mark(self, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
        """From now on messages carry these labels and annotations instead."""
        self._labels, self._annotations = dict(labels), dict(annotations)

    def scored_by(self, model: Model) -> None:
        """From now on this artifact gives the scores."""
        self._model = model

    def weigh(self, rarity: Rarity) -> None:
        """From now on scores and evidence mean this."""
        self._rarity = rarity

    def build(
        self, transitions: Transitions, k: int, *, key: str, name: str, labels: Mapping[str, str], offset: int, detected_at_ms: int
    ) -> Message:
        """The message of transition k.

        With several features, value, expected and expected_range are those of the feature with the largest share.

        Args:
            transitions: of one batch.
            k: which of them.
            key: canonical key of the series.
            name: of the series.
            labels: of the series.
            offset: of the record that held the sample, or because of which the series was forgotten.
            detected_at_ms: the clock's time, milliseconds since the epoch.
        """
        starts_ms = int(transitions.starts_at_ms[k])
        event_ms = int(transitions.event_time_ms[k])
        status = _STATUS[int(transitions.status[k])]
        ends_ms = int(transitions.ends_at_ms[k]) if status == "resolved" else None
        features = self._features(transitions, k)
        top = 0 if features is None else int(leading(transitions.share[k], transitions.observed[k]))
        peak, evidence = float(transitions.peak_score[k]), float(transitions.peak_evidence[k])
        reading = Reading(
            series=key,
            stream=self._stream,
            status=status,
            lapsed=bool(transitions.lapsed[k]),
            forgotten=bool(transitions.forgotten[k]),
            value=float(transitions.observed[k, top]),
            expected=float(transitions.expected[k, top]),
            low=float(transitions.low[k, top]),
            high=float(transitions.high[k, top]),
            # Of several features some may be counters: which, nobody has told us.
            rate=bool(transitions.counter[k]) and features is None,
            score=float(transitions.score[k]),
            peak_score=peak,
            recurrence=None if self._rarity is None else self._rarity.recurrence(peak, evidence),
            starts_at=iso(starts_ms),
            ends_at=None if ends_ms is None else iso(ends_ms),
            told_at=iso(event_ms),
            lasted_ms=(event_ms if ends_ms is None else ends_ms) - starts_ms,
            features=() if features is None else tuple((f.name, f.share) for f in features),
        )
        summary, description = annotate(reading)
        alert = Alert(
            schema_version=SCHEMA_VERSION,
            alert_id=alert_id(self._stream, "anomaly", key, starts_ms),
            kind="anomaly",
            status=status,
            stream=self._stream,
            series=Series(key, name, dict(labels)),
            severity=_SEVERITY[int(transitions.severity[k])],
            direction=_DIRECTION[int(transitions.direction[k])],
            score=reading.score,
            peak_score=reading.peak_score,
            threshold=THRESHOLD,
            value=reading.value,
            expected=reading.expected,
            expected_range=(reading.low, reading.high),
            features=features,
            starts_at=reading.starts_at,
            ends_at=reading.ends_at,
            event_time=iso(event_ms),
            detected_at=iso(detected_at_ms),
            source=Source(self._topic, self._partition, offset),
            model=self._model,
            labels=self._labels,
            annotations={"summary": summary, "description": description, **self._annotations},
        )
        return Message(alert.alert_id.encode(), self._encoder.encode(alert), alert)

    def build_silence(
        self, silence: Silence, *, key: str, name: str, labels: Mapping[str, str], offset: int, detected_at_ms: int
    ) -> Message:
        """The message about the silence of a series.

        Args:
            silence: what became of it.
            key: canonical key of the series.
            name: of the series.
            labels: of the series.
            offset: of the record in front of which it was noticed, or that held the sample that ended it.
            detected_at_ms: the clock's time, milliseconds since the epoch.
        """
        starts_at, ends_at = iso(silence.starts_ms), None if silence.ends_ms is None else iso(silence.ends_ms)
        summary, description = silence.annotate(key, self._stream, starts_at)
        alert = Alert(
            schema_version=SCHEMA_VERSION,
            alert_id=alert_id(self._stream, "silent", key, silence.starts_ms),
            kind="silent",
            status=silence.status,
            stream=self._stream,
            series=Series(key, name, dict(labels)),
            severity="warning",
            direction="below",  # fewer samples than expected
            score=silence.score,
            peak_score=silence.peak_score,
            threshold=THRESHOLD,
            value=silence.value,
            expected=silence.value,
            expected_range=(silence.value, silence.value),
            features=None,
            starts_at=starts_at,
            ends_at=ends_at,
            event_time=iso(silence.event_ms),
            detected_at=iso(detected_at_ms),
            source=Source(self._topic, self._partition, offset),
            model=self._model,
            labels=self._labels,
            annotations={"summary": summary, "description": description, **self._annotations},
        )
        return Message(alert.alert_id.encode(), self._encoder.encode(alert), alert)

    def _features(self, transitions: Transitions, k: int) -> list[Feature] | None:
        """Every feature, largest share first (equal shares in the order of the sample), those that the sample lacks last; None for one."""
        count = transitions.share.shape[1]
        if count == 1:
            return None
        names = self._feature_names or tuple(f"feature_{f}" for f in range(count))
        share = transitions.share[k].tolist()
        return [
            # Shares are float32; six digits are all that they have.
            Feature(names[f], _known(transitions.observed[k, f]), _known(transitions.expected[k, f]), round(share[f], 6))
            for f in sorted(range(count), key=lambda f: (math.isnan(transitions.observed[k, f]), -share[f]))
        ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def alert_id(stream: str, kind: Kind, series_key: str, starts_at_ms: int) -> str:
    """Names an episode: 32 hexadecimal digits that depend on nothing but the arguments, so a replay gives the same name."""
    # JSON keeps the parts apart whatever characters they hold.
    return hashlib.blake2b(msgspec.json.encode((stream, kind, series_key, starts_at_ms)), digest_size=16).hexdigest()


def iso(time_ms: int) -> str:
    """Milliseconds since the epoch as `2026-01-01T12:00:00.000Z`; what lies outside the years 1 to 9999 becomes their first or last."""
    seconds, rest = divmod(min(max(time_ms, _FIRST_MS), _LAST_MS), 1000)
    return f"{_iso_seconds(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=1024)  # writing a date takes 2 us, and a storm of alerts shares its moments
def _iso_seconds(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat()[:-6]


@cache
def load_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the messages, as shipped; do not change what is returned."""
    schema: dict[str, Any] = json.loads(resources.files(__package__).joinpath("alert.schema.json").read_text("utf-8"))
    return schema
