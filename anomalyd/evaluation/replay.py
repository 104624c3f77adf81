"""One file of history through a fresh shard: the daemon's own engine, with its scores kept.

Messages are those that the daemon would have sent, but for `detected_at`, which here is the event time: history has no clock.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from anomalyd.alerts.messages import Alert
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.batch import SampleBatch, Source, Verdicts
from anomalyd.detector import Detector
from anomalyd.detector.recipe import TRIAL_MS
from anomalyd.evaluation.readers import InputFile, Table, read_lines
from anomalyd.formats import Decoded, Decoder
from anomalyd.series import SeriesIndex
from anomalyd.shard import Shard, StreamPlan

CHUNK: Final = 4096
"""Rows or lines that go through the shard together; verdicts do not depend on it."""

Progress = Callable[[int], None]
"""Told how many rows or lines were done, each time some were."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Every scored sample in input order. Letters: n samples, F features."""

    row: NDArray[np.int64]
    """Row or line of the input, from 0, shape (n,)."""
    series: NDArray[np.int32]
    """Index into `keys`, shape (n,)."""
    time_ms: NDArray[np.int64]
    """Event time, shape (n,)."""
    verdicts: Verdicts
    """What the detector said."""
    keys: tuple[str, ...]
    """Canonical series keys, in order of appearance."""

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True, slots=True)
class Replay:
    """What became of a file."""

    trace: Trace
    alerts: tuple[Alert, ...]
    """All messages, in order."""
    rejected: dict[str, int]
    """Records that could not be read or only in part, by reason."""

    @property
    def episodes(self) -> int:
        """Alerts that fired."""
        return sum(alert.status == "firing" for alert in self.alerts)


def replay_table(file: InputFile, table: Table, stream: StreamPlan, detector: Detector, progress: Progress) -> Replay:
    """Streams the rows of a table as one series, called like the file. What lies in its train part is learned and not reported.

    Args:
        file: where the table comes from.
        table: its rows.
        stream: name and alert policy; selection and dropped labels are about records and do not apply.
        detector: for as many features as the table has values.
        progress: told about rows, those of train too.
    """
    tape = _Tape()
    # A file is one series whatever the configuration selects, and one alone is never silent: looking for that took most of the time.
    plan = replace(stream, select=None, entities=None, silence=SilencePolicy("off"))
    shard = Shard(
        plan, Source(str(file.path), 0), detector, _NoDecoder(), 1, observer=tape.take, feature_names=table.names, series_ttl_ms=_NO_TTL
    )
    row = shard.index.row(file.name, {})

    def advance(time_ms: NDArray[np.int64], value: NDArray[np.float64], numbers: NDArray[np.int64]) -> Iterator[Alert]:
        for start in range(0, len(value), CHUNK):
            part = slice(start, start + CHUNK)
            own = numbers[part]
            n = len(own)
            tape.numbers = own
            batch = SampleBatch(np.full(n, row, np.int32), time_ms[part], value[part], np.arange(n, dtype=np.int32))
            outcome = shard.advance(batch, own)
            yield from (alert.message.alert for alert in outcome.alerts)
            progress(n)

    told: set[str] = set()
    if table.train is not None and len(table):
        step_ms = int(np.median(np.diff(table.time_ms))) if len(table) > 1 else 1
        before_ms = table.time_ms[0] - step_ms * np.arange(len(table.train), 0, -1, dtype=np.int64)
        told = {alert.alert_id for alert in advance(before_ms, table.train, np.zeros(len(table.train), np.int64))}
        tape.rewind()
    # An episode that began in train belongs to train to its end.
    alerts = [alert for alert in advance(table.time_ms, table.value, table.row) if alert.alert_id not in told]
    return Replay(tape.trace(detector.features), tuple(map(_at_event_time, alerts)), {})


def replay_lines(
    file: InputFile,
    stream: StreamPlan,
    detector: Detector,
    decoder: Decoder,
    capacity: int,
    series_ttl_ms: int,
    progress: Progress,
    most: int | None = None,
) -> Replay:
    """Streams the lines of a file as records of one partition, offsets being line numbers from 0. Blank lines are passed over.

    Args:
        file: what to read.
        stream: as the daemon has it.
        detector: for as many features as the stream's entities have, or one.
        decoder: of the records' format.
        capacity: most series that are kept.
        series_ttl_ms: event time without a sample after which a series begins anew.
        progress: told about lines.
        most: not more than so many lines; None: all.
    """
    tape = _Tape()
    positioned = _PositionedDecoder(decoder, tape)
    shard = Shard(stream, Source(str(file.path), 0), detector, positioned, capacity, observer=tape.take, series_ttl_ms=series_ttl_ms)
    alerts: list[Alert] = []
    rejected: Counter[str] = Counter()
    lines = enumerate(islice(read_lines(file), most))
    while chunk := list(islice(lines, CHUNK)):
        records = [_Line(number, line) for number, line in chunk if line.strip()]
        if records:
            positioned.begin(records)
            outcome = shard.process(records)
            alerts += [alert.message.alert for alert in outcome.alerts]
            rejected.update(outcome.rejected)
        progress(len(chunk))
    return Replay(tape.trace(detector.features), tuple(map(_at_event_time, alerts)), dict(rejected))


def ranking(trace: Trace, detector: Detector) -> NDArray[np.float64]:
    """How anomalous each sample is, shape (n,): its score times the threshold of a grown series with a sample a minute.

    The verdicts' own evidence ranks worse: of a series that is young as much of it says less, which the score knows.
    """
    return trace.verdicts.score * grown_threshold(detector, 60_000.0)


def grown_threshold(detector: Detector, step_ms: float) -> float:
    """The evidence that a score of 1 stands for in a series that is not young, by its usual step (docs/detection.md, step 7)."""
    log10_budget, intercept, slope, lowest = (float(t) for t in detector.threshold[:4])
    log10_rate = log10_budget + math.log10(max(step_ms, TRIAL_MS))
    return max((intercept - log10_rate) / slope, lowest)


def encode(alert: Alert) -> bytes:
    """The message as the daemon writes it."""
    return _ENCODER.encode(alert)


_NO_TTL: Final = 1 << 62
"""A table is judged as one course of values, however long its gaps are."""

_ENCODER: Final = msgspec.json.Encoder(order="deterministic")


def _at_event_time(alert: Alert) -> Alert:
    return msgspec.structs.replace(alert, detected_at=alert.event_time)


class _Line(NamedTuple):
    """A line as a record; nobody knows when it was produced."""

    offset: int
    value: bytes
    key: bytes | None = None
    timestamp: int = -1


class _Tape:
    """Keeps what an observer sees."""

    def __init__(self) -> None:
        self.numbers: NDArray[np.int64] = np.empty(0, np.int64)
        """Row or line number of each record that the coming batch may refer to."""
        self._keys: dict[str, int] = {}
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], Verdicts]] = []

    def take(self, shard: Shard, batch: SampleBatch, verdicts: Verdicts, _: object) -> None:
        """The observer."""
        # By key and not by row: rows change hands when series are evicted.
        rows, inverse = np.unique(batch.row, return_inverse=True)
        own = np.array([self._keys.setdefault(str(shard.index.keys[row]), len(self._keys)) for row in rows.tolist()], np.int32)
        self._parts.append((self.numbers[batch.record], own[inverse], batch.time_ms, verdicts))

    def rewind(self) -> None:
        """Forgets the samples so far."""
        self._parts.clear()

    def trace(self, features: int) -> Trace:
        """All of it."""
        rows, series, times, verdicts = zip(_nothing(features), *self._parts, strict=True)
        columns = {column.name: np.concatenate([getattr(v, column.name) for v in verdicts]) for column in fields(Verdicts)}
        return Trace(np.concatenate(rows), np.concatenate(series), np.concatenate(times), Verdicts(**columns), tuple(self._keys))


def _nothing(features: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], Verdicts]:
    wide, narrow = np.empty((0, features)), np.empty(0)
    verdicts = Verdicts(narrow, narrow, wide, wide, wide, wide, share=np.empty((0, features), np.float32), flags=np.empty(0, np.uint8))
    return np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), verdicts


class _PositionedDecoder:
    """A decoder that tells the tape which lines its batches are about."""

    def __init__(self, decoder: Decoder, tape: _Tape) -> None:
        self._decoder = decoder
        self._tape = tape
        self._left: NDArray[np.int64] = np.empty(0, np.int64)

    def begin(self, records: Sequence[_Line]) -> None:
        """These are to come."""
        self._left = np.array([record.offset for record in records], np.int64)

    def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
        """See `Decoder`; values follow each other without gaps, a call at a time."""
        decoded = self._decoder.decode(values, timestamp_ms, index)
        self._tape.numbers = self._left
        self._left = self._left[decoded.consumed :]
        return decoded


class _NoDecoder:
    """Tables come decoded."""

    def decode(self, values: Sequence[bytes | None], timestamp_ms: Callable[[int], int], index: SeriesIndex) -> Decoded:
        """Never called."""
        raise NotImplementedError
