"""NAB's score: its rules by hand, and against a reading of them row by row."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.evaluation.measures import PROFILES, NabScore, Profile, sweep
from anomalyd.evaluation.measures.nab import position_worth

STANDARD, LOW_FP, LOW_FN = PROFILES
WINDOW = (40, 49)
"""Of a file of 100 rows, of which 15 are probation."""

File = tuple[list[float], list[tuple[int, int]]]


def detected(*rows: int, windows: tuple[tuple[int, int], ...] = (WINDOW,), profile: Profile = STANDARD, n: int = 100) -> float:
    """The score where just these rows are detected."""
    scores = np.zeros(n)
    scores[list(rows)] = 1.0
    score = sweep([(scores, windows)]).score_at(0.5, profile)
    assert score is not None
    return score


def test_nothing_detected_is_nought_in_every_profile() -> None:
    assert [detected(profile=profile) for profile in PROFILES] == [0.0, 0.0, 0.0]


def test_the_first_row_of_every_window_and_no_other_is_a_hundred_in_every_profile() -> None:
    for profile in PROFILES:
        assert detected(40, 70, windows=(WINDOW, (70, 74)), profile=profile) == pytest.approx(100.0)


def test_the_sigmoid_has_the_published_values() -> None:
    assert position_worth([-1.0, -0.5, 0.0, 1.0, 3.1]) == pytest.approx([0.98661, 0.84828, 0.0, -0.98661, -1.0], abs=5e-6)


def test_the_last_row_of_a_window_still_is_worth_something() -> None:
    # x = -1/10: S = 2/(1 + e^-0.5) - 1 = 0.244919, over S(-1) = 0.986614: 0.248242. On the scale from -1 to 1 that is 62.412 %.
    assert detected(49) == pytest.approx(62.4121, abs=1e-4)


def test_only_the_earliest_detection_of_a_window_counts() -> None:
    assert detected(44, 45, 46, 47, 49) == detected(44)
    assert detected(40) > detected(44) > detected(49)


@pytest.mark.parametrize(
    ("profile", "expected"), [(STANDARD, 100 * (2 - 0.11) / 2), (LOW_FP, 100 * (2 - 0.22) / 2), (LOW_FN, 100 * (3 - 0.11) / 3)]
)
def test_a_false_row_before_the_first_window_costs_all(profile: Profile, expected: float) -> None:
    assert detected(20, 40, profile=profile) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "cost"),
    [
        (50, 0.0297932),  # x = 1/9: 0.11 · -S = 0.11 · 0.270847
        (58, 0.1085276),  # x = 9/9: 0.11 · 0.986614
        (77, 0.11),  # x = 28/9, beyond 3
    ],
)
def test_a_false_row_after_a_window_costs_more_the_further_away_it_is(row: int, cost: float) -> None:
    assert detected(40, row) == pytest.approx(100 * (2 - cost) / 2, abs=1e-5)


@pytest.mark.parametrize(("profile", "expected"), [(STANDARD, 50.0), (LOW_FN, 50.0)])
def test_a_missed_window_costs_its_share(profile: Profile, expected: float) -> None:
    assert detected(40, windows=(WINDOW, (60, 69)), profile=profile) == pytest.approx(expected)


def test_probation_is_not_scored() -> None:
    assert detected(0, 14, 40) == pytest.approx(100.0)
    assert detected(15, 40) < 95.0
    # Never more than 750 rows.
    assert detected(749, 5000, windows=((5000, 5099),), n=6000) == pytest.approx(100.0)
    assert detected(750, 5000, windows=((5000, 5099),), n=6000) < 95.0


def test_a_window_within_probation_cannot_be_missed() -> None:
    assert detected(40, windows=((5, 9), WINDOW)) == pytest.approx(100.0)


def test_after_a_window_of_one_row_every_false_row_is_far() -> None:
    assert detected(40, 41, windows=((40, 40),)) == pytest.approx(94.5)


def test_one_threshold_serves_all_files() -> None:
    loud, quiet = np.zeros(100), np.zeros(100)
    loud[20], loud[40] = 5.0, 9.0
    quiet[40] = 1.0
    whole = sweep([(loud, [WINDOW]), (quiet, [WINDOW])])
    # At 1 both windows are hit, and the false row of the loud file comes along: 100 (2 + 2 - 0.11) / 4.
    best = whole.best(STANDARD)
    assert best is not None
    assert best.score == pytest.approx(97.25)
    assert best.threshold == 1.0
    assert whole.score_at(9.0, STANDARD) == pytest.approx(50.0)


def test_a_detector_that_only_costs_is_best_kept_silent() -> None:
    scores = np.zeros(100)
    scores[20:40] = 1.0
    assert sweep([(scores, [WINDOW])]).best(LOW_FP) == NabScore(0.0, math.inf)


def test_rows_without_a_score_are_never_detected() -> None:
    scores = np.full(100, np.nan)
    scores[40] = -3.0
    assert sweep([(scores, [WINDOW])]).score_at(-math.inf, STANDARD) == pytest.approx(100.0)


def test_an_infinite_score_is_the_highest() -> None:
    scores = np.zeros(100)
    scores[40] = np.inf
    best = sweep([(scores, [WINDOW])]).best(STANDARD)
    assert best is not None
    assert best.score == pytest.approx(100.0)
    assert best.threshold < np.inf


def test_without_windows_there_is_no_score() -> None:
    for corpus in (sweep([(np.zeros(100), [])]), sweep([])):
        assert corpus.best(STANDARD) is None
        assert corpus.score_at(0.0, STANDARD) is None


@pytest.mark.parametrize("windows", [[(10, 20), (20, 30)], [(95, 100)], [(-1, 4)], [(9, 8)]])
def test_windows_that_cannot_be_are_refused(windows: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="windows"):
        sweep([(np.zeros(100), windows)])


def literal(files: list[File], threshold: float, profile: Profile) -> float:
    """The rules one by one."""

    def sigmoid(x: float) -> float:
        return -1.0 if x > 3 else 2 / (1 + math.exp(5 * x)) - 1

    total, count = 0.0, 0
    for scores, windows in files:
        probation = min(math.floor(0.15 * len(scores)), 750)
        alarms = [row for row, score in enumerate(scores) if row >= probation and score >= threshold]
        for first, last in windows:
            if last >= probation:
                count += 1
                width = last - first + 1
                worths = [profile.tp * sigmoid(-(last - row + 1) / width) / sigmoid(-1) for row in alarms if first <= row <= last]
                total += max(worths, default=-profile.fn)
        for row in alarms:
            if any(first <= row <= last for first, last in windows):
                continue
            before = [(last, last - first) for first, last in windows if last < row]
            last, scale = max(before, default=(0, 0))
            total += profile.fp * sigmoid((row - last) / scale if scale else math.inf)
    null = -count * profile.fn
    return 100 * (total - null) / (count * profile.tp - null)


@st.composite
def corpora(draw: st.DrawFn) -> list[File]:
    files = []
    for _ in range(draw(st.integers(1, 3))):
        n = draw(st.integers(8, 60))
        # Few distinct scores: most are equal to others.
        scores = draw(st.lists(st.integers(0, 6).map(float), min_size=n, max_size=n))
        cuts = sorted(draw(st.sets(st.integers(0, n - 1), max_size=6)))
        files.append((scores, list(zip(cuts[::2], cuts[1::2], strict=False))))
    # One window that counts whatever was drawn.
    return [*files, ([0.0] * 9 + [float(draw(st.integers(0, 6)))], [(5, 9)])]


@given(files=corpora())
@settings(max_examples=60, deadline=None)
def test_equals_the_rules_at_every_threshold(files: list[File]) -> None:
    corpus = sweep(files)
    thresholds = [*np.arange(0.0, 6.6, 0.5), math.inf]
    for profile in PROFILES:
        expected = [literal(files, threshold, profile) for threshold in thresholds]
        assert [corpus.score_at(threshold, profile) for threshold in thresholds] == pytest.approx(expected, abs=1e-9)
        best = corpus.best(profile)
        assert best is not None
        assert best.score == pytest.approx(max(expected), abs=1e-9)
        assert corpus.score_at(best.threshold, profile) == best.score
