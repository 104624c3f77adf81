"""Scores as time series: which series a sample becomes, and requests made of many samples."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from anomalyd.batch import Points
from anomalyd.labels import fitted
from anomalyd.remote.protobuf import compress, encode_labels, encode_series
from anomalyd.series.key import parse_key

_MOST_KNOWN: Final = 1_000_000
"""Series of which the time of the newest sample is remembered; beyond, all is forgotten at once."""


class Names(NamedTuple):
    """What the time series are called."""

    score: str = "anomaly_score"
    expected: str = "yhat"
    low: str = "yhat_lower"
    high: str = "yhat_upper"


class Request(NamedTuple):
    """A request to be sent."""

    body: bytes
    samples: int
    """Scored samples in it."""
    stale: int
    """Samples that were left out: not newer than one of their series that has been sent."""


class Requests:
    """Makes requests, and remembers up to when each series was sent: Prometheus takes samples of a series in order only.

    Args:
        names: of the time series.
        labels: added to each.
    """

    def __init__(self, names: Names, labels: Mapping[str, str]) -> None:
        self._names = names
        self._labels = dict(labels)
        self._newest: dict[tuple[str, str], int] = {}
        self._encoded: dict[tuple[str, str, int], list[bytes]] = {}

    def make(self, parts: Sequence[Points]) -> Request:
        """One request of all these samples. Not on the event loop: each takes some microseconds."""
        if len(self._newest) > _MOST_KNOWN:
            self._newest.clear()
            self._encoded.clear()
        samples = stale = 0
        series: dict[tuple[str, str, int], list[list[tuple[int, float]]]] = {}
        for points in parts:
            features = points.expected.shape[1]
            rows = zip(
                points.key,
                points.time_ms.tolist(),
                points.score.tolist(),
                points.expected.tolist(),
                points.low.tolist(),
                points.high.tolist(),
                strict=True,
            )
            for key, time_ms, score, expected, low, high in rows:
                whose = (points.stream, key)
                if time_ms <= self._newest.get(whose, -(1 << 62)):
                    stale += 1
                    continue
                self._newest[whose] = time_ms
                samples += 1
                place = (points.stream, key, features)
                columns = series.get(place)
                if columns is None:
                    columns = series[place] = [[] for _ in range(1 + 3 * features)]
                    if place not in self._encoded:
                        self._encoded[place] = self._labels_of(points, key, features)
                for column, value in zip(columns, (score, *expected, *low, *high), strict=True):
                    if math.isfinite(value):
                        column.append((time_ms, value))
        parts_of_body = [
            encode_series(labels, column)
            for place, columns in series.items()
            for labels, column in zip(self._encoded[place], columns, strict=True)
            if column
        ]
        return Request(compress(parts_of_body), samples, stale)

    def _labels_of(self, points: Points, key: str, features: int) -> list[bytes]:
        """The encoded labels of all time series of a series: its score, then of each feature what was expected, all lows, all highs."""
        name, own = parse_key(key)
        common = {"for": name, "stream": points.stream, **self._labels}
        labels = common | fitted(own, common)
        names = points.feature_names or tuple(f"feature_{f}" for f in range(features))
        which = [{"feature": names[f]} for f in range(features)] if features > 1 else [{}]
        return [encode_labels(labels | {"__name__": self._names.score})] + [
            encode_labels(labels | one | {"__name__": metric}) for metric in self._names[1:] for one in which
        ]
