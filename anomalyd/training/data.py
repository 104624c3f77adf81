"""Histories to train on: from files, from records in a wire format, or from a Kafka topic, as the detector would be handed them.

Records go through a shard of the production engine, so selection, entities and the assembling of their samples are those of the daemon.
Whatever the source, a history is in the order of event time, each time once (the newest value counts).
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.messages import iso
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.app import stream_plan
from anomalyd.batch import Record, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import InputFileError
from anomalyd.evaluation.readers import FIRST_MS, STEP_MS, InputFile, read_lines, read_table, too_short
from anomalyd.formats import FormatOptions, make_decoder
from anomalyd.settings import Settings, StreamSettings
from anomalyd.shard import Shard
from anomalyd.stream_model import artifact_of
from anomalyd.training.history import LEAST_TRAIN

CHUNK: Final = 4096
_NO_TTL: Final = 1 << 62
_NAMED: Final = 3


@dataclass(frozen=True, slots=True)
class History:
    """The past of one series."""

    name: str
    time_ms: NDArray[np.int64]
    """Event times, each later than the one before, shape (n,)."""
    value: NDArray[np.float64]
    """NaN where one of several is missing, shape (n, F)."""

    def __len__(self) -> int:
        return len(self.time_ms)


@dataclass(frozen=True, slots=True)
class Data:
    """Histories with equally many values."""

    histories: tuple[History, ...]
    names: tuple[str, ...] | None
    """Of the values, where they are known."""
    timed: bool
    """Whether event times are those of the source, and not made up."""
    short: int = 0
    """Series left out because they have too few samples."""
    rejected: Counter[str] | None = None
    """Records that could not be read, by reason."""

    @property
    def features(self) -> int:
        """Values of a sample."""
        return int(self.histories[0].value.shape[1])

    @property
    def samples(self) -> int:
        """Of all series."""
        return sum(map(len, self.histories))

    def described(self) -> dict[str, Any]:
        """What a manifest says of it: sizes, span, and a SHA-256 over names, times and values."""
        digest = hashlib.sha256()
        for history in self.histories:
            digest.update(f"{history.name}\0{len(history)}\0".encode())
            digest.update(np.ascontiguousarray(history.time_ms, "<i8").tobytes())
            digest.update(np.ascontiguousarray(history.value, "<f8").tobytes())
        first = min(int(history.time_ms[0]) for history in self.histories)
        last = max(int(history.time_ms[-1]) for history in self.histories)
        return {
            "series": len(self.histories),
            "samples": self.samples,
            "first": iso(first) if self.timed else None,
            "last": iso(last) if self.timed else None,
            "sha256": digest.hexdigest(),
        }

    def usable(self) -> Self:
        """Without the series that are too short.

        Raises:
            InputFileError: none is left.
        """
        long = tuple(history for history in self.histories if len(history) >= LEAST_TRAIN)
        if not long:
            raise InputFileError(f"no series has {LEAST_TRAIN} samples, which a model needs{_longest(self.histories)}")
        return replace(self, histories=long, short=len(self.histories) - len(long))


def _longest(histories: Sequence[History]) -> str:
    if not histories:
        return ": there is no series at all"
    longest = sorted(histories, key=len, reverse=True)[:_NAMED]
    return f"; the longest are {', '.join(f'{history.name} ({len(history):,})' for history in longest)}"


# --- files --------------------------------------------------------------------------------------------------------


def of_tables(files: Sequence[InputFile]) -> Data:
    """The histories of CSV and npz files, one series each; of those with `train` and `test` only train.

    Raises:
        InputFileError: a file cannot be read, has too few rows, or two have different columns.
    """
    histories: list[History] = []
    named: tuple[InputFile, tuple[str, ...]] | None = None
    timed = True
    for file in files:
        table = read_table(file)
        if table.train is None:
            time_ms, value = table.time_ms, table.value
        else:
            timed = False
            time_ms, value = FIRST_MS + STEP_MS * np.arange(len(table.train), dtype=np.int64), table.train
        if len(value) < LEAST_TRAIN:
            raise InputFileError(too_short(file.path, len(value), LEAST_TRAIN, " of train" if table.train is not None else ""))
        if histories and value.shape[1] != histories[0].value.shape[1]:
            raise InputFileError(
                f"{file.path}: has {_values(value.shape[1])}, {files[0].path} has {_values(histories[0].value.shape[1])}; one model is for "
                "series with the same features: train one for each kind"
            )
        if file.kind == "csv" and value.shape[1] > 1:
            named = _same_names(file, table.names, named)
        histories.append(_ordered(file.name, time_ms, value))
    return Data(tuple(histories), None if named is None else named[1], timed).usable()


def _values(count: int) -> str:
    return "one value column" if count == 1 else f"{count} value columns"


def _same_names(
    file: InputFile, names: tuple[str, ...], named: tuple[InputFile, tuple[str, ...]] | None
) -> tuple[InputFile, tuple[str, ...]]:
    if named is not None and named[1] != names:
        raise InputFileError(
            f"{file.path}: columns are {', '.join(names)}; those of {named[0].path} are {', '.join(named[1])}, "
            "and must be the same in the same order"
        )
    return named or (file, names)


def _ordered(name: str, time_ms: NDArray[np.int64], value: NDArray[np.float64]) -> History:
    """In the order of event time, of equal times the last one."""
    order = np.argsort(time_ms, kind="stable")
    time_ms, value = time_ms[order], value[order]
    last = np.append(time_ms[1:] > time_ms[:-1], True)
    return History(name, np.ascontiguousarray(time_ms[last]), np.ascontiguousarray(value[last]))


# --- records ------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line as a record; nobody knows when it was produced."""

    offset: int
    value: bytes
    key: bytes | None = None
    timestamp: int = -1


def lines_of(file: InputFile) -> Iterator[Sequence[Record]]:
    """The lines of a file as records, some at a time. Raises InputFileError."""
    lines = (Line(number, line) for number, line in enumerate(read_lines(file)) if line.strip())
    while chunk := list(islice(lines, CHUNK)):
        yield chunk


class Collector:
    """Takes records of any number of partitions and keeps their samples in columns.

    Args:
        settings: for room.
        stream: format, selection and entities.
    """

    def __init__(self, settings: Settings, stream: StreamSettings) -> None:
        plan = stream_plan(stream, settings.policy(stream))
        self._plan = replace(plan, silence=SilencePolicy("off"))
        # The weights do not matter, the number of values does.
        features = 1 if stream.features is None else len(stream.features.names)
        artifact = artifact_of(stream) if stream.model is None else artifacts.load(shipped()).for_features(features)
        self._detector = Detector(artifact, "cpu")
        self._decoder = make_decoder(stream.format, FormatOptions(stream.timestamp_unit))
        self._capacity = settings.max_series
        self._names = None if stream.features is None else stream.features.names
        self._keys: dict[str, int] = {}
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.float64]]] = []
        self._rejected: Counter[str] = Counter()

    def partition(self, source: Source) -> Callable[[Sequence[Record]], None]:
        """Takes the records of a partition, some at a time and in order."""
        shard = Shard(self._plan, source, self._detector, self._decoder, self._capacity, observer=self._keep, series_ttl_ms=_NO_TTL)

        def take(records: Sequence[Record]) -> None:
            self._rejected.update(shard.process(records).rejected)

        return take

    def data(self, most: int | None = None) -> Data:
        """What was taken, series by name; at most so many samples, the newest ones.

        Raises:
            InputFileError: no series has enough samples.
        """
        if not self._parts:
            raise InputFileError(f"no record held a sample that is wanted{self._reasons()}")
        series, time_ms, value = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        if most is not None and len(series) > most:
            newest = np.sort(np.argsort(time_ms, kind="stable")[-most:])
            series, time_ms, value = series[newest], time_ms[newest], value[newest]
        order = np.argsort(series, kind="stable")
        series, time_ms, value = series[order], time_ms[order], value[order]
        histories = []
        for key, number in sorted(self._keys.items()):
            own = slice(*np.searchsorted(series, [number, number + 1]))
            if own.stop > own.start:
                histories.append(_ordered(key, time_ms[own], value[own]))
        return replace(Data(tuple(histories), self._names, timed=True).usable(), rejected=self._rejected)

    def _reasons(self) -> str:
        return "".join(f"; {count:,} could not be read: {reason}" for reason, count in sorted(self._rejected.items()))

    def _keep(self, shard: Shard, batch: SampleBatch, _: Verdicts, __: object) -> None:
        # By key and not by row: rows change hands when series are evicted.
        rows, inverse = np.unique(batch.row, return_inverse=True)
        own = np.array([self._keys.setdefault(str(shard.index.keys[row]), len(self._keys)) for row in rows.tolist()], np.int32)
        self._parts.append((own[inverse], batch.time_ms.copy(), batch.value.copy()))
