"""The notifier's metrics, declared once as the daemon's are."""

import time
from typing import Final

from prometheus_client import CollectorRegistry

from anomalyd.telemetry.metrics import Declaring

REASONS: Final = ("unreachable", "timeout", "refused", "overloaded")
"""Why a request failed: no connection; no answer in time; an answer that will not change by itself (authentication, path); 5xx or 429."""


class NotifyMetrics(Declaring):
    """All metrics of a notifier in one registry."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """`registry`: a new one if none is given."""
        super().__init__(registry)
        counter, gauge, member = self._counter, self._gauge, ("alertmanager",)
        self._records = counter("notify_records", "Messages read from the alerts topic.")
        self._unreadable = counter("notify_records_unreadable", "Messages of the alerts topic that are no alerts, or of a newer schema.")
        self._open = gauge("notify_open_alerts", "Alerts that are open, as the alerts topic tells.")
        self._forgotten = counter("notify_alerts_forgotten", "Open alerts of which the topic has said nothing for a week.")
        self._lag = gauge("notify_lag_records", "Messages of the alerts topic that are not read yet.")
        self._members = gauge("notify_alertmanagers", "Members that alerts are sent to.")
        self._sent = counter("notify_alerts_sent", "Alerts that a member has taken, repetitions included.", member)
        self._rejected = counter("notify_alerts_rejected", "Alerts that a member refuses, each counted once until it changes.", member)
        self._dropped = counter("notify_alerts_dropped", "Alerts dropped because too many wait for a member, the oldest first.", member)
        self._errors = counter("notify_errors", "Requests that failed, by why.", (*member, "reason"))
        self._queue = gauge("notify_queue_length", "Alerts that wait for a member.", member)
        self._capacity = gauge("notify_queue_capacity", "How many may wait.")
        self._success = gauge("notify_last_success_timestamp_seconds", "When a member took alerts last.", member)
        self._seconds = self._histogram(
            "notify_request_seconds", "From a request to its answer.", (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
        )

    def begin(self, capacity: int) -> None:
        """How many alerts may wait for a member."""
        self._capacity.set(capacity)

    def member(self, member: str) -> None:
        """A member that nothing was sent to yet."""
        for counter in (self._sent, self._rejected, self._dropped):
            counter.labels(member)
        for reason in REASONS:
            self._errors.labels(member, reason)
        self._queue.labels(member)

    def gone(self, member: str) -> None:
        """A member that there is no more."""
        for metric in (self._sent, self._rejected, self._dropped, self._queue, self._success):
            metric.remove_by_labels({"alertmanager": member})
        self._errors.remove_by_labels({"alertmanager": member})

    def members(self, count: int) -> None:
        """How many there are."""
        self._members.set(count)

    def read(self, records: int, unreadable: int) -> None:
        """Messages were read."""
        self._records.inc(records)
        self._unreadable.inc(unreadable)

    def look(self, open_alerts: int, lag: int) -> None:
        """How it stands."""
        self._open.set(open_alerts)
        self._lag.set(lag)

    def forgotten(self, alerts: int) -> None:
        """Alerts were given up."""
        self._forgotten.inc(alerts)

    def sent(self, member: str, alerts: int) -> None:
        """A member took alerts."""
        self._sent.labels(member).inc(alerts)
        self._success.labels(member).set(time.time())

    def rejected(self, member: str) -> None:
        """A member refused an alert."""
        self._rejected.labels(member).inc()

    def dropped(self, member: str, alerts: int) -> None:
        """Too many alerts waited for a member."""
        self._dropped.labels(member).inc(alerts)

    def failed(self, member: str, reason: str) -> None:
        """A request failed; reason is one of REASONS."""
        self._errors.labels(member, reason).inc()

    def queued(self, member: str, alerts: int) -> None:
        """Alerts that wait for a member."""
        self._queue.labels(member).set(alerts)

    def answered(self, seconds: float) -> None:
        """A member answered."""
        self._seconds.observe(seconds)
