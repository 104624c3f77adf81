"""A model that has just begun to score may stay, or it must go."""

from anomalyd.probation import Probation, Terms


def watched(fired: int, allowed: float, unsound: int = 0) -> str:
    probation = Probation()
    probation.begin()
    return probation.count(fired, allowed, unsound)


def test_far_more_alerts_than_the_budget_allows_are_too_many() -> None:
    assert watched(40, 2.0) == "40 alerts fired, and 2 were to be expected"
    assert not watched(11, 2.0)  # not twice what three budgets are


def test_a_few_alerts_at_once_prove_nothing() -> None:
    """An incident right behind a swap, when hardly anything was allowed yet."""
    assert not watched(9, 0.001)
    assert watched(10, 0.001)


def test_a_stream_that_always_alerts_more_is_compared_with_itself() -> None:
    probation = Probation()
    probation.count(100, 10.0, 0)
    probation.begin()

    assert not probation.count(40, 2.0, 0)
    assert probation.count(110, 0.5, 0) == "150 alerts fired, and 25 were to be expected"


def test_one_score_that_is_not_finite_is_enough() -> None:
    assert watched(0, 1.0, unsound=2) == "2 scores are not finite"


def test_a_model_that_has_proved_itself_stays_and_what_it_does_is_usual() -> None:
    probation = Probation(Terms(enough=10.0))
    probation.begin()
    assert not probation.count(15, 10.0, 0)
    assert not probation.on
    assert not probation.count(1_000, 1.0, 3)

    probation.begin()
    assert not probation.count(500, 5.0, 0)


def test_without_a_swap_nothing_is_watched_and_a_bad_model_is_not_what_is_usual() -> None:
    probation = Probation()
    assert not probation.count(1_000, 1.0, 1)
    probation = Probation()
    probation.begin()
    assert probation.count(1_000, 6.0, 0)
    probation.end()
    probation.begin()

    assert probation.count(50, 2.0, 0)


def test_a_swap_that_is_not_watched_leaves_what_is_usual() -> None:
    probation = Probation()
    probation.count(100, 10.0, 0)
    probation.end()
    probation.begin()

    assert not probation.count(40, 2.0, 0)
