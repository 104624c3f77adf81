"""Which alerts are open, and what is told of them."""

from anomalyd.notifier.book import KEPT_MS, RESOLVED_MS, Book
from tests.notifier.alerts import alert, post

NOW_MS = 1_767_268_800_000


def told(book: Book, host: str, status: str = "firing", said_ms: int = NOW_MS, **changes: object) -> None:
    book.take(alert(host, status, **changes), post(host, status, **changes), said_ms)


def test_news_are_told_once_and_what_is_open_is_told_again() -> None:
    book = Book()
    told(book, "a")
    told(book, "b")

    assert book.news() == [post("a"), post("b")]
    assert book.news() == []
    assert list(book.all(NOW_MS)) == [post("a"), post("b")]
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
    assert list(book.all(NOW_MS + RESOLVED_MS)) == [post("a", "resolved")]
    assert list(book.all(NOW_MS + RESOLVED_MS + 1)) == []
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
    assert all(found.ends_ms is not None for found in book.all(NOW_MS))


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

    assert list(book.all(NOW_MS)) == [post("a", alert_id="2")]


def test_the_end_of_one_that_was_never_heard_of_is_told() -> None:
    book = Book()
    told(book, "a", "resolved")

    assert book.news() == [post("a", "resolved")]


def test_what_nobody_speaks_of_any_more_is_forgotten() -> None:
    book = Book()
    told(book, "a")
    told(book, "b", said_ms=NOW_MS + 1)

    assert book.forget(NOW_MS + KEPT_MS + 1) == 1
    assert list(book.all(NOW_MS + KEPT_MS + 1)) == [post("b")]
    told(book, "a", "resolved")
    assert len(book) == 1
