"""Score messages, schema version 1: what consumers of the scores topic read, one for each sample.

As an alert, a message depends on the sample and on what its series had been before, and on nothing else: a replay would write the same
bytes. The words are those of alerts.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.messages import THRESHOLD, Model, Series, Source, iso, leading
from anomalyd.batch import LATE, REPEATED, WARMUP, Verdicts
from anomalyd.series.key import parse_key

SCHEMA_VERSION: Final = 1

State = Literal["scored", "warmup", "late", "repeated"]

_STATE: Final[dict[int, State]] = {0: "scored", WARMUP: "warmup"}


class ScoredFeature(msgspec.Struct, frozen=True):
    """One feature of a sample with several."""

    name: str
    value: float | None
    expected: float | None
    expected_range: tuple[float, float] | None
    share: float


class Score(msgspec.Struct, frozen=True):
    """One message; the fields are described in score.schema.json."""

    schema_version: int
    stream: str
    series: msgspec.Raw
    event_time: str
    state: State
    score: float
    threshold: float
    value: float | None
    expected: float | None
    expected_range: tuple[float, float] | None
    features: list[ScoredFeature] | None
    source: Source
    model: Model


class ScoreWriter:
    """Writes the score messages of one shard.

    Args:
        stream: the stream's name.
        topic: where the shard's samples come from.
        partition: of that topic.
        feature_names: of samples with several features, F of them; left out: feature_0, feature_1, …
    """

    def __init__(self, *, stream: str, topic: str, partition: int, feature_names: Sequence[str] = ()) -> None:
        self._stream = stream
        self._topic = topic
        self._partition = partition
        self._feature_names = tuple(feature_names)
        self._encode = msgspec.json.Encoder(order="deterministic").encode

    def series(self, key: str) -> tuple[bytes, msgspec.Raw]:
        """What all messages of a series have in common: their record key, and the series as JSON."""
        name, labels = parse_key(key)
        return key.encode(), msgspec.Raw(self._encode(Series(key, name, labels)))

    def write(
        self,
        series: Sequence[tuple[bytes, msgspec.Raw]],
        time_ms: NDArray[np.int64],
        offset: NDArray[np.int64],
        verdicts: Verdicts,
        which: NDArray[np.int64],
        model: Model,
    ) -> list[tuple[bytes, bytes]]:
        """The messages of some samples of a batch, in order: record key and value.

        Args:
            series: of each of them, as `series` made it.
            time_ms: event time of each of them, shape (m,).
            offset: of the record that completed each of them, shape (m,).
            verdicts: of the whole batch.
            which: indices into it, ascending, shape (m,).
            model: that gave the scores.
        """
        several = verdicts.share.shape[1] > 1
        one = (which, leading(verdicts.share[which], verdicts.observed[which]))
        columns = zip(
            series,
            time_ms.tolist(),
            offset.tolist(),
            verdicts.flags[which].tolist(),
            verdicts.score[which].tolist(),
            verdicts.observed[one].tolist(),
            verdicts.expected[one].tolist(),
            verdicts.low[one].tolist(),
            verdicts.high[one].tolist(),
            which.tolist(),
            strict=True,
        )
        messages = []
        for (key, raw), at, where, flags, score, value, expected, low, high, i in columns:
            message = Score(
                SCHEMA_VERSION,
                self._stream,
                raw,
                iso(at),
                _state(flags),
                score,
                THRESHOLD,
                _known(value),
                _known(expected),
                _range(low, high),
                self._features(verdicts, i) if several else None,
                Source(self._topic, self._partition, where),
                model,
            )
            messages.append((key, self._encode(message)))
        return messages

    def _features(self, verdicts: Verdicts, i: int) -> list[ScoredFeature]:
        """Every feature in the order of the sample."""
        names = self._feature_names or tuple(f"feature_{f}" for f in range(verdicts.share.shape[1]))
        columns = (verdicts.observed, verdicts.expected, verdicts.low, verdicts.high, verdicts.share)
        rows = zip(names, *(column[i].tolist() for column in columns), strict=True)
        return [
            ScoredFeature(name, _known(value), _known(expected), _range(low, high), round(share, 6))
            for name, value, expected, low, high, share in rows
        ]


def _state(flags: int) -> State:
    if flags & LATE:
        return "late"
    if flags & REPEATED:
        return "repeated"
    return _STATE[flags & WARMUP]


def _known(value: float) -> float | None:
    return None if value != value else value  # noqa: PLR0124  NaN, in a third of the time that math.isnan takes


def _range(low: float, high: float) -> tuple[float, float] | None:
    return None if low != low or high != high else (low, high)  # noqa: PLR0124  likewise


@cache
def load_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the messages, as shipped; do not change what is returned."""
    schema: dict[str, Any] = json.loads(resources.files(__package__).joinpath("score.schema.json").read_text("utf-8"))
    return schema
