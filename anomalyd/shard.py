"""One partition of one stream: records in, alerts and dead letters out.

Synchronous, and without effects on anything but its own state: daemon, demo, backtest and tests run the same code.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import structlog

from anomalyd.alerts.episodes import Episodes, Policy, Transitions
from anomalyd.alerts.messages import Message, MessageBuilder, Model
from anomalyd.batch import LATE, REPEATED, Record, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector, Pages
from anomalyd.formats import Decoder
from anomalyd.series import Selection, SeriesIndex

INTERNAL_ERROR: Final = "internal-error"
"""Why a record was rejected that our own code failed on."""

_MANY: Final = 1 << 30

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A configured stream, as far as its shards need to know it."""

    name: str
    policy: Policy = field(default_factory=Policy)
    select: Selection | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


class OutgoingAlert(NamedTuple):
    """An alert message and what is counted about it."""

    message: Message
    produced_ms: int
    """When the record behind it was produced; negative if unknown."""


class DeadLetter(NamedTuple):
    """A record that could not be read, wholly or in part."""

    record: Record
    reason: str


@dataclass(slots=True)
class Outcome:
    """What became of some records of one partition."""

    next_offset: int = 0
    alerts: list[OutgoingAlert] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    records: int = 0
    samples: int = 0
    late: int = 0
    repeated: int = 0
    evicted: int = 0
    decode_s: float = 0.0
    step_s: float = 0.0
    episodes_s: float = 0.0
    unwritten: list[int] = field(default_factory=list)
    """Of `advance`: records, by their number in `batch.record`, that an alert came of which our own code failed to write."""

    @property
    def rejected(self) -> dict[str, int]:
        """Dead letters by reason."""
        counts: dict[str, int] = {}
        for letter in self.dead_letters:
            counts[letter.reason] = counts.get(letter.reason, 0) + 1
        return counts

    def add(self, later: "Outcome") -> None:
        """Takes up what came of the next part of the records."""
        self.alerts += later.alerts
        self.dead_letters += later.dead_letters
        for name in ("samples", "late", "repeated", "evicted", "step_s", "episodes_s"):
            setattr(self, name, getattr(self, name) + getattr(later, name))


Observer = Callable[["Shard", SampleBatch, Verdicts, list[dict[str, Any]]], None]
"""Sees every batch with its verdicts and the alerts (as plain data) that came of it; called in the thread that runs the shard."""


class Shard:
    """State and engine of one partition.

    Args:
        stream: the stream's plan.
        source: the partition.
        detector: shared by all shards of the stream; state stays here.
        decoder: for this shard alone.
        capacity: most series that are kept.
        observer: sees batches and verdicts.
        now_ms: the clock for `detected_at`, milliseconds since the epoch.
        feature_names: of samples with several values, for alerts.
    """

    def __init__(
        self,
        stream: StreamPlan,
        source: Source,
        detector: Detector,
        decoder: Decoder,
        capacity: int,
        *,
        observer: Observer | None = None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        feature_names: Sequence[str] = (),
    ) -> None:
        self.stream = stream
        self.source = source
        self.index = SeriesIndex(capacity, stream.select)
        self.pages: Pages = detector.new_pages(capacity)
        self.stream_time_ms: int | None = None
        """Newest event time seen."""
        self._detector = detector
        self._decoder = decoder
        self._episodes = Episodes(stream.policy, self.pages.episodes)
        self._messages = MessageBuilder(
            stream=stream.name,
            topic=source.topic,
            partition=source.partition,
            model=Model(detector.model.name, detector.model.version, detector.model.hash),
            labels=stream.labels,
            annotations=stream.annotations,
            feature_names=feature_names,
        )
        self._observer = observer
        self._now_ms = now_ms
        self._sequence = 0  # samples so far

    @property
    def device(self) -> str:
        """Where samples are scored."""
        return self._detector.device

    @property
    def series(self) -> int:
        """Series kept."""
        return len(self.index)

    @property
    def open_episodes(self) -> int:
        """Alerts that are firing."""
        return self._episodes.open_count

    def process(self, records: Sequence[Record]) -> Outcome:
        """Decodes, scores and judges records in order. Never raises because of what is in them.

        If our own code fails while it decodes, nothing has been learned yet: what is left goes through one record at a time, and the
        culprit ends as a dead letter with reason `internal-error`. So does a record that an alert came of which could not be written.

        Raises:
            Exception: our own code failed later. The state may have moved, and the same records once more would be taken for repeated
                ones: whoever goes on loses alerts, whoever reads them again into a new shard does not.
        """
        values = [record.value for record in records]
        outcome = Outcome(records=len(records), next_offset=records[-1].offset + 1)
        start, size, most = 0, _MANY, _MANY
        while start < len(values):
            part, behind = values[start : start + size], _Behind(records, start)
            decoding = time.perf_counter()
            try:
                decoded = self._decoder.decode(part, behind.timestamp, self.index)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001  one record must not end the daemon
                if len(part) > 1:
                    _log.warning("batch_retried_singly", exc_info=True, **self._where(records[start].offset), records=len(part))
                    size = most = 1
                else:
                    _log.exception("record_crashed", **self._where(records[start].offset))
                    outcome.dead_letters.append(DeadLetter(records[start], INTERNAL_ERROR))
                    start += 1
                continue
            finally:
                outcome.decode_s += time.perf_counter() - decoding
            outcome.dead_letters += [DeadLetter(records[start + i], reason) for i, reason in decoded.rejected]
            advanced = self.advance(decoded.batch, behind.offset, behind.timestamp)
            outcome.add(advanced)
            outcome.dead_letters += [DeadLetter(records[start + i], INTERNAL_ERROR) for i in advanced.unwritten]
            start += decoded.consumed
            if decoded.consumed < len(part):
                outcome.evicted += self._make_room()
                # While series come and go by the thousand, the rest of the batch must not be decoded again for each of them.
                size = min(most, max(64, 2 * decoded.consumed))
            else:
                size = min(most, 2 * size)
        return outcome

    def advance(self, batch: SampleBatch, offset_of: Callable[[int], int], timestamp_of: Callable[[int], int]) -> Outcome:
        """The part of `process` behind decoding: scores samples, moves their series and episodes on, writes messages.

        Args:
            batch: rows are those of `self.index`.
            offset_of: offset of a record, by its number in `batch.record`.
            timestamp_of: likewise when it was produced, milliseconds since the epoch, negative if unknown.
        """
        outcome = Outcome(samples=len(batch))
        if not len(batch):
            return outcome
        self.index.touch(batch.row, self._sequence)
        self._sequence += len(batch)
        began = time.perf_counter()
        verdicts = self._detector.step(self.pages, batch)
        stepped = time.perf_counter()
        transitions = self._episodes.advance(batch, verdicts)
        if len(transitions):
            now_ms = self._now_ms()
            for k in range(len(transitions)):
                record = int(batch.record[transitions.sample[k]])
                try:
                    outcome.alerts.append(OutgoingAlert(self._message(transitions, k, offset_of(record), now_ms), timestamp_of(record)))
                except MemoryError:
                    raise
                except Exception:  # noqa: BLE001  one alert must not take the others with it
                    _log.exception("record_crashed", **self._where(offset_of(record)))
                    if record not in outcome.unwritten:
                        outcome.unwritten.append(record)
        outcome.step_s = stepped - began
        outcome.episodes_s = time.perf_counter() - stepped
        outcome.late = int(np.count_nonzero(verdicts.flags & LATE))
        outcome.repeated = int(np.count_nonzero(verdicts.flags & REPEATED))
        newest = int(batch.time_ms.max())
        self.stream_time_ms = newest if self.stream_time_ms is None else max(self.stream_time_ms, newest)
        if self._observer is not None:
            self._observer(self, batch, verdicts, [msgspec.json.decode(alert.message.value) for alert in outcome.alerts])
        return outcome

    def _message(self, transitions: Transitions, k: int, offset: int, now_ms: int) -> Message:
        row = int(transitions.row[k])
        name, labels = self.index.identity(row)
        key = self.index.keys[row] or name
        return self._messages.build(transitions, k, key=key, name=name, labels=labels, offset=offset, detected_at_ms=now_ms)

    def _make_room(self) -> int:
        """Forgets the longest idle series; returns how many."""
        rows = self.index.evict()
        self._episodes.clear(rows)
        self.pages.clear(rows)
        return len(rows)

    def _where(self, offset: int) -> dict[str, Any]:
        return {"stream": self.stream.name, "topic": self.source.topic, "partition": self.source.partition, "offset": offset}


class _Behind:
    """What is asked about few records, by their number behind `first`, so that nothing is copied for the many."""

    def __init__(self, records: Sequence[Record], first: int) -> None:
        self._records = records
        self._first = first

    def timestamp(self, i: int) -> int:
        return self._records[self._first + i].timestamp

    def offset(self, i: int) -> int:
        return self._records[self._first + i].offset
