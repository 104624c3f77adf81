"""Which alerts are open, as the alerts topic tells; what members have to be told of it. No clock, no network."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from anomalyd.alerts.messages import Alert
from anomalyd.notifier.wire import Labels, Post

KEPT_MS: Final = 7 * 86_400_000
"""An open alert of which the topic has said nothing for so long is forgotten: each says something at least once a day, and so long the
topic keeps it."""
RESOLVED_MS: Final = 15 * 60_000
"""So long is the end of an alert told again, as Prometheus does, for members that were away."""


class _Open(NamedTuple):
    post: Post
    said_ms: int


class Book:
    """The open alerts, and those that have just ended."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._holders: dict[Labels, set[str]] = {}  # whose labels, made fit, are the same are one alert to Alertmanager
        self._ended: dict[Labels, tuple[Post, int]] = {}
        self._news: dict[Labels, Post] = {}

    def __len__(self) -> int:
        return len(self._open)

    def take(self, alert: Alert, post: Post, said_ms: int) -> None:
        """A message of the topic.

        Args:
            alert: the message.
            post: what to tell of it.
            said_ms: when it was written, by the brokers' or the daemon's clock.
        """
        before = self._open.pop(alert.alert_id, None)
        ends_ms = post.ends_ms
        if before is not None:
            self._let_go(before.post.labels, alert.alert_id)
        if before is not None and before.post.labels != post.labels:
            # Its severity has changed: to Alertmanager another one begins. The one before ends with the event that changed it.
            self._end(replace(before.post, ends_ms=ends_ms if ends_ms is not None else max(before.post.starts_ms, said_ms)), said_ms)
        if ends_ms is None:
            self._open[alert.alert_id] = _Open(post, said_ms)
            self._holders.setdefault(post.labels, set()).add(alert.alert_id)
            self._ended.pop(post.labels, None)
            self._news[post.labels] = post
        else:
            self._end(post, said_ms)

    def _let_go(self, labels: Labels, alert_id: str) -> None:
        holders = self._holders[labels]
        holders.discard(alert_id)
        if not holders:
            del self._holders[labels]

    def _end(self, post: Post, said_ms: int) -> None:
        if post.labels in self._holders:
            return  # another one with the same labels is still open
        self._ended[post.labels] = post, said_ms
        self._news[post.labels] = post

    def news(self) -> list[Post]:
        """What has changed since the last call: of each alert the latest."""
        news, self._news = self._news, {}
        return list(news.values())

    def all(self, now_ms: int) -> Iterable[Post]:
        """What is told again: the end of those that have just ended, and all that are open."""
        for labels, (_, said_ms) in list(self._ended.items()):
            if now_ms - said_ms > RESOLVED_MS:
                del self._ended[labels]
        yield from [post for post, _ in self._ended.values()]
        yield from {found.post.labels: found.post for found in self._open.values()}.values()

    def forget(self, now_ms: int) -> int:
        """Lets go of open alerts of which nothing was heard for long; returns how many. Members end them by themselves."""
        gone = [(alert_id, found.post.labels) for alert_id, found in self._open.items() if now_ms - found.said_ms > KEPT_MS]
        for alert_id, labels in gone:
            del self._open[alert_id]
            self._let_go(labels, alert_id)
        return len(gone)
