"""One partition of one stream: records in, alerts and dead letters out.

Synchronous, and without effects on anything but its own state: daemon, demo, backtest and tests run the same code. What comes out follows
from the order of the partition and from event time: never from how records are cut into batches, and never from a restart in between.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from anomalyd.alerts.budget import MILLI, Pace
from anomalyd.alerts.budget import Entry as Correction
from anomalyd.alerts.episodes import Episodes, Policy, Transitions
from anomalyd.alerts.messages import Message, MessageBuilder, Model
from anomalyd.alerts.mutes import Mutes
from anomalyd.alerts.rarity import Rarity
from anomalyd.alerts.scores import ScoreWriter
from anomalyd.alerts.silence import SilencePolicy
from anomalyd.alerts.timeline import NEVER, Entry, Timeline
from anomalyd.batch import LATE, REPEATED, Points, Record, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector, Pages, Rows
from anomalyd.detector.assembler import Assembler
from anomalyd.detector.detector import MS_PER_DAY
from anomalyd.errors import ArtifactError
from anomalyd.formats import Decoded, Decoder
from anomalyd.series import Entities, Selection, SeriesIndex
from anomalyd.series.key import parse_key
from anomalyd.shard_budget import BudgetWatch
from anomalyd.shard_models import Entry as ModelEntry
from anomalyd.shard_models import Models, Planned
from anomalyd.shard_scores import ScorePlan, ScoreTap
from anomalyd.shard_shadow import Disagreement, Shadow
from anomalyd.shard_silence import Found, Pulse, Silences
from anomalyd.shard_state import ShardState
from anomalyd.state.codec import Page
from anomalyd.state.ports import Restored

INTERNAL_ERROR: Final = "internal-error"
"""Why a record was rejected that our own code failed on."""

SERIES_TTL_MS: Final = 8 * 24 * 3_600_000
"""Event time after which a series that has sent nothing begins anew."""

SWEEP_RECORDS: Final = 1 << 18
"""Offsets between one look for series that are no more and the next."""

_HEARD_SHARE: Final = 4
"""The partition's time is that of the series heard of in the last quarter of these offsets, and none of them is forgotten."""
_TTL_SHARE: Final = 16
"""A series is forgotten a sixteenth later than it would begin anew: clocks differ, and its alert should end by its own sample."""
_MANY: Final = 1 << 30
_SLICE_ROWS: Final = 256
"""Rows that nobody has met yet and that are brought over to another model with each batch: some ten milliseconds."""

_log = structlog.get_logger(__name__)


_NEVER_SILENT: Final = SilencePolicy(enabled="off")


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A configured stream, as far as its shards need to know it."""

    name: str
    policy: Policy = field(default_factory=Policy)
    select: Selection | None = None
    entities: Entities | None = None
    """Which values are features of one entity; None: each series is judged by itself."""
    silence: SilencePolicy = _NEVER_SILENT
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
    """Behind all of them."""
    alerts: list[OutgoingAlert] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    scores: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Messages for the scores topic, record key and value, where somebody asked for them."""
    points: list[Points] = field(default_factory=list)
    """Scores for a store of time series, likewise."""
    pages: dict[bytes, bytes | None] = field(default_factory=dict)
    """Records of pages as they are behind these records, by key; None: the page holds nothing any more."""
    episodes: dict[str, bytes] = field(default_factory=dict)
    """By series: the record of its episode as it is behind these records, where something was told about it."""
    forgotten: dict[bytes, bytes] = field(default_factory=dict)
    """Records of series that were forgotten, by key."""
    policies: list[Entry] = field(default_factory=list)
    """Alert policies that came into force, each with its input offset; a replay from in front of it needs to know."""
    corrections: list[Correction] = field(default_factory=list)
    """Likewise corrections of the threshold."""
    models: list[ModelEntry] = field(default_factory=list)
    """Likewise models, the first one of the partition, too."""
    replay_from: int = 0
    """Input offset from which on records would have to be replayed if all these records, and all before, were written down."""
    stream_time_ms: int | None = None
    """Newest event time seen up to there."""
    pulse: tuple[int, ...] = ()
    """The partition's progress in event time, by which series are silent."""
    control: tuple[int, ...] = ()
    """What was counted so far to check the alert budget."""
    records: int = 0
    replayed: int = 0
    """Records that were learned once more, silently; they are not among `records`, and nothing else is told of them."""
    divergences: int = 0
    """Episodes that came out of the replay other than they were told of."""
    samples: int = 0
    late: int = 0
    repeated: int = 0
    evicted: int = 0
    """Series forgotten for want of room."""
    expired: int = 0
    """Series forgotten, or begun anew, because they had sent nothing for too long."""
    muted: int = 0
    """Alerts that did not fire because of a mute."""
    flapping: int = 0
    """Alerts that did not fire because the one before of their series had just ended."""
    unsound: int = 0
    """Scores that are not finite."""
    fired: int = 0
    """Alerts that fired, but for those about silent series."""
    crossings: int = 0
    """Samples that crossed the level by which the alert budget is checked."""
    crossings_expected: int = 0
    """In billionths, how many should have by the calibration."""
    watched_ms: int = 0
    """Event time of all series together in which they could alert."""
    alarms_allowed: float = 0.0
    """Alerts that the budget allows for that."""
    shadow: Disagreement = field(default_factory=Disagreement)
    """How a challenger, if there is one, judged beside."""
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
        """Takes up what came of records further on."""
        self.alerts += later.alerts
        self.dead_letters += later.dead_letters
        self.scores += later.scores
        self.points += later.points
        self.pages |= later.pages
        self.episodes |= later.episodes
        self.forgotten |= later.forgotten
        self.policies += later.policies
        self.corrections += later.corrections
        self.models += later.models
        self.next_offset, self.replay_from, self.stream_time_ms = later.next_offset, later.replay_from, later.stream_time_ms
        self.pulse, self.control = later.pulse, later.control
        self.shadow = self.shadow.plus(later.shadow)
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(later, name))


_SUMMED: Final = (
    "records",
    "replayed",
    "divergences",
    "samples",
    "late",
    "repeated",
    "evicted",
    "expired",
    "muted",
    "flapping",
    "unsound",
    "fired",
    "crossings",
    "crossings_expected",
    "watched_ms",
    "alarms_allowed",
    "decode_s",
    "step_s",
    "episodes_s",
)

Observer = Callable[["Shard", SampleBatch, Verdicts, list[dict[str, Any]]], None]
"""Sees every batch with its verdicts and the alerts (as plain data) that came of it; called in the thread that runs the shard."""


def _nowhere(model: str) -> Detector:
    raise ArtifactError(f"nobody has said where model {model[:12]} is")


class Shard:
    """State and engine of one partition.

    A new one is empty and takes what comes for news. One that goes on where another was is given its pages (`load`) and what is known
    besides (`begin`); records in front of the position that was reached are then learned silently.

    Args:
        stream: the stream's plan.
        source: the partition.
        detector: shared by all shards of the stream; state stays here.
        decoder: for this shard alone.
        capacity: most series that are kept.
        observer: sees batches and verdicts; not those of a replay.
        now_ms: the clock for `detected_at`, milliseconds since the epoch.
        feature_names: of samples with several values that are not assembled here, for alerts.
        series_ttl_ms: event time without a sample after which a series begins anew, and is forgotten some time later.
        sweep_records: offsets from one look for series to forget to the next.
        reading: fingerprint of format and selection, on which raw spellings of series depend.
        pace: how slowly the threshold gives; None: as usual.
        find: by the hash of a model that scored some of the partition, its detector; raises ArtifactError where it cannot be had.
        plan: from which offsets on which models score, where that is known in advance; `swap` changes nothing then.
        scores: whose scores are handed out.
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
        series_ttl_ms: int = SERIES_TTL_MS,
        sweep_records: int = SWEEP_RECORDS,
        reading: str = "",
        pace: Pace | None = None,
        find: Callable[[str], Detector] = _nowhere,
        plan: Sequence[Planned] = (),
        scores: ScorePlan | None = None,
    ) -> None:
        self.stream = stream
        self.source = source
        entities = self._entities = stream.entities
        self.index = SeriesIndex(capacity, stream.select, entities)
        self._models = Models(source, detector, find, plan)
        self._rows = Rows(detector, capacity)
        self._assembler = None if entities is None else Assembler(self.pages)
        clock = "time" if entities is None else "filling"
        self.stream_time_ms: int | None = None
        """Newest event time seen, by whatever clock: something to look at, nothing is decided by it."""
        self._decoder = decoder
        self._episodes = Episodes(stream.policy, self.pages.episodes)
        self._mutes = Mutes(stream.policy.mutes)
        self._timeline = Timeline(stream.policy)
        self._settled: StreamPlan | None = None  # the plan that holds for what is news; None: there was none yet
        features = "" if entities is None else entities.fingerprint
        self._state = ShardState(self.index, self._rows, self._episodes, reading, features, clock)
        self._silences = Silences(stream.silence, self.index, self._rows, self._episodes, clock)
        self._watch = BudgetWatch(self.index, self._rows, pace)
        self._tally = np.zeros(3, np.int64)
        names = feature_names if entities is None else entities.names
        self._messages = MessageBuilder(
            stream=stream.name,
            topic=source.topic,
            partition=source.partition,
            model=_named(detector),
            labels=stream.labels,
            annotations=stream.annotations,
            feature_names=names,
        )
        writer = ScoreWriter(stream=stream.name, topic=source.topic, partition=source.partition, feature_names=names)
        self._tap = ScoreTap(scores, writer, stream.name, names, capacity) if scores else None
        self._challenger: Detector | None = None
        self._shadow: Shadow | None = None
        self._observer = observer
        self._now_ms = now_ms
        self._ttl_ms = series_ttl_ms
        self._sweep_records = sweep_records
        self._crowded = (-1, 0)  # the record that needed room last, and how often before it was not enough
        self._swept = -1  # offset of the record in front of which series were looked through last
        self._told: set[str] = set()  # series with transitions since the last outcome, in a replay since its beginning
        self._carried = Outcome()  # what a restore brought, for the next outcome
        self._enforce()

    @property
    def pages(self) -> Pages:
        """The state rows of the model that scores."""
        return self._rows.pages

    @property
    def detector(self) -> Detector:
        """The model that scores."""
        return self._rows.detector

    @property
    def moving(self) -> int:
        """Rows that have yet to come over from the model before, at most."""
        return self._rows.moving

    @property
    def device(self) -> str:
        """Where samples are scored."""
        return self.detector.device

    @property
    def series(self) -> int:
        """Series kept."""
        return len(self.index)

    @property
    def open_episodes(self) -> int:
        """Alerts that are firing, about silent series too."""
        return self._episodes.open_count + self._episodes.silent_count

    @property
    def silent_series(self) -> int:
        """Series that have fallen silent."""
        return self._episodes.silent_count

    @property
    def pulse(self) -> tuple[int, ...]:
        """The partition's progress in event time, by which series are silent."""
        return self._silences.pulse.state

    @property
    def control(self) -> tuple[int, ...]:
        """What was counted so far to check the alert budget."""
        return self._watch.state

    @property
    def budget_per_day(self) -> float:
        """False alarms per series and day of event time that are acceptable."""
        asked = self._timeline.policy.budget_per_day
        return self.detector.options.budget_per_day if asked is None else asked

    @property
    def correction(self) -> float:
        """Powers of ten by which normal data is taken to be strange more often than the calibration says."""
        return self._watch.control.correction / MILLI if self._timeline.policy.budget_control else 0.0

    @property
    def replaying(self) -> bool:
        """Whether records to come are still learned silently."""
        return self._state.replaying

    @property
    def live_from(self) -> int:
        """Input offset in front of which records are learned silently."""
        return self._state.live_from

    @property
    def replay_from(self) -> int:
        """Input offset from which on records would have to be replayed if everything so far were written down."""
        return self._state.replay_from

    @property
    def dirty_pages(self) -> int:
        """Pages of state that have changed since they were written."""
        return self._state.dirty_pages

    @property
    def pages_in_use(self) -> int:
        """Pages of state that hold series, or have held some."""
        return self._state.pages_in_use

    def digest(self) -> str:
        """A number that is the same for the same series in the same state."""
        return self._state.digest()

    def adopt(self, plan: StreamPlan) -> None:
        """Policy, labels and annotations of this plan hold from the next records on that are news. Any thread may say so."""
        self.stream = plan

    def swap(self, detector: Detector) -> None:
        """This model scores from the next batch of news on. Any thread may say so.

        Raises:
            ArtifactError: it is for samples of another number of values.
        """
        if detector.features != self.detector.features:
            raise ArtifactError(
                f"model {detector.model.hash[:12]} is for samples of {detector.features} values, not {self.detector.features}"
            )
        self._models.ask(detector)

    def shade(self, challenger: Detector | None) -> None:
        """This model scores beside, from the next batch of news on, and tells nobody; None: none does. Any thread may say so.

        Raises:
            ArtifactError: it is for samples of another number of values.
        """
        if challenger is not None and challenger.features != self.detector.features:
            raise ArtifactError(f"model {challenger.model.hash[:12]} is for samples of {challenger.features} values")
        self._challenger = challenger

    # --- from one instance to the next ------------------------------------------------------------------------------

    def prepare(self, restored: Restored) -> None:
        """What pages come is known, in front of the first `load`: makes room for rows of the models that scored.

        Raises:
            StateError: a replay needs a model that cannot be had.
        """
        self._rows.follow(self._models.begin(restored))
        self._state.begin_pages()
        self._take_up()

    def load(self, page: Page) -> None:
        """Takes in a page of what was written down. Of one that comes several times the last one counts. Raises StateError."""
        self._state.load(page, self._models.number(page.position))

    def begin(self, restored: Restored, live: Collection[bytes] | None = None) -> None:
        """Goes on where the last owner was, after the last `load`.

        Args:
            restored: what is known besides pages.
            live: keys of the records that are still there, if some may have been tombstoned after they had been loaded; None: all are.

        Raises:
            StateError: a policy that was in force cannot be understood.
        """
        self.stream_time_ms = restored.stream_time_ms
        self._silences.pulse = Pulse(restored.pulse)
        self._timeline.begin(restored.policies, restored.replay_from)
        self._watch.begin(restored)
        self._enforce()
        dropped = self._state.begin(restored, live)
        if dropped:
            self._carried.evicted += len(dropped)
            self._carried.forgotten |= self._state.forgotten_records(self._state.live_from, dropped)
        if restored.position is not None and not self.replaying:
            self._end_replay()

    def snapshot(self, most: int) -> dict[bytes, bytes | None]:
        """Records of up to `most` dirty pages, oldest dirty first, as they are behind the last record; None for a page without series."""
        return self._state.snapshot(most)

    # --- records ----------------------------------------------------------------------------------------------------

    def process(self, records: Sequence[Record], next_offset: int | None = None, *, snapshots: int = 0) -> Outcome:
        """Decodes, scores and judges records in order. Never raises because of what is in them.

        If our own code fails while it decodes, nothing has been learned yet: what is left goes through one record at a time, and the
        culprit ends as a dead letter with reason `internal-error`. So does a record that an alert came of which could not be written.

        Args:
            records: in order.
            next_offset: behind them and everything that the log may have instead of records; None: behind the last record.
            snapshots: so many dirty pages are written down, as they are behind these records.

        Raises:
            Exception: our own code failed later. The state may have moved, and the same records once more would be taken for repeated
                ones: whoever goes on loses alerts, whoever reads them again into a new shard does not.
        """
        state, behind = self._state, records[-1].offset + 1 if next_offset is None else next_offset
        outcome = Outcome(next_offset=behind)
        if state.replaying:
            outcome.replayed = self._replay(records, behind)
            records = records[outcome.replayed :]
        if not state.replaying:
            outcome.add(self._carried)
            self._carried = Outcome()
            outcome.records = len(records)
            self._settle(outcome)
            if records and self._models.waits and not self._models.may_swap(self._at):
                self._run(records[:1], outcome)
                state.position, records = records[0].offset + 1, records[1:]
            self._settle_model(bool(records))
            if self._challenger is not (None if self._shadow is None else self._shadow.detector):
                self._shadow = None if self._challenger is None else Shadow(self._challenger, self.index.capacity)
            self._run(records, outcome)
            outcome.models, self._models.written = self._models.written, []
        self._rows.bring_some(_SLICE_ROWS)
        state.position = outcome.next_offset = behind
        if not state.replaying:
            outcome.episodes = state.episode_records(self._told)
            self._told.clear()
            outcome.pages = state.snapshot(snapshots)
        outcome.replay_from, outcome.stream_time_ms = state.replay_from, self.stream_time_ms
        outcome.pulse, outcome.control = self.pulse, self.control
        return outcome

    def _settle(self, outcome: Outcome) -> None:
        """What is news is judged by the plan that was adopted last."""
        plan = self.stream
        if plan is not self._settled:
            self._settled = plan
            outcome.policies += self._timeline.settle(plan.policy, self._at)
            self._enforce()
            self._messages.mark(plan.labels, plan.annotations)

    @property
    def _at(self) -> int:
        """Input offset of what is news next."""
        return max(self._state.position, self._state.live_from)

    def _settle_model(self, records: bool) -> None:  # noqa: FBT001  whether there are some
        """What is news is scored by the model that was asked for last."""
        if (detector := self._models.settle(self._at, records=records)) is not None:
            self._go_over(detector, self._at)

    def _go_over(self, detector: Detector | None, offset: int) -> None:
        """Another model scores from an offset on; None: the next one of a restore."""
        late = self._rows.swap(self._state.used, detector)
        self._state.swapped(late, offset)
        self._take_up()

    def _take_up(self) -> None:
        """The model that scores, and where its rows lie, are others."""
        self._episodes.move(self.pages.episodes)
        self._assembler = None if self._entities is None else Assembler(self.pages)
        self._messages.scored_by(_named(self.detector))
        self._weigh()

    def _enforce(self) -> None:
        policy = self._timeline.policy
        self._episodes.policy = policy
        self._mutes = Mutes(policy.mutes)
        self._weigh()

    def _weigh(self) -> None:
        """Another threshold may be in force."""
        calibration = self.detector.artifact.calibration
        self._threshold = self.detector.threshold_at(self.budget_per_day, self.correction)
        self._messages.weigh(Rarity(self.budget_per_day, calibration.slope, calibration.lowest))

    def _replay(self, records: Sequence[Record], next_offset: int) -> int:
        """Learns the records in front of the position silently; returns how many there were."""
        old = sum(record.offset < self._state.live_from for record in records)
        self._run(records[:old], Outcome())
        if next_offset >= self._state.live_from:
            self._end_replay()
        return old

    def _end_replay(self) -> None:
        self._reach_models(NEVER, replaying=True)
        self._carried.divergences += self._state.end_replay(self._told)
        self._told.clear()

    def _reach_models(self, offset: int, *, replaying: bool) -> None:
        while (reached := self._models.reach(offset, replaying=replaying)) is not None:
            self._go_over(None if replaying else reached[1], reached[0])

    def _run(self, records: Sequence[Record], outcome: Outcome) -> None:
        """The loop of `process`: as many records at a time as have rows, and in front of which nothing was forgotten."""
        start, size, most = 0, _MANY, _MANY
        while start < len(records):
            self._state.reach(records[start].offset)
            self._reach_models(records[start].offset, replaying=self.replaying)
            if self._timeline.reach(records[start].offset):
                self._enforce()
            if self._watch.control.take_up(records[start].offset):
                self._weigh()
            part = _Part(records[start : start + size])
            boundary = min(self._state.boundary, self._timeline.boundary, self._watch.control.boundary, self._models.boundary)
            if part.records[-1].offset >= boundary:
                part = _Part([record for record in part.records if record.offset < boundary])
            decoding = time.perf_counter()
            try:
                decoded = self._decoder.decode(part.values, part.timestamp, self.index)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001  one record must not end the daemon
                # Where room is made must not depend on rows that were given away for nothing.
                self.index.abandon()
                if len(part.records) > 1:
                    _log.warning("batch_retried_singly", exc_info=True, **self._where(part.offset(0)), records=len(part.records))
                    size = most = 1
                else:
                    _log.exception("record_crashed", **self._where(part.offset(0)))
                    outcome.dead_letters.append(DeadLetter(part.records[0], INTERNAL_ERROR))
                    start += 1
                continue
            finally:
                outcome.decode_s += time.perf_counter() - decoding
            consumed = self._learn(part, decoded, outcome)
            start += consumed
            # While series come and go by the thousand, the rest of the batch must not be decoded again for each of them.
            size = min(most, 2 * size if consumed == len(part.records) else max(64, 2 * consumed))

    def _learn(self, part: "_Part", decoded: Decoded, outcome: Outcome) -> int:
        """Advances with what was decoded, then forgets the series that have to be; returns how many records are done."""
        batch, consumed = self._state.unlearned(self._placed(decoded.batch), part.offsets), decoded.consumed
        sweep = -1 if self.replaying else self._due(batch, part.offsets)
        if sweep >= 0:
            # What was decoded from there on may be samples of series that are forgotten now, and is decoded again.
            consumed = sweep
            batch = _first(batch, consumed)
        outcome.dead_letters += [DeadLetter(part.records[i], reason) for i, reason in decoded.rejected if i < consumed]
        advanced = self.advance(batch, part.offsets, part.timestamp)
        outcome.add(advanced)
        outcome.dead_letters += [DeadLetter(part.records[i], INTERNAL_ERROR) for i in advanced.unwritten]
        if sweep >= 0:
            self.index.abandon()
            self._sweep(part, consumed, outcome)
        elif consumed < len(part.records):
            self._make_room(part, consumed, outcome)
        return consumed

    def _placed(self, batch: SampleBatch) -> SampleBatch:
        """What was decoded, by row; of entities the values, from which samples have yet to be assembled."""
        if self._entities is None:
            return batch
        features, interval_ms = self.index.features, self._entities.interval_ms
        time_ms = batch.time_ms - batch.time_ms % interval_ms if interval_ms else batch.time_ms
        return SampleBatch(batch.row // features, time_ms, batch.value, batch.record, batch.row % features)

    def _due(self, batch: SampleBatch, offsets: NDArray[np.int64]) -> int:
        """The number of the first record in front of which series have to be looked through, -1 if there is none.

        It is the first one with a sample behind a multiple of so many offsets. Records without samples do not count: what is done in front
        of them could not be told from the series afterwards, and a restart would do it once more, or not at all.
        """
        if not len(batch):
            return -1
        newest, first = self._state.newest_use, int(offsets[batch.record[0]])
        if newest < 0 or first == self._swept:
            newest = first
        multiple = (newest // self._sweep_records + 1) * self._sweep_records
        if offsets[batch.record[-1]] < multiple:
            return -1
        return int(batch.record[np.searchsorted(batch.record, np.searchsorted(offsets, multiple))])

    def advance(self, batch: SampleBatch, offsets: NDArray[np.int64], timestamp_of: Callable[[int], int] = lambda _: -1) -> Outcome:
        """The part of `process` behind decoding: scores samples, moves their series and episodes on, writes messages.

        Args:
            batch: rows are those of `self.index`; samples, or values of entities.
            offsets: of the records, by their number in `batch.record`, ascending.
            timestamp_of: likewise when a record was produced, milliseconds since the epoch, negative if unknown.
        """
        if len(batch):
            newest = int(batch.time_ms.max())
            self.stream_time_ms = newest if self.stream_time_ms is None else max(self.stream_time_ms, newest)
        outcome = Outcome()
        for begin, end in self._between_looks(batch, offsets, timestamp_of, outcome):
            self._advance(batch if end - begin == len(batch) else batch.part(slice(begin, end)), offsets, timestamp_of, outcome)
        return outcome

    def _between_looks(
        self, batch: SampleBatch, offsets: NDArray[np.int64], timestamp_of: Callable[[int], int], outcome: Outcome
    ) -> Iterator[tuple[int, int]]:
        """Parts of a batch, each from one sample to before another; in between, silent series are looked for, and the budget is checked."""
        begin, pulse, n = 0, self._silences.pulse, len(batch)
        if self.replaying:  # what came of it was told, or written down, and is known after a replay
            yield 0, n
            return
        silence = budget = -1
        while begin < n:
            silence = silence if silence > begin else pulse.due(batch, offsets, begin, pulse.next_ms) if self._silences.on else n
            budget = budget if budget > begin else self._watch.due(batch, offsets, begin)
            record = int(batch.record[begin])
            offset = int(offsets[record])
            if budget == begin:
                if corrections := self._watch.look(offset):
                    outcome.corrections += corrections
                    self._weigh()
                continue
            if silence == begin:
                found = self._silences.look(offset, self._mutes.hold)
                self._state.changed([one.row for one in found], offset)
                self._told.update(self.index.keys[one.row] or "" for one in found)
                now_ms = self._now_ms()
                alerts = (self._silence(one, self.index.keys[one.row] or "", offset, timestamp_of(record), now_ms) for one in found)
                outcome.alerts += [alert for alert in alerts if alert is not None]
                continue
            end = min(silence, budget)
            pulse.samples += end - begin if self._silences.on else 0
            self._watch.passed(end - begin)
            yield begin, end
            begin = end

    def _advance(self, batch: SampleBatch, offsets: NDArray[np.int64], timestamp_of: Callable[[int], int], outcome: Outcome) -> None:
        start = 0
        self._rows.bring(batch.row)
        while start < len(batch):
            stop, rows, samples = self._state.touch(batch, offsets, self._ttl_ms, start)
            part = batch if stop - start == len(batch) else batch.part(slice(start, stop))
            lapsed, news = self._begin_anew(part, rows, samples - start) if len(rows) else (None, list[_News]())
            outcome.expired += len(rows)
            if self._assembler is None:
                self._score(part, lapsed, news, _Origin(part, None, offsets, timestamp_of), outcome)
            else:
                for made in self._assembler.samples(part):
                    outcome.late += made.late
                    outcome.repeated += made.repeated
                    own = [one for one in news if one.place < made.stop]
                    news = news[len(own) :]
                    self._score(made.batch, None, own, _Origin(part, made.origin, offsets, timestamp_of), outcome)
            start = stop

    def _begin_anew(
        self, batch: SampleBatch, rows: NDArray[np.int32], places: NDArray[np.int64]
    ) -> tuple[NDArray[np.void] | None, list["_News"]]:
        """Empties rows whose series had stayed away for too long and are back.

        Args:
            batch: samples, or values of entities.
            rows: of the series.
            places: index of the sample or value with which each of them is back, ascending.

        Returns:
            What to tell with the samples themselves (see `Episodes.lapse`), and what to tell besides, in the order of its places.
        """
        # Even where there is nothing to tell: what was told before must not come back with its record in a restore.
        self._told.update(self.index.keys[row] or "" for row in self._episodes.remembered(rows).tolist())
        lapsed, news = None, list[_News]()
        for row, place in zip(rows.tolist(), places.tolist(), strict=True):
            if self._episodes.silent[row]:
                news.append(_News(place, -1, partial(self._silence, self._silences.ended(row, int(batch.time_ms[place])))))
                self._told.add(self.index.keys[row] or "")
        if self._assembler is None:
            lapsed = self._episodes.lapse(rows, places)
        else:
            # There may be no sample yet, so the alert ends as that of a series that is no longer kept.
            ended, back = self._episodes.close(rows, *self._state.newest(rows)), dict(zip(rows.tolist(), places.tolist(), strict=True))
            news += [_News(back[row], k, partial(self._alert, ended, k)) for k, row in enumerate(ended.row.tolist())]
            news.sort(key=itemgetter(0, 1))
        self._rows.clear(rows)
        if self._shadow is not None:
            self._shadow.clear(rows)
        return lapsed, news

    def _score(self, batch: SampleBatch, lapsed: NDArray[np.void] | None, news: list["_News"], origin: "_Origin", outcome: Outcome) -> None:
        """Scores and judges samples, and tells of what came of it.

        Args:
            batch: the samples.
            lapsed: what `Episodes.lapse` returned for them.
            news: what there is to tell besides.
            origin: where they come from.
            outcome: takes it up.
        """
        began = time.perf_counter()
        returns = self._silences.returns(batch)
        self._tally[:] = 0
        shadow = None if self.replaying else self._shadow
        if shadow is not None:
            shadow.follow(self._rows, batch.row)
        verdicts = self.detector.step(self.pages, batch, self._threshold, self._tally)
        if shadow is not None:
            outcome.shadow = outcome.shadow.plus(shadow.score(batch, verdicts, self.budget_per_day, self.correction))
        stepped = time.perf_counter()
        if not self.replaying:
            self._counted(outcome)
        muted, flapping = self._episodes.muted, self._episodes.flapping
        transitions = self._episodes.advance(batch, verdicts, lapsed, self._mutes.column(batch, verdicts, self.index.keys))
        returned = self._silences.returned(verdicts, returns)
        self._told.update(self.index.keys[row] or "" for row in transitions.row.tolist())
        self._told.update(self.index.keys[one.row] or "" for _, one in returned)
        news = news + [_News(origin.place(sample), -1, partial(self._silence, one)) for sample, one in returned]
        places = map(origin.place, transitions.sample.tolist())
        news += [_News(place, k, partial(self._alert, transitions, k)) for k, place in enumerate(places)]
        alerts: list[OutgoingAlert] = []
        if news and not self.replaying:
            now_ms = self._now_ms()
            for place, _, write in sorted(news, key=itemgetter(0, 1)):
                record, key = int(origin.batch.record[place]), self.index.keys[origin.batch.row[place]] or ""
                alert = write(key, int(origin.offsets[record]), origin.timestamp_of(record), now_ms)
                if alert is not None:
                    alerts.append(alert)
                elif record not in outcome.unwritten:
                    outcome.unwritten.append(record)
        outcome.samples += len(batch)
        outcome.alerts += alerts
        outcome.fired += sum(alert.message.alert.status == "firing" and alert.message.alert.kind == "anomaly" for alert in alerts)
        outcome.step_s += stepped - began
        outcome.episodes_s += time.perf_counter() - stepped
        outcome.unsound += len(batch) - int(np.count_nonzero(np.isfinite(verdicts.score)))
        outcome.late += int(np.count_nonzero(verdicts.flags & LATE))
        outcome.repeated += int(np.count_nonzero(verdicts.flags & REPEATED))
        outcome.muted += self._episodes.muted - muted
        outcome.flapping += self._episodes.flapping - flapping
        if self._tap is not None and not self.replaying:
            offsets = origin.offsets[origin.batch.record if origin.places is None else origin.batch.record[origin.places]]
            messages, points = self._tap.take(batch.row, batch.time_ms, offsets, verdicts, self.index.keys, _named(self.detector))
            outcome.scores += messages
            outcome.points += points
        if self._observer is not None and not self.replaying:
            self._observer(self, batch, verdicts, [msgspec.json.decode(alert.message.value) for alert in alerts])

    def _counted(self, outcome: Outcome) -> None:
        """What the step has counted of news."""
        crossings, expected, watched_ms = self._tally.tolist()
        self._watch.control.count(crossings, expected)
        outcome.crossings += crossings
        outcome.crossings_expected += expected
        outcome.watched_ms += watched_ms
        outcome.alarms_allowed += watched_ms / MS_PER_DAY * self.budget_per_day

    def _alert(self, transitions: Transitions, k: int, key: str, offset: int, produced_ms: int, now_ms: int) -> OutgoingAlert | None:
        """The message of a transition; None if our own code fails to write it."""
        return self._written(lambda name, labels: self._build(transitions, k, key, name, labels, offset, now_ms), key, offset, produced_ms)

    def _silence(self, found: Found, key: str, offset: int, produced_ms: int, now_ms: int) -> OutgoingAlert | None:
        """The message about a silence; None if our own code fails to write it."""

        def build(name: str, labels: dict[str, str]) -> Message:
            return self._messages.build_silence(found.silence, key=key, name=name, labels=labels, offset=offset, detected_at_ms=now_ms)

        return self._written(build, key, offset, produced_ms)

    def _written(self, build: Callable[[str, dict[str, str]], Message], key: str, offset: int, produced_ms: int) -> OutgoingAlert | None:
        """A message; None, and a line in the log, if our own code fails to write it: others must not go with it."""
        try:
            return OutgoingAlert(build(*parse_key(key)), produced_ms)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001  one alert must not take the others with it
            _log.exception("record_crashed", **self._where(offset))
            return None

    def _build(self, transitions: Transitions, k: int, key: str, name: str, labels: dict[str, str], offset: int, now_ms: int) -> Message:
        return self._messages.build(transitions, k, key=key, name=name, labels=labels, offset=offset, detected_at_ms=now_ms)

    # --- forgetting -------------------------------------------------------------------------------------------------

    def _make_room(self, part: "_Part", number: int, outcome: Outcome) -> None:
        """Forgets the longest idle series in front of a record of the part."""
        # Each time that one record still finds no room, twice as many: it is decoded again for each.
        offset, times = part.offset(number), self._crowded[1] + 1 if self._crowded[0] == part.offset(number) else 0
        self._crowded = (offset, times)
        rows, keys = self.index.evict(1 << times)
        if self.replaying:
            # Only where fewer series are kept than before: they are forgotten where the replay ends.
            offset = self._state.live_from
            self._rows.empty_soon(rows)
            for row, key in zip(rows.tolist(), keys, strict=True):
                self._state.hold(key, row, moved=key in self._told)
                self._told.discard(key)
            self._state.hide(keys, offset)
            self._forget(rows, keys, offset, -1, self._carried)
            self._carried.evicted += len(keys)
            return
        self._forget(rows, keys, offset, part.timestamp(number), outcome)
        outcome.evicted += len(keys)

    def _sweep(self, part: "_Part", number: int, outcome: Outcome) -> None:
        """Forgets, in front of a record of the part, series that are no more."""
        self._swept = part.offset(number)
        rows = self._state.gone(self._sweep_records // _HEARD_SHARE, self._ttl_ms + self._ttl_ms // _TTL_SHARE)
        if len(rows):
            keys = self.index.release(rows).keys
            self._forget(rows, keys, part.offset(number), part.timestamp(number), outcome)
            outcome.expired += len(keys)

    def forget_all(self) -> Outcome:
        """Forgets every series behind the last record; alerts that are open end."""
        position = self._state.position
        outcome = Outcome(next_offset=position, replay_from=position, stream_time_ms=self.stream_time_ms)
        keys = sorted(key for key in self.index.keys if key is not None)
        rows = np.array([self.index.find(key) for key in keys], np.int32)
        self._forget(rows, self.index.release(rows).keys, position, -1, outcome)
        # Not before: an alert about a silent series ends when its partition had come to.
        self._silences.pulse = Pulse()
        return outcome

    def _forget(self, rows: NDArray[np.int32], keys: Sequence[str], offset: int, produced_ms: int, outcome: Outcome) -> None:
        """What is left to do about series that lost their rows in front of the record at `offset`."""
        self._rows.empty_soon(rows)
        silent = self._silences.forgotten(rows)
        transitions = self._episodes.close(rows, *self._state.newest(rows))
        self._state.cleared(rows, offset)
        if self._shadow is not None:
            self._shadow.clear(rows)
        if self._tap is not None:
            self._tap.forget(rows)
        outcome.forgotten |= self._state.forgotten_records(offset, keys)
        if len(transitions) or silent:
            key_of, now_ms = dict(zip(rows.tolist(), keys, strict=True)), self._now_ms()
            written = [self._silence(one, key_of[one.row], offset, produced_ms, now_ms) for one in silent]
            for k, row in enumerate(transitions.row.tolist()):
                written.append(self._alert(transitions, k, key_of[row], offset, produced_ms, now_ms))
            outcome.alerts += [alert for alert in written if alert is not None]

    def _where(self, offset: int) -> dict[str, Any]:
        return {"stream": self.stream.name, "topic": self.source.topic, "partition": self.source.partition, "offset": offset}


def _named(detector: Detector) -> Model:
    """A model as messages name it."""
    return Model(detector.model.name, detector.model.version, detector.model.hash)


class _Part:
    """Records, and their columns when they are asked for."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    @cached_property
    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        first, last, n = self.records[0].offset, self.records[-1].offset, len(self.records)
        if last - first == n - 1:  # nothing is missing in between, as a rule
            return np.arange(first, last + 1, dtype=np.int64)
        return np.fromiter(map(_OFFSET, self.records), np.int64, n)

    def offset(self, i: int) -> int:
        return self.records[i].offset

    def timestamp(self, i: int) -> int:
        return self.records[i].timestamp


_OFFSET: Final = attrgetter("offset")


class _News(NamedTuple):
    """Something to tell."""

    place: int
    """Index of the sample, or of the value of an entity, because of which it is told."""
    order: int
    """Of what is told because of the same one."""
    write: Callable[[str, int, int, int], OutgoingAlert | None]
    """Of series key, offset, timestamp of the record and clock: the message, None if our own code fails to write it."""


class _Origin(NamedTuple):
    """Where samples come from."""

    batch: SampleBatch
    """The samples themselves, or the values from which they were assembled."""
    places: NDArray[np.int64] | None
    """Index of the value that completed each sample; None: they are their own."""
    offsets: NDArray[np.int64]
    """Of the records, by their number in `batch.record`."""
    timestamp_of: Callable[[int], int]
    """Likewise when a record was produced."""

    def place(self, sample: int) -> int:
        """Index in `batch` of what a sample came with."""
        return sample if self.places is None else int(self.places[sample])


def _first(batch: SampleBatch, records: int) -> SampleBatch:
    """The samples of the first records."""
    return batch.part(slice(0, int(np.searchsorted(batch.record, records))))
