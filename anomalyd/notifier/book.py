"""Which alerts are open, as the alerts topic tells; what members have to be told of it. No clock, no network."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from anomalyd.alerts.messages import Alert
from anomalyd.notifier.wire import Labels, Post

KEPT_MS: Final = 7 * 86_400_000
"""An open alert of which the topic has said nothing for so long is forgotten: each says something at least once a day, and so long the
topic keeps it."""
RESOLVED_MS: Final = 15 * 60_000
"""So long is the end of an alert told again, as Prometheus does, for members that were away, and by a notifier that was away itself."""


class _Open(NamedTuple):
    post: Post
    said_ms: int


class _Over(NamedTuple):
    event_ms: int
    said_ms: int


class Book:
    """The open alerts, and those that have just ended.

    Args:
        resolved_ms: so long is the end of an alert told again.
    """

    def __init__(self, resolved_ms: int = RESOLVED_MS) -> None:
        self._resolved_ms = resolved_ms
        self._open: dict[str, _Open] = {}
        self._over: dict[str, _Over] = {}
        self._holders: dict[Labels, set[str]] = {}  # whose labels, made fit, are the same are one alert to Alertmanager
        self._ended: dict[Labels, tuple[Post, int]] = {}
        self._news: dict[Labels, Post] = {}

    def __len__(self) -> int:
        return len(self._open)

    def take(self, alert: Alert, post: Post, said_ms: int, now_ms: int) -> None:
        """A message of the topic. One that is behind what is known of its alert changes nothing.

        That comes up where the topic was given more partitions, so that messages of an alert lie in several, and without transactions,
        where an instance that was replaced may still write for a moment. An alert that has ended would be open for a week.

        Args:
            alert: the message.
            post: what to tell of it.
            said_ms: when it was written, by the brokers' or the daemon's clock.
            now_ms: the clock.
        """
        before, over = self._open.get(alert.alert_id), self._over.get(alert.alert_id)
        ends_ms = post.ends_ms
        if ends_ms is None and (
            (before is not None and post.event_ms < before.post.event_ms) or (over is not None and post.event_ms <= over.event_ms)
        ):
            return
        self._open.pop(alert.alert_id, None)
        self._over.pop(alert.alert_id, None)
        if before is not None:
            self._let_go(before.post.labels, alert.alert_id)
        if before is not None and before.post.labels != post.labels:
            # Its severity has changed: to Alertmanager another one begins. The one before ends with the event that changed it.
            self._end(
                replace(before.post, ends_ms=ends_ms if ends_ms is not None else max(before.post.starts_ms, said_ms)), said_ms, now_ms
            )
        if ends_ms is None:
            self._open[alert.alert_id] = _Open(post, said_ms)
            self._holders.setdefault(post.labels, set()).add(alert.alert_id)
            self._ended.pop(post.labels, None)
            self._news[post.labels] = post
        else:
            self._over[alert.alert_id] = _Over(post.event_ms if before is None else max(post.event_ms, before.post.event_ms), said_ms)
            self._end(post, said_ms, now_ms)

    def _let_go(self, labels: Labels, alert_id: str) -> None:
        holders = self._holders[labels]
        holders.discard(alert_id)
        if not holders:
            del self._holders[labels]

    def _end(self, post: Post, said_ms: int, now_ms: int) -> None:
        if post.labels in self._holders:
            return  # another one with the same labels is still open
        if now_ms - said_ms <= self._resolved_ms:  # the topic holds those of a week, which are too many to keep
            self._ended[post.labels] = post, said_ms
        self._news[post.labels] = post

    def news(self) -> list[Post]:
        """What has changed since the last call: of each alert the latest."""
        news, self._news = self._news, {}
        return list(news.values())

    def all(self, now_ms: int) -> Mapping[Labels, Post]:
        """What is told again: the end of those that have just ended, and all that are open."""
        self._ended = {labels: ended for labels, ended in self._ended.items() if now_ms - ended[1] <= self._resolved_ms}
        ended = {labels: post for labels, (post, _) in self._ended.items()}
        return ended | {found.post.labels: found.post for found in self._open.values()}

    def forget(self, now_ms: int) -> int:
        """Lets go of open alerts of which nothing was heard for long; returns how many. Members end them by themselves."""
        gone = [(alert_id, found.post.labels) for alert_id, found in self._open.items() if now_ms - found.said_ms > KEPT_MS]
        for alert_id, labels in gone:
            del self._open[alert_id]
            self._let_go(labels, alert_id)
        self._over = {alert_id: over for alert_id, over in self._over.items() if now_ms - over.said_ms <= KEPT_MS}
        return len(gone)
