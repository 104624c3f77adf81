"""Which alerts are open, and what is told of them."""

from anomalyd.notifier.book import KEPT_MS, RESOLVED_MS, Book
from tests.notifier.alerts import alert, post

NOW_MS = 1_767_268_800_000


def told(book: Book, host: str, status: str = "firing", said_ms: int = NOW_MS, now_ms: int | None = None, **changes: object) -> None:
    book.take(alert(host, status, **changes), post(host, status, **changes), said_ms, said_ms if now_ms is None else now_ms)


def test_news_are_told_once_and_what_is_open_is_told_again() -> None:
    book = Book()
    told(book, "a")
    told(book, "b")

    assert book.news() == [post("a"), post("b")]
    assert book.news() == []
    assert list(book.all(NOW_MS).values()) == [post("a"), post("b")]
    assert len(book) == 2


def test_the_newest_message_counts() -> None:
    book = Book()
    told(book, "a")
    told(book, "a", "updated", value=99.0)

    assert book.news() == [post("a", "updated", value=99.0)]


def test_an_end_is_told_for_a_while() -> None:
    book = Book()
    told(book, "a")
    told(book, "a", "resolved")

    assert book.news() == [post("a", "resolved")]
    assert list(book.all(NOW_MS + RESOLVED_MS).values()) == [post("a", "resolved")]
    assert list(book.all(NOW_MS + RESOLVED_MS + 1).values()) == []
    assert len(book) == 0


def test_a_new_severity_ends_one_and_begins_another() -> None:
    book = Book()
    told(book, "a")
    told(book, "a", "updated", severity="critical", said_ms=NOW_MS + 5_000)

    ended, begun = book.news()

    assert (ended.labels, ended.ends_ms) == (post("a").labels, NOW_MS + 5_000)
    assert begun == post("a", "updated", severity="critical")
    told(book, "a", "resolved", severity="critical")
    assert [found.labels for found in book.news()] == [begun.labels]


def test_an_end_with_another_severity_than_before_ends_both() -> None:
    book = Book()
    told(book, "a")
    book.news()
    told(book, "a", "resolved", severity="critical")

    assert {found.labels for found in book.news()} == {post("a").labels, post("a", severity="critical").labels}
    assert all(found.ends_ms is not None for found in book.all(NOW_MS).values())


def test_two_that_look_alike_are_open_until_both_have_ended() -> None:
    book = Book()
    told(book, "a", alert_id="1")
    told(book, "a", alert_id="2")
    book.news()

    told(book, "a", "resolved", alert_id="1")
    assert book.news() == []
    told(book, "a", "resolved", alert_id="2")
    assert book.news() == [post("a", "resolved", alert_id="2")]


def test_an_alert_that_comes_back_is_not_told_to_have_ended() -> None:
    book = Book()
    told(book, "a", alert_id="1")
    told(book, "a", "resolved", alert_id="1")
    told(book, "a", alert_id="2")

    assert list(book.all(NOW_MS).values()) == [post("a", alert_id="2")]


def test_the_end_of_one_that_was_never_heard_of_is_told() -> None:
    book = Book()
    told(book, "a", "resolved")

    assert book.news() == [post("a", "resolved")]


def test_what_nobody_speaks_of_any_more_is_forgotten() -> None:
    book = Book()
    told(book, "a")
    told(book, "b", said_ms=NOW_MS + 1)

    assert book.forget(NOW_MS + KEPT_MS + 1) == 1
    assert list(book.all(NOW_MS + KEPT_MS + 1).values()) == [post("b")]
    told(book, "a", "resolved")
    assert len(book) == 1


def test_what_is_behind_changes_nothing() -> None:
    """An alert's messages may lie in several partitions, and an instance that was replaced may still write."""
    book = Book()
    told(book, "a", "updated", severity="critical", event_time="2026-01-01T12:05:00.000Z")
    book.news()
    told(book, "a", event_time="2026-01-01T12:00:00.000Z")
    assert book.news() == []

    told(book, "a", "resolved", severity="critical", event_time="2026-01-01T12:10:00.000Z")
    book.news()
    told(book, "a", "updated", event_time="2026-01-01T12:10:00.000Z")
    assert (book.news(), len(book)) == ([], 0)


def test_an_end_counts_whenever_it_is_read_and_one_that_goes_on_is_open_again() -> None:
    book = Book()
    told(book, "a", "resolved", event_time="2026-01-01T12:10:00.000Z")
    told(book, "a", event_time="2026-01-01T12:00:00.000Z")
    assert len(book) == 0

    told(book, "a", "updated", event_time="2026-01-01T12:20:00.000Z")
    assert len(book) == 1
    told(book, "a", "resolved", event_time="2026-01-01T12:15:00.000Z")
    told(book, "a", "updated", event_time="2026-01-01T12:20:00.000Z")
    assert len(book) == 0


def test_ends_of_long_ago_are_told_once_and_not_kept() -> None:
    """They are news where Kafka was away; where the topic is read from its beginning there are those of a week."""
    book = Book()
    told(book, "a")
    told(book, "a", "resolved", now_ms=NOW_MS + RESOLVED_MS + 1)

    assert book.news() == [post("a", "resolved")]
    assert list(book.all(NOW_MS)) == []
