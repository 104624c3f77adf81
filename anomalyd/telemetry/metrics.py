"""Every metric, declared once.

The registry is injected, so that tests and several instances in a process do not meet. Labels come from closed sets and
are preset to zero, except topic, partition and stream, which the configuration bounds; no series is ever a label.
The daemon calls the verbs below once per batch, checkpoint or rebalance, never per sample.
"""

import contextlib
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from anomalyd import __version__

T = TypeVar("T", Counter, Gauge)

STATUSES: Final = ("firing", "updated", "resolved")
SEVERITIES: Final = ("warning", "critical")
LOSSES: Final = ("expired", "corrupt", "too-large")
KINDS: Final = ("alert", "dead-letter", "score")
FENCES: Final = ("claim", "doubt")
SWAPS: Final = ("promote", "rollback", "retrain", "rule", "pin")
VERDICTS: Final = ("promoted", "published", "better", "rejected", "rolled-back")
REMOTE_DROPS: Final = ("no-room", "refused", "out-of-order", "crashed")
STAGES: Final = ("decode", "step", "episodes")

# Buckets sit around what is good and what is not: a batch steps in 0.1-30 ms, an alert is due within a second.
_LATENCY_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_STEP_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_CHECKPOINT_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_RESTORE_S: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_LOOP_LAG_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 3.0, 10.0)
_BATCH_SAMPLES: Final = (1, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)


class Declared(NamedTuple):
    """One metric as operators see it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class _Children(dict[str, T]):
    """Children of a metric with one label, resolved once: `labels()` costs more than the counting."""

    def __init__(self, parent: T, preset: Sequence[str] = ()) -> None:
        super().__init__()
        self._parent: T = parent
        for label in preset:
            self[label] = parent.labels(label)

    def __missing__(self, label: str) -> T:
        child: T = self._parent.labels(label)
        self[label] = child
        return child


class Declaring:
    """A registry, and what was declared in it: what every process has, and what it adds.

    Args:
        registry: a new one if none is given.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a `_created` series beside every counter doubles them and says nothing that rate() needs
        self.registry = registry or CollectorRegistry()
        self.declared: list[Declared] = []
        build = self._info("build", "Which anomalyd on which Python, of every process; always 1.", ("version", "python"))
        build.info({"version": __version__, "python": platform.python_version()})
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(self._declare(name, "counter", text, labels, "_total"), text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(self._declare(name, "gauge", text, labels), text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(self._declare(name, "histogram", text), text, buckets=buckets, registry=self.registry)

    def _info(self, name: str, text: str, labels: tuple[str, ...], children: tuple[str, ...] = ()) -> Info:
        return Info(self._declare(name, "info", text, labels, "_info"), text, children, registry=self.registry)

    def _declare(self, name: str, kind: str, text: str, labels: tuple[str, ...] = (), suffix: str = "") -> str:
        self.declared.append(Declared(f"anomalyd_{name}{suffix}", kind, labels, text))
        return f"anomalyd_{name}"


class Metrics(Declaring):
    """All metrics of one instance in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None, *, reasons: Sequence[str] = ()) -> None:
        """`registry`: a new one if none is given; `reasons`: why records can be rejected, preset labels."""
        super().__init__(registry)
        counter, gauge = self._counter, self._gauge
        # what flows
        self._records = counter("records_consumed", "Records read from the input topics.")
        rejected = counter("records_rejected", "Records that could not be read, wholly or in part, by reason.", ("reason",))
        self._rejected = _Children(rejected, reasons)
        self._samples = counter("samples_scored", "Samples accepted, those of series in warm-up included.")
        self._late = counter("samples_late", "Samples older than their series' newest: scored, nothing learned from them, never an alert.")
        self._repeated = counter("samples_repeated", "Samples with the time and value of their series' newest: nothing learned from them.")
        self._dead_letters = counter("dead_letters", "Records written to the dead-letter topic.")
        self._scores = counter("scores_written", "Messages written to the scores topic.")
        alerts = counter("alerts", "Alert messages written and acknowledged, by status and severity.", ("status", "severity"))
        self._alerts = {(status, severity): alerts.labels(status, severity) for status in STATUSES for severity in SEVERITIES}
        self._declare_alerts()
        dropped = counter("messages_dropped", "Alerts, dead letters and scores given up: their topic refuses their size.", ("kind",))
        self._dropped = _Children(dropped, KINDS)
        # Not preset: the age of a time that nobody has seen yet would be that of 1970.
        self._last_event = _Children(gauge("last_event_timestamp_seconds", "Newest event time seen in a stream.", ("stream",)))
        self._declare_held()
        # how fast
        self._detection_s = self._histogram(
            "detection_latency_seconds", "From the record's timestamp in Kafka to its alert being acknowledged and committed.", _LATENCY_S
        )
        self._step_s = self._histogram("step_seconds", "The detector's time for one batch.", _STEP_S)
        self._batch_samples = self._histogram("batch_samples", "Samples in one batch.", _BATCH_SAMPLES)
        busy = counter("worker_busy_seconds", "Time spent working, by stage; its rate is the share of a core.", ("stage",))
        self._busy = _Children(busy, STAGES)
        self._workers = gauge(
            "workers", "Threads that work; the rate of anomalyd_worker_busy_seconds_total over this is how busy they are."
        )
        self._in_flight = gauge("batches_in_flight", "Batches handed to the workers and not yet back.")
        self._batch_s = self._histogram("batch_seconds", "From records being read to what came of them being taken in.", _CHECKPOINT_S)
        # Not preset, for the reason above.
        self._last_batch = _Children(gauge("last_batch_timestamp_seconds", "When a batch of a stream was last taken in.", ("stream",)))
        self._loop_lag_s = self._histogram(
            "event_loop_lag_seconds", "How late the event loop wakes; heartbeats to Kafka wait as long.", _LOOP_LAG_S
        )
        # what is durable
        self._checkpoint_s = self._histogram(
            "checkpoint_seconds", "Time of one commit of a partition: alerts, dead letters, state, position.", _CHECKPOINT_S
        )
        self._last_checkpoint = gauge("last_checkpoint_timestamp_seconds", "When the last commit succeeded; 0 before the first.")
        self._pending = gauge("pending_bytes", "Memory of messages and state that wait for brokers to take them.")
        self._pending_limit = gauge("pending_limit_bytes", "How much of it there may be; beyond, nothing more is read.")
        self._declare_state()
        # Kafka
        self._lag = gauge(
            "consumer_lag_records", "Records not yet read (log end - next position) of each assigned partition.", ("topic", "partition")
        )
        self._assigned = gauge("assigned_partitions", "Input partitions that this instance reads.")
        self._paused = gauge("paused_partitions", "Input partitions paused because brokers take no messages.")
        self._rebalances = counter("rebalances", "Times the group gave partitions out anew.")
        self._fetch_errors = counter("fetch_errors", "Fetches from Kafka that failed and were tried again.")
        lost = counter("records_lost", "Records passed over because Kafka can't hand them out, by reason; act, they are gone.", ("reason",))
        self._lost = _Children(lost, LOSSES)
        self._reconnects = counter("kafka_reconnects", "Times the Kafka clients were built anew after a failure.")
        # what runs
        self._configured = gauge("config_reload_success", "Whether the configuration was valid when it was read last: 1, or 0; act.")
        self._configured_at = gauge("config_reload_success_timestamp_seconds", "When the configuration was read last and was valid.")
        self._declare_remote()
        self._ready = gauge("ready", "Whether partitions are assigned and their state is restored, as /readyz says: 1, or 0.")
        self._declare_models()

    def _declare_alerts(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._muted = counter("alerts_muted", "Alerts that did not fire because of a mute in the alert policy.")
        self._flapping = counter(
            "alerts_flapping", "Alerts that did not fire because the one before of their series ended less than alerts.reopen_after_s ago."
        )
        self._budget = _Children(gauge("budget_per_series_day", "False alarms per series and day that are asked for.", ("stream",)))
        self._watched = _Children(
            counter("budget_series_days", "Event time of all series together in which they could alert, in days.", ("stream",))
        )
        self._allowed = _Children(counter("budget_alerts_allowed", "Alerts that the budget allows for these series-days.", ("stream",)))
        self._fired = _Children(
            counter("budget_alerts_fired", "Alerts that fired, false ones and real ones, but for those about silent series.", ("stream",))
        )
        self._crossings = _Children(
            counter("budget_crossings", "Samples that crossed the level by which the budget is checked, without an alarm.", ("stream",))
        )
        self._crossings_expected = _Children(
            counter("budget_crossings_expected", "How many should have by the calibration; as many, if it is right.", ("stream",))
        )
        self._shadowed = counter(
            "shadow_samples",
            "Samples that a challenger scored beside the model at work, by who would alert: both, champion, challenger, none.",
            ("stream", "alerts"),
        )
        self._shadow_distance = counter(
            "shadow_score_distance", "Sum over these samples of |log10 of the challenger's score - log10 of the other one's|.", ("stream",)
        )
        self._correction = gauge(
            "budget_correction",
            "Powers of ten by which a partition's normal data is strange more often than calibrated; its thresholds give for it.",
            ("topic", "partition"),
        )

    def _declare_held(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._series = gauge("series", "Series whose state is kept.")
        self._series_limit = gauge("series_limit", "Most series that this instance keeps (max_series).")
        self._evicted = counter("series_evicted", "Series forgotten to make room; a steady rate means that max_series is too small.")
        self._expired = counter("series_expired", "Series forgotten because they were away for longer than state.series_ttl_s.")
        self._open_episodes = gauge("open_episodes", "Alerts that are firing now.")
        self._silent_series = gauge("silent_series", "Series that have fallen silent; each is an alert that is firing.")

    def _declare_remote(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._remote_samples = counter("remote_write_samples", "Scores that a remote write receiver took, in samples.")
        dropped = counter("remote_write_dropped_samples", "Scores given up on the way there, by reason.", ("reason",))
        self._remote_dropped = _Children(dropped, REMOTE_DROPS)
        self._remote_failures = counter("remote_write_failures", "Remote writes that failed and were tried again.")
        self._remote_waiting = gauge("remote_write_queue_samples", "Scores that wait for a remote write.")
        self._remote_s = self._histogram("remote_write_seconds", "Time of one remote write that was taken.", _CHECKPOINT_S)

    def _declare_models(self) -> None:
        counter, gauge = self._counter, self._gauge
        self._model = self._info(
            "model", "Which model scores each stream; always 1.", ("stream", "name", "version", "hash"), children=("stream",)
        )
        self._model_age = gauge(
            "model_age_seconds", "Since the model of a stream was trained; absent where nobody wrote it down.", ("stream",)
        )
        self._swaps = counter("model_swaps", "Times that another model took over a stream, by whose doing it was.", ("stream", "reason"))
        self._swap_failures = _Children(
            counter("model_swap_failures", "Models that could not be had or used; the one before stays. Act: see the log.", ("stream",))
        )
        self._decisions = counter(
            "model_decisions", "Decisions about models that the models topic told of while the daemon ran.", ("stream", "verdict")
        )

    def _declare_state(self) -> None:
        counter, gauge = self._counter, self._gauge
        fences = counter(
            "fences", "Partitions taken over (claim), and commits of which it was not known whether they had happened (doubt).", ("why",)
        )
        self._fences = _Children(fences, FENCES)
        self._pages = counter("state_pages_written", "Pages of state written to the changelogs.")
        self._page_bytes = counter("state_bytes_written", "Bytes of pages written to the changelogs.")
        self._checkpoint_age = gauge(
            "checkpoint_age_records", "Records that a restart would replay, of the partition with the most: position - oldest page."
        )
        # what a restore has still to do
        self._restore_s = self._histogram(
            "restore_seconds", "From a partition being claimed to its state being read and replayed, so that it goes on.", _RESTORE_S
        )
        self._restoring = gauge("restoring_partitions", "Partitions of ours whose state is not there yet.")
        self._to_replay = gauge("replay_remaining_records", "Records that are still to be replayed into restored pages.")
        self._replayed = counter("records_replayed", "Records that went through restored pages again, without alerts.")
        self._divergences = counter(
            "replay_divergences",
            "Episodes that a replay saw otherwise than they were told; what was told holds. Normal on another CPU type.",
        )
        self._gap = counter("replay_gap_records", "Records that a replay needed and that the input topic no longer retains.")
        self._stopped = gauge("stopped_partitions", "Partitions of ours that cannot go on until somebody has decided; see the log.")

    # --- verbs: once per batch, checkpoint or rebalance -----------------------------------------------------------

    def batch(
        self,
        *,
        records: int,
        samples: int,
        rejected: Mapping[str, int],
        late: int = 0,
        repeated: int = 0,
        evicted: int = 0,
        expired: int = 0,
        muted: int = 0,
        flapping: int = 0,
        replayed: int = 0,
        divergences: int = 0,
        decode_s: float = 0.0,
        step_s: float = 0.0,
        episodes_s: float = 0.0,
    ) -> None:
        """One batch of one partition went through; times are seconds of work."""
        self._records.inc(records)
        self._samples.inc(samples)
        for reason, count in rejected.items():
            self._rejected[reason].inc(count)
        self._late.inc(late)
        self._repeated.inc(repeated)
        self._evicted.inc(evicted)
        self._expired.inc(expired)
        self._muted.inc(muted)
        self._flapping.inc(flapping)
        self._replayed.inc(replayed)
        self._divergences.inc(divergences)
        self._batch_samples.observe(samples)
        self._step_s.observe(step_s)
        self._busy["decode"].inc(decode_s)
        self._busy["step"].inc(step_s)
        self._busy["episodes"].inc(episodes_s)

    def taken_in(self, stream: str, at_s: float) -> None:
        """What came of records of a stream was taken in, at this time in seconds since the epoch."""
        self._last_batch[stream].set(at_s)

    def turned_around(self, seconds: float) -> None:
        """So long after they had been read, what came of records was taken in."""
        self._batch_s.observe(seconds)

    def capacity(self, *, series: int, workers: int, pending_bytes: int) -> None:
        """What this instance has room for: series, threads that work, and bytes that wait for brokers."""
        self._series_limit.set(series)
        self._workers.set(workers)
        self._pending_limit.set(pending_bytes)

    def readiness(self, ready: Callable[[], bool]) -> None:
        """Whoever scrapes asks this whether the instance is ready."""
        self._ready.set_function(lambda: float(ready()))

    def pending(self, size: int) -> None:
        """So many bytes wait for brokers."""
        self._pending.set(size)

    def in_flight(self, batches: int) -> None:
        """So many batches are with the workers."""
        self._in_flight.set(batches)

    def state(self, *, series: int, open_episodes: int, silent_series: int) -> None:
        """What all partitions hold together."""
        self._series.set(series)
        self._open_episodes.set(open_episodes)
        self._silent_series.set(silent_series)

    def watermark(self, stream: str, event_time_ms: int) -> None:
        """The newest event time seen in a stream, in milliseconds since the epoch."""
        self._last_event[stream].set(event_time_ms / 1000)

    def loop_lag(self, seconds: float) -> None:
        """The event loop woke so much later than asked."""
        self._loop_lag_s.observe(seconds)

    def checkpoint(
        self,
        *,
        seconds: float,
        at_s: float,
        alerts: Mapping[tuple[str, str], int],
        dead_letters: int,
        latencies_s: Iterable[float],
        scores: int = 0,
        pages: int = 0,
        page_bytes: int = 0,
    ) -> None:
        """A partition was committed.

        Args:
            seconds: how long it took.
            at_s: when, in seconds since the epoch.
            alerts: messages acknowledged, by (status, severity).
            dead_letters: records acknowledged by the dead-letter topic.
            latencies_s: of each alert, from its record's timestamp in Kafka until now.
            scores: messages acknowledged by the scores topic.
            pages: of state that went with it.
            page_bytes: of these.
        """
        self._pages.inc(pages)
        self._page_bytes.inc(page_bytes)
        self._checkpoint_s.observe(seconds)
        self._last_checkpoint.set(at_s)
        self._dead_letters.inc(dead_letters)
        self._scores.inc(scores)
        for kind, count in alerts.items():
            self._alerts[kind].inc(count)
        for latency_s in latencies_s:
            self._detection_s.observe(max(0.0, latency_s))  # the producer's clock may run ahead of ours

    def dropped(self, kind: str) -> None:
        """A message was given up because its topic refuses it for its size: one of KINDS."""
        self._dropped[kind].inc()

    def fenced(self, why: str) -> None:
        """A fence was written: one of FENCES."""
        self._fences[why].inc()

    def checkpoint_age(self, records: int) -> None:
        """So many records would be replayed after a crash."""
        self._checkpoint_age.set(records)

    def restoring(self, *, partitions: int, records: int) -> None:
        """So many partitions are not restored yet, and so many records are to be replayed."""
        self._restoring.set(partitions)
        self._to_replay.set(records)

    def restored(self, seconds: float) -> None:
        """A partition goes on, so long after it was claimed."""
        self._restore_s.observe(seconds)

    def gap(self, records: int) -> None:
        """A replay needed so many records that are gone."""
        self._gap.inc(records)

    def stopped(self, partitions: int) -> None:
        """So many partitions of ours cannot go on."""
        self._stopped.set(partitions)

    def rebalanced(self, partitions: int) -> None:
        """The group gave partitions out anew; this instance now has so many."""
        self._rebalances.inc()
        self._assigned.set(partitions)

    def revoked(self, topic: str, partition: int) -> None:
        """The partition is no longer ours: its lag and correction are somebody else's to report."""
        for gauge in (self._lag, self._correction):
            with contextlib.suppress(KeyError):  # it was never known
                gauge.remove(topic, str(partition))

    def lag(self, topic: str, partition: int, records: int) -> None:
        """Records of an assigned partition that are not yet read."""
        self._lag.labels(topic, str(partition)).set(max(0, records))

    def budget(
        self, stream: str, *, asked: float, watched_days: float, allowed: float, fired: int, crossings: int, expected: float
    ) -> None:
        """What a batch of a stream says about its alert budget.

        Args:
            stream: its name.
            asked: false alarms per series and day.
            watched_days: event time of all series together in which they could alert.
            allowed: alerts that the budget allows for it.
            fired: alerts that did.
            crossings: of the level by which the budget is checked.
            expected: as many should have been.
        """
        self._budget[stream].set(asked)
        self._watched[stream].inc(watched_days)
        self._allowed[stream].inc(allowed)
        self._fired[stream].inc(fired)
        self._crossings[stream].inc(crossings)
        self._crossings_expected[stream].inc(expected)

    def shadow(self, stream: str, *, samples: int, both: int, champion: int, challenger: int, distance: float) -> None:
        """What a challenger said beside the model at work: samples, who would alert to how many, and how far apart scores were."""
        neither = samples - both - champion - challenger
        counts = {"both": both, "champion": champion, "challenger": challenger, "none": neither}
        for who, count in counts.items():
            self._shadowed.labels(stream, who).inc(count)
        self._shadow_distance.labels(stream).inc(distance)

    def correction(self, topic: str, partition: int, powers: float) -> None:
        """By how many powers of ten the calibration is corrected in an assigned partition."""
        self._correction.labels(topic, str(partition)).set(powers)

    def remote_written(self, samples: int, seconds: float) -> None:
        """A remote write was taken, with the scores of so many samples."""
        self._remote_samples.inc(samples)
        self._remote_s.observe(seconds)

    def remote_failed(self) -> None:
        """A remote write failed and is tried again."""
        self._remote_failures.inc()

    def remote_dropped(self, reason: str, samples: int) -> None:
        """Scores of so many samples were given up: one of REMOTE_DROPS."""
        self._remote_dropped[reason].inc(samples)

    def remote_queued(self, samples: int) -> None:
        """So many wait for a remote write."""
        self._remote_waiting.set(samples)

    def paused(self, partitions: int) -> None:
        """So many partitions are paused: too much waits to be committed."""
        self._paused.set(partitions)

    def fetch_failed(self) -> None:
        """A fetch failed and will be tried again."""
        self._fetch_errors.inc()

    def lost(self, reason: str, records: int) -> None:
        """So many records can't be had and are passed over: one of LOSSES."""
        self._lost[reason].inc(records)

    def reconnected(self) -> None:
        """The Kafka clients were built anew after a failure."""
        self._reconnects.inc()

    def configured(self, at_s: float) -> None:
        """The configuration was read, and was valid, at this time in seconds since the epoch."""
        self._configured.set(1)
        self._configured_at.set(at_s)

    def misconfigured(self) -> None:
        """The configuration was read again and is not valid; what was read before holds."""
        self._configured.set(0)

    def model(self, stream: str, name: str, version: str, hash_: str, created_s: float | None = None) -> None:
        """The model that scores a stream from now on.

        Args:
            stream: its name.
            name: of the model.
            version: of the model.
            hash_: of the model.
            created_s: when it was made, seconds since the epoch, if that is known.
        """
        self._model.labels(stream).info({"name": name, "version": version, "hash": hash_})
        # So that they are there before the first one.
        self._swap_failures[stream].inc(0)
        for reason in SWAPS:
            self._swaps.labels(stream, reason).inc(0)
        for verdict in VERDICTS:
            self._decisions.labels(stream, verdict).inc(0)
        if created_s is None:
            with contextlib.suppress(KeyError):  # that of the model before was not known either
                self._model_age.remove(stream)
        else:
            self._model_age.labels(stream).set_function(lambda: time.time() - created_s)

    def swapped(self, stream: str, reason: str) -> None:
        """Another model took over a stream: one of SWAPS, or something else."""
        self._swaps.labels(stream, reason if reason in SWAPS else "other").inc()

    def swap_failed(self, stream: str) -> None:
        """A model of a stream could not be had or used."""
        self._swap_failures[stream].inc()

    def decided(self, stream: str, verdict: str) -> None:
        """Somebody decided about a model for a stream: one of VERDICTS, or something else."""
        self._decisions.labels(stream, verdict if verdict in VERDICTS else "other").inc()
