"""What an operator sees of the run loop: its metrics, and the log lines that tell of states rather than of events."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Final

import structlog

from anomalyd.alerts.budget import UNIT
from anomalyd.batch import Source
from anomalyd.partition import Parcel, Partition
from anomalyd.shard import Outcome, Shard
from anomalyd.telemetry.metrics import Metrics

LATE_S: Final = 10.0
"""A commit that takes longer is told of."""

REJECTED_EVERY_S: Final = 60.0
"""Between warnings about rejected records, of which there may be thousands a second."""

_MS_PER_DAY: Final = 86_400_000

_log = structlog.get_logger(__name__)


class Lookout:
    """Counts what batches and commits brought, and looks at the partitions every now and then."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._rejected: dict[str, Counter[str]] = {}  # by stream and reason, since it was last told
        self._rejected_told = -math.inf
        self._late_told = False
        self._strangers_told: set[str] = set()

    def batch(self, shard: Shard, outcome: Outcome) -> None:
        """Counts what came of a batch."""
        self._metrics.batch(
            records=outcome.records,
            samples=outcome.samples,
            rejected=outcome.rejected,
            late=outcome.late,
            repeated=outcome.repeated,
            evicted=outcome.evicted,
            expired=outcome.expired,
            muted=outcome.muted,
            flapping=outcome.flapping,
            replayed=outcome.replayed,
            divergences=outcome.divergences,
            decode_s=outcome.decode_s,
            step_s=outcome.step_s,
            episodes_s=outcome.episodes_s,
        )
        self._metrics.budget(
            shard.stream.name,
            asked=shard.budget_per_day,
            watched_days=outcome.watched_ms / _MS_PER_DAY,
            allowed=outcome.alarms_allowed,
            fired=outcome.fired,
            crossings=outcome.crossings,
            expected=outcome.crossings_expected / UNIT,
        )
        for offset, model in outcome.models:
            _log.info("model_scores", **shard.source._asdict(), offset=offset, model=model)
        if outcome.shadow.samples:
            shadow = outcome.shadow
            self._metrics.shadow(
                shard.stream.name,
                samples=shadow.samples,
                both=shadow.both,
                champion=shadow.champion,
                challenger=shadow.challenger,
                distance=shadow.log_difference,
            )
        if outcome.dead_letters:
            self._rejected.setdefault(shard.stream.name, Counter()).update(outcome.rejected)
        if outcome.records or outcome.replayed:
            self._metrics.taken_in(shard.stream.name, time.time())
        if outcome.stream_time_ms is not None:
            self._metrics.watermark(shard.stream.name, outcome.stream_time_ms)

    def claimed(self, partition: Partition) -> None:
        """A partition was taken over."""
        for name in sorted(partition.strangers - self._strangers_told):
            self._strangers_told.add(name)
            _log.warning("state_shared", topic=partition.source.topic, partition=partition.source.partition, by=name)

    def goes_on(self, partition: Partition) -> None:
        """A partition is read, or was read a bit further: is it restored with that?"""
        if partition.claimed_s is not None and not partition.to_replay:
            self._metrics.restored(asyncio.get_running_loop().time() - partition.claimed_s)
            partition.claimed_s = None

    def commit(self, parcel: Parcel, seconds: float) -> None:
        """Counts what was committed, and how long it took."""
        now_s = time.time()
        self._metrics.checkpoint(
            seconds=seconds,
            at_s=now_s,
            alerts=parcel.counts(),
            dead_letters=parcel.dead_letters,
            scores=parcel.scores,
            latencies_s=[now_s - note.produced_ms / 1000 for note in parcel.notes if note.produced_ms >= 0],
            pages=len(parcel.work.pages),
            page_bytes=sum(len(page) for page in parcel.work.pages.values() if page is not None),
        )

    def look(self, partitions: Collection[Partition], recovering: int, ends: Mapping[Source, int]) -> None:
        """Looks at the partitions.

        Args:
            partitions: that are restored, or replaying.
            recovering: how many more are being restored.
            ends: of the input logs, where known.
        """
        for partition in partitions:
            if partition.source in ends:
                self._metrics.lag(*partition.source, ends[partition.source] - partition.position)
            if not partition.to_replay:
                self._metrics.correction(*partition.source, partition.shard.correction)
        shards = [partition.shard for partition in partitions]
        self._metrics.state(
            series=sum(shard.series for shard in shards),
            open_episodes=sum(shard.open_episodes for shard in shards),
            silent_series=sum(shard.silent_series for shard in shards),
        )
        restored = [partition for partition in partitions if not partition.to_replay]
        self._metrics.restoring(
            partitions=recovering + len(partitions) - len(restored), records=sum(partition.to_replay for partition in partitions)
        )
        self._metrics.checkpoint_age(max((partition.position - partition.shard.replay_from for partition in restored), default=0))
        self._tell_late(partitions)
        self._tell_rejected()

    def _tell_late(self, partitions: Collection[Partition]) -> None:
        now_s = asyncio.get_running_loop().time()
        began_s = [partition.committed_s for partition in partitions if partition.committing is not None]
        late = [now_s - began for began in began_s if LATE_S < now_s - began < math.inf]  # inf: it begins at this moment
        if late and not self._late_told:
            _log.warning("commit_late", partitions=len(late), waited_s=round(max(late)))
        self._late_told = bool(late)

    def _tell_rejected(self) -> None:
        """A stream configured for another format looks healthy otherwise: read, rejected, no lag."""
        now_s = asyncio.get_running_loop().time()
        if not self._rejected or now_s - self._rejected_told < REJECTED_EVERY_S:
            return
        for stream, reasons in self._rejected.items():
            _log.warning("records_rejected", stream=stream, records=reasons.total(), reasons=dict(reasons.most_common(5)))
        self._rejected.clear()
        self._rejected_told = now_s
