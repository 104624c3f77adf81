"""The retrainer's metrics, declared once as the daemon's are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry

from anomalyd.telemetry.metrics import Declaring

VERDICTS: Final = ("published", "better", "rejected")
"""What becomes of a round: better is one that would have been published, had that been wanted."""


class RetrainMetrics(Declaring):
    """All metrics of a retrainer in one registry.

    Args:
        registry: a new one if none is given.
        measures: of the gate, which are shown for both models.
    """

    def __init__(self, registry: CollectorRegistry | None = None, *, measures: Sequence[str] = ()) -> None:
        super().__init__(registry)
        self._measures = measures
        counter, gauge, stream = self._counter, self._gauge, ("stream",)
        self._records = counter("retrain_records", "Records read by the retrainer.", stream)
        self._rounds = counter("retrain_rounds", "Rounds of retraining, by what came of them.", ("stream", "verdict"))
        self._failures = counter("retrain_failures", "Rounds that ended with an error.", stream)
        self._at = gauge("retrain_last_round_timestamp_seconds", "When the last round ended.", stream)
        self._duration = gauge("retrain_last_round_seconds", "How long it took.", stream)
        self._running = gauge("retrain_round_running", "1 while a round runs.", stream)
        self._series = gauge("retrain_series", "Series in the sample that is learned from.", stream)
        self._samples = gauge("retrain_samples", "Samples kept of them.", stream)
        self._bytes = gauge("retrain_sample_bytes", "Memory of these samples.", stream)
        self._incidents = gauge("retrain_incidents", "Spans of alerts that are not learned from.", stream)
        self._lag = gauge("retrain_lag_records", "Records of the input topics that are not read yet.")
        self._drift = gauge(
            "retrain_drift",
            "Nats a sample by which the champion forecasts worse than it did at first; lower end of the interval.",
            stream,
        )
        measured = ("stream", "measure", "model")
        self._judged = gauge("retrain_gate", "What the last round's gate measured, by model: champion or challenger.", measured)

    def begin(self, stream: str) -> None:
        """A stream that nothing has happened to yet."""
        for verdict in VERDICTS:
            self._rounds.labels(stream, verdict)
        for counter in (self._records, self._failures):
            counter.labels(stream)

    def taken(self, stream: str, records: int) -> None:
        """Records were read."""
        self._records.labels(stream).inc(records)

    def kept(self, stream: str, series: int, samples: int, size: int, incidents: int) -> None:
        """What is held now."""
        self._series.labels(stream).set(series)
        self._samples.labels(stream).set(samples)
        self._bytes.labels(stream).set(size)
        self._incidents.labels(stream).set(incidents)

    def lag(self, records: int) -> None:
        """Records behind."""
        self._lag.set(records)

    def running(self, stream: str, *, on: bool) -> None:
        """A round begins or ends."""
        self._running.labels(stream).set(on)

    def round(self, stream: str, verdict: str, figures: Mapping[str, Any], seconds: float, at_s: float) -> None:
        """A round came to an end: verdict is one of VERDICTS, figures those of the gate."""
        self._rounds.labels(stream, verdict).inc()
        self._duration.labels(stream).set(seconds)
        self._at.labels(stream).set(at_s)
        for measure in self._measures:
            for model in ("champion", "challenger"):
                value = figures.get(measure, {}).get(model)
                self._judged.labels(stream, measure, model).set(math.nan if value is None else value)

    def failed(self, stream: str) -> None:
        """A round ended with an error."""
        self._failures.labels(stream).inc()

    def drift(self, stream: str, nats: float) -> None:
        """How much worse the champion has become."""
        self._drift.labels(stream).set(nats)
