"""The budget's control by itself: how far it moves by what was counted, and what must not move it."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.alerts.budget import IDLE, LEAST, MILLI, MOST, NEVER, UNIT, Control, Entry, Pace, correction

HOUR_MS = 3_600_000
DAY_HOURS = 24
PACE = Pace()

DAYS = st.lists(st.integers(-2_000, 2_000), max_size=40)
HOURS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40 * UNIT), st.sampled_from([0, 1, 1, 1, 2, 30, -3, 9_000])), max_size=300)


def live(control: Control, hours: Sequence[tuple[int, int, int]], start: int = 0) -> list[Entry]:
    """Hours of so many crossings, so many expected ones and so much time; what came into force, by the number of the hour."""
    entries, now_ms = [], 10**12
    for number, (crossings, expected, hours_on) in enumerate(hours):
        if number >= start:
            control.count(crossings, expected)
        now_ms += hours_on * HOUR_MS
        if number >= start:
            entries += control.reach(now_ms, number)
    return entries


def steady(ratio: float, *, per_day: float, days: int, seed: int = 0) -> list[tuple[int, int, int]]:
    rng = np.random.default_rng(seed)
    expected = per_day / DAY_HOURS
    return [(int(n), round(expected * UNIT), 1) for n in rng.poisson(ratio * expected, days * DAY_HOURS)]


@given(DAYS, st.floats(0.001, 0.9))
def test_it_stays_within_its_bounds_and_on_the_side_of_the_days(days: list[int], doubt: float) -> None:
    found = correction(days, doubt)

    assert LEAST <= found <= MOST
    assert found == 0 or abs(found) >= IDLE
    if found > 0:
        assert sum(day >= found for day in days) > len(days) / 2
    if found < 0:
        assert sum(day <= found for day in days) > len(days) / 2


@given(DAYS.filter(len), st.data())
def test_a_day_that_was_stranger_never_lowers_it(days: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(days) - 1))
    more = [*days[:at], days[at] + data.draw(st.integers(0, 1_000)), *days[at + 1 :]]

    assert correction(more, PACE.doubt) >= correction(days, PACE.doubt)


@given(DAYS, st.integers(-2_000, 2_000), st.floats(0.001, 0.5))
def test_it_moves_towards_where_most_days_are_and_never_beyond(days: list[int], shift: int, doubt: float) -> None:
    moved, middle = correction([shift] * 30 + days[:5], doubt), min(max(shift, LEAST), MOST)

    assert moved == (middle if abs(middle) >= IDLE else 0)


@pytest.mark.parametrize(("count", "moves"), [(0, False), (7, False), (8, True)])
def test_it_takes_eight_days_to_be_sure(count: int, moves: bool) -> None:
    assert (correction([500] * count, PACE.doubt) != 0) is moves


def test_the_median_of_normal_days_is_taken_for_another_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    wrong = [correction((MILLI * rng.standard_normal(28)).round().astype(int).tolist(), 0.05) != 0 for _ in range(4_000)]

    assert np.mean(wrong) <= 0.05


@given(HOURS, st.lists(st.integers(1, 40), max_size=10))
def test_what_is_counted_in_pieces_is_the_same(hours: list[tuple[int, int, int]], cuts: list[int]) -> None:
    whole, pieces = Control(), Control()
    entries: list[Entry] = []
    now_ms = 10**12
    for number, (crossings, expected, on) in enumerate(hours):
        left = (crossings, expected)
        for cut in cuts:
            part = (min(cut, left[0]), min(cut * UNIT // 7, left[1]))
            pieces.count(*part)
            left = (left[0] - part[0], left[1] - part[1])
        pieces.count(*left)
        now_ms += on * HOUR_MS
        entries += pieces.reach(now_ms, number)

    assert live(whole, hours) == entries
    assert whole.state == pieces.state


@settings(max_examples=60)
@given(HOURS, st.data())
def test_it_goes_on_from_what_was_written_down(hours: list[tuple[int, int, int]], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(hours)))
    whole = Control()
    entries = live(whole, hours)
    before, after = Control(), Control()
    known = live(before, hours[:at])
    after.begin(before.state, known, at)

    assert [*known, *live(after, hours, at)] == entries
    assert (after.state, after.correction) == (whole.state, whole.correction)


def test_a_replay_goes_through_the_corrections_that_were_in_force() -> None:
    control = Control()
    control.begin((), [(20, 300), (30, 400), (50, -200)], 10)

    seen = []
    for offset in (10, 19, 20, 29, 45, 50):
        control.take_up(offset)
        seen.append((control.correction, control.boundary))

    assert seen == [(0, 20), (0, 20), (300, 30), (300, 30), (400, 50), (-200, NEVER)]


def test_a_correction_that_began_before_the_replay_is_in_force_from_its_beginning() -> None:
    control = Control()
    control.begin((), [(20, 300), (30, 400)], 25)

    assert (control.correction, control.boundary) == (300, 30)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("per_day", [1.3, 30, 3_000])
def test_data_as_calibrated_moves_nothing(per_day: float, seed: int) -> None:
    control = Control()
    live(control, steady(1.0, per_day=per_day, days=120, seed=seed))

    assert abs(control.correction) / MILLI <= 0.1


@pytest.mark.parametrize("per_day", [10, 100, 3_000])
def test_three_times_as_many_crossings_are_found_within_a_month(per_day: float) -> None:
    control = Control()
    live(control, steady(3.0, per_day=per_day, days=30))

    assert 3 / 2 < 10 ** (control.correction / MILLI) <= 3 * 1.1


def test_calm_data_lowers_the_threshold_within_its_bound() -> None:
    control = Control()
    live(control, steady(0.05, per_day=100, days=40))

    assert control.correction == LEAST


def test_a_week_of_incidents_in_four_moves_little() -> None:
    hours = steady(1.0, per_day=100, days=28)
    for day in range(7, 14):
        for hour in range(DAY_HOURS):
            hours[day * DAY_HOURS + hour] = (50, *hours[day * DAY_HOURS + hour][1:])
    control = Control()
    live(control, hours)

    assert control.correction == 0


def test_what_happens_to_all_series_in_one_hour_of_each_day_moves_little() -> None:
    hours = steady(1.0, per_day=144, days=40)
    for day in range(40):  # a hundred series at once
        crossings, expected, on = hours[day * DAY_HOURS + 3]
        hours[day * DAY_HOURS + 3] = (crossings + 100, expected, on)
    control = Control()
    live(control, hours)

    assert control.correction / MILLI < math.log10(1.6)


def test_a_clock_that_jumps_back_and_forth_loses_no_count() -> None:
    control = Control()
    for number in range(400):
        control.count(1, UNIT)
        control.reach(10**12 + (number % 7) * 400 * HOUR_MS, number)

    assert control.days
    assert all(abs(day) < 200 for day in control.days)
    assert control.correction == 0


def test_what_is_written_down_is_small() -> None:
    control = Control()
    live(control, steady(2.0, per_day=5_000, days=100))

    assert len(control.days) == PACE.days
    assert len(control.state) == PACE.days + 6
    assert Control().state == ()
