"""A bounded, seeded sample of a stream: the newest samples of some of its series.

Series are drawn, not samples: each series has a rank, a hash of its key and the seed, and those with the lowest ranks are kept (bottom-k
sampling; Cohen, Kaplan: Summarizing data using bottom-k sketches, PODC 2007). So every series has the same chance however much it says, the
choice does not depend on the order of records, and a restart with the same seed draws the same ones.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import cramjam
import numpy as np
import xxhash
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.errors import StateError
from anomalyd.formats import Decoder
from anomalyd.jit import njit
from anomalyd.selection import Selection
from anomalyd.series import Entities, SeriesIndex
from anomalyd.series.aliases import AliasTable

_ALL: Final = 1 << 64
_FORMAT: Final = 2
_ROOM: Final = 1024
"""Rows beyond those kept, for series that are drawn within a batch and found to be too many behind it; address space until they are used.
Of a single record with more series than there are rows, nothing is used."""
ESTABLISHED_MS: Final = 3_600_000
"""Event time over which a series has sent when it counts as one that stays. Time and not samples, or the chatty ones would be favoured."""
_NEW: Final = 1 / 8
"""Part of the room that other series get where there are enough that stay."""
_YOUNG_GONE: Final = 1 / 8
"""So much sooner than others are those let go when they send no more."""
LATE_RUN: Final = 100
"""So many samples of a series in a row, each older than its newest, say that the newest one came from the future."""
_SPELLINGS: Final = 4_000_000
"""Most raw spellings remembered, of series that are not drawn too, 24 to 48 bytes each as they are seen."""


class History(NamedTuple):
    """What is known of one series, oldest first."""

    key: str
    time_ms: NDArray[np.int64]
    """(n,)"""
    value: NDArray[np.float64]
    """(n, F), NaN where a value is missing."""


@dataclass(frozen=True, slots=True)
class Kept:
    """How much is held."""

    series: int
    samples: int
    bytes: int


class Stored(NamedTuple):
    """What was written down of a reservoir: s series, n samples of all."""

    about: dict[str, Any]
    """What the caller of `dump` had said."""
    limit: int
    """Of ranks."""
    keys: list[str]
    """(s,)"""
    lengths: list[int]
    """Samples of each, (s,)."""
    begun_ms: list[int]
    """Event time of the first sample that was ever kept of each, (s,)."""
    time_ms: NDArray[np.int64]
    """(n,)"""
    value: NDArray[np.float64]
    """(n, F)"""


class _DrawnIndex(SeriesIndex):
    """Only series with a rank below the limit get rows."""

    def __init__(self, capacity: int, select: Selection | None, entities: Entities | None, seed: int) -> None:
        super().__init__(capacity, select, entities)
        self.aliases = AliasTable(limit=_SPELLINGS)
        self.limit = _ALL
        self._seed = seed

    def rank(self, key: str) -> int:
        """Of a series, by its canonical key, below 2^64."""
        return xxhash.xxh3_64_intdigest(key.encode(errors="surrogatepass"), self._seed)

    def _place(self, name: str, labels: Mapping[str, str]) -> tuple[str, int] | None:
        place = super()._place(name, labels)
        return place if place is not None and (self.find(place[0]) is not None or self.rank(place[0]) < self.limit) else None


class Reservoir:
    """The newest samples of the drawn series of one stream.

    Args:
        most_bytes: of samples; what is not yet filled takes no memory.
        samples: of a series, the newest.
        seed: of the draw.
        select: which series are watched.
        entities: which values belong together.

    Raises:
        ValueError: not even one series fits.
    """

    def __init__(self, most_bytes: int, samples: int, seed: int, select: Selection | None = None, entities: Entities | None = None) -> None:
        self.features = 1 if entities is None else len(entities)
        self.samples = samples
        self.most_series = most_bytes // (samples * 8 * (1 + self.features))
        if self.most_series < 1:
            raise ValueError(f"{most_bytes} bytes do not hold {samples} samples of {self.features} values")
        self._interval_ms = 0 if entities is None else entities.interval_ms or 0
        self._index = _DrawnIndex(self.most_series + _ROOM, select, entities, seed)
        rows = self._index.capacity
        self._times = np.zeros((rows, samples), np.int64)
        self._values = np.zeros((rows, samples, self.features))
        self._count = np.zeros(rows, np.int64)
        self._begun = np.zeros(rows, np.int64)  # event time of the first sample that was ever kept
        self._late = np.zeros((rows, 2), np.int64)  # late samples in a row, and the time of the last one

    def __len__(self) -> int:
        return len(self._index)

    def take(self, decoder: Decoder, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int]) -> int:
        """Reads records and keeps the samples of drawn series; returns how many.

        Args:
            decoder: of the stream's format.
            values: record values, in order.
            timestamp_ms: gives the Kafka timestamp of a record by its number.
        """
        start, kept = 0, 0
        while start < len(values):
            decoded = decoder.decode(values[start:], lambda record, start=start: timestamp_ms(start + record), self._index)  # type: ignore[misc]
            kept += self._append(decoded.batch)
            self._prune()
            if not decoded.consumed:
                self._narrow()  # one record brings more series than there are rows
            start += decoded.consumed
        return kept

    def _narrow(self) -> None:
        """Half of the series from here on. Sooner or later what is drawn of a record fits, if nothing is."""
        self._index.limit //= 2
        self._release([row for rank, row in self._ranked(young=True) if rank >= self._index.limit])

    def _ranked(self, *, young: bool) -> list[tuple[int, int]]:
        """Rank and row of the series that have not proved to stay, or of those that have; the highest rank first."""
        return sorted(((self._index.rank(key), row) for row, key in self._held() if self._is_young(row) == young), reverse=True)

    def _held(self) -> list[tuple[int, str]]:
        """Row and key of each drawn series."""
        return [(row, key) for row, key in enumerate(self._index.keys) if key is not None]

    def _is_young(self, row: int) -> bool:
        return self._newest(row) - int(self._begun[row]) < ESTABLISHED_MS

    def _append(self, batch: SampleBatch) -> int:
        if not len(batch):
            return 0
        time_ms = batch.time_ms - batch.time_ms % self._interval_ms if self._interval_ms else batch.time_ms
        rows, feature = batch.row // self.features, batch.row % self.features
        value = np.ascontiguousarray(batch.value[:, 0])
        seen, first = np.unique(rows, return_index=True)
        self._begun[seen] = np.where(self._count[seen] == 0, time_ms[first], self._begun[seen])
        kept: int = _append(self._times, self._values, self._count, self._late, rows, feature, time_ms, value)
        newest = self._times[seen, (self._count[seen] - 1) % self.samples]
        self._begun[seen] = np.minimum(self._begun[seen], newest)  # it may have had a wrong clock at first
        return kept

    def _prune(self) -> None:
        """Keeps the lowest ranks where more series were drawn than there is room for.

        Those that stay give way to others down to seven eighths of the room: names that come and go by the thousand would else
        leave nothing that can be learned from, and without such a part nobody new would be learned of.
        """
        excess = len(self._index) - self.most_series
        if excess <= 0:
            return
        old, young = self._ranked(young=False), self._ranked(young=True)
        given = min(excess, max(0, len(old) - self.most_series + int(self.most_series * _NEW)))
        released = young[: excess - given]
        if released:
            self._index.limit = released[-1][0]
        self._release([row for _, row in [*old[:given], *released]])

    def _release(self, rows: Sequence[int]) -> None:
        self._index.release(np.array(rows, np.int32))
        self._count[rows] = 0
        self._begun[rows] = 0
        self._late[rows] = 0

    @property
    def now_ms(self) -> int | None:
        """Event time of the stream: the median of its series' newest samples, so that no single clock decides; None while there is none."""
        newest = [self._newest(row) for row, _ in self._held() if self._count[row]]
        return int(np.median(newest)) if newest else None

    @property
    def oldest_ms(self) -> int | None:
        """Event time of the oldest sample that is kept; None while there is none."""
        rows = np.flatnonzero(self._count)
        first = np.maximum(self._count[rows] - self.samples, 0) % self.samples
        return int(self._times[rows, first].min()) if len(rows) else None

    def forget(self, now_ms: int, gone_ms: int) -> None:
        """Lets go of series without a sample for so long, of young ones sooner, so that others can be drawn instead."""
        gone = [row for row, _ in self._held() if self._newest(row) < now_ms - gone_ms * (_YOUNG_GONE if self._is_young(row) else 1)]
        if gone:
            self._release(gone)
            # Ranks below the limit are those of young ones: so many more as there is room for now.
            young = sum(self._is_young(row) for row, _ in self._held())
            room = max(self.most_series * _NEW, self.most_series - (len(self._index) - young)) / max(1, young)
            self._index.limit = _ALL if room >= 2 else min(_ALL, int(self._index.limit * max(1.0, room)))
            self._index.aliases.clear()  # what was not drawn may be now

    def _newest(self, row: int) -> int:
        count = int(self._count[row])
        return int(self._times[row, (count - 1) % self.samples]) if count else 0

    def histories(self) -> list[History]:
        """Of all drawn series, in the order of their keys."""
        found = []
        for row, key in self._held():
            if count := int(self._count[row]):
                order = np.arange(max(0, count - self.samples), count) % self.samples
                found.append(History(key, self._times[row, order], self._values[row, order]))
        return sorted(found, key=lambda history: history.key)

    def kept(self) -> Kept:
        """How much is held now; bytes of samples."""
        samples = int(np.minimum(self._count, self.samples).sum())
        return Kept(len(self._index), samples, samples * 8 * (1 + self.features))

    # --- over a restart ---------------------------------------------------------------------------------------------

    def dump(self, about: Mapping[str, Any]) -> bytes:
        """Everything that was kept, with what the caller has to say about it, JSON."""
        histories = self.histories()
        head = {"format": _FORMAT, "features": self.features, "limit": str(self._index.limit), "about": dict(about)}
        out = io.BytesIO()
        np.savez(
            out,
            head=np.frombuffer(json.dumps(head).encode(), np.uint8),
            keys=np.frombuffer(json.dumps([history.key for history in histories]).encode(), np.uint8),
            length=np.array([len(history.time_ms) for history in histories], np.int64),
            begun=np.array([self._begun[self._index.find(history.key)] for history in histories], np.int64),
            time_ms=np.concatenate([np.empty(0, np.int64), *(history.time_ms for history in histories)]),
            value=np.concatenate([np.empty((0, self.features)), *(history.value for history in histories)]),
        )
        # Fast rather than small: it is written each minute, on the event loop.
        return bytes(cramjam.zstd.compress(out.getvalue(), level=1))

    def read(self, data: bytes) -> Stored:
        """What `dump` gave, checked.

        Raises:
            StateError: it is damaged, or about other features.
        """
        try:
            with np.load(io.BytesIO(bytes(cramjam.zstd.decompress(data))), allow_pickle=False) as stored:
                head = json.loads(stored["head"].tobytes())
                if head["format"] != _FORMAT or head["features"] != self.features:
                    raise StateError(f"it has format {head['format']} and {head['features']} features, not {_FORMAT} and {self.features}")
                keys, lengths, begun = json.loads(stored["keys"].tobytes()), stored["length"].tolist(), stored["begun"].tolist()
                times, values = stored["time_ms"], stored["value"]
            if not len(keys) == len(lengths) == len(begun) or sum(lengths) != len(times) or values.shape != (len(times), self.features):
                raise StateError("its columns do not fit each other")
            return Stored(dict(head["about"]), int(head["limit"]), keys, lengths, begun, times, values)
        except StateError:
            raise
        except Exception as error:  # zstd, zip, JSON and numpy have an error each for what is damaged
            raise StateError(f"it can't be read: {error!r}") from error

    def load(self, data: bytes) -> dict[str, Any]:
        """Takes in what `dump` gave, into an empty reservoir; returns what the caller had said. Raises as `read`."""
        stored = self.read(data)
        self.fill(stored)
        return stored.about

    def fill(self, stored: Stored) -> None:
        """Takes it in, into an empty reservoir."""
        limit, times, values = stored.limit, stored.time_ms, stored.value
        end = 0
        self._index.limit = limit
        for key, length, begun_ms in zip(stored.keys, stored.lengths, stored.begun_ms, strict=True):
            end += length
            young = not length or int(times[end - 1]) - begun_ms < ESTABLISHED_MS
            if len(self._index) >= self.most_series or (young and self._index.rank(key) >= limit):
                continue  # less room than before, or another seed
            row, n = self._index.allocate(key), min(length, self.samples)
            self._times[row, :n], self._values[row, :n] = times[end - n : end], values[end - n : end]
            self._count[row], self._begun[row] = n, begun_ms


@njit
def _older(times: NDArray[np.int64], values: NDArray[np.float64], r: int, n: int, time_ms: int) -> int:
    """Leaves of a ring only what is older than a moment, from its beginning on; returns how many that are."""
    room = times.shape[1]
    first = max(0, n - room)
    kept = first
    while kept < n and times[r, kept % room] < time_ms:
        kept += 1
    order = np.arange(first, kept) % room
    old_times, old_values = times[r][order], values[r][order]
    times[r, : kept - first] = old_times
    values[r, : kept - first] = old_values
    left: int = kept - first
    return left


@njit
def _append(
    times: NDArray[np.int64],
    values: NDArray[np.float64],
    count: NDArray[np.int64],
    late: NDArray[np.int64],
    row: NDArray[np.int32],
    feature: NDArray[np.int32],
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
) -> int:
    """Samples into their rings; late and repeated ones are left out, values of the newest sample's time complete it.

    Behind LATE_RUN late samples in a row it was the newest ones that had a wrong time: they go.
    """
    room, kept = times.shape[1], 0
    for i in range(len(row)):
        r, n = row[i], count[row[i]]
        last = (n - 1) % room
        if n and time_ms[i] <= times[r, last]:
            if time_ms[i] == times[r, last]:
                if np.isnan(values[r, last, feature[i]]):
                    values[r, last, feature[i]] = value[i]
                    kept += 1
                continue
            if time_ms[i] != late[r, 1]:
                late[r, 0] += 1
                late[r, 1] = time_ms[i]
            if late[r, 0] < LATE_RUN:
                continue
            n = int(_older(times, values, r, n, time_ms[i]))
        late[r, 0] = late[r, 1] = 0
        at = n % room
        times[r, at] = time_ms[i]
        values[r, at, :] = np.nan
        values[r, at, feature[i]] = value[i]
        count[r] = n + 1
        kept += 1
    return kept
