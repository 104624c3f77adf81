"""Which events were told, how late, and what false episodes are counted over."""

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.evaluation.measures import Told, judge

MINUTE_MS = 60_000
N = 2000
TIMES = np.arange(N, dtype=np.int64) * MINUTE_MS


def labels(*events: tuple[int, int]) -> NDArray[np.uint8]:
    column = np.zeros(N, np.uint8)
    for first, last in events:
        column[first : last + 1] = 1
    return column


def told(*episodes: tuple[int, int], events: tuple[tuple[int, int], ...] = ((1000, 1019),)) -> Told:
    return judge(episodes, labels(*events), TIMES)


@pytest.mark.parametrize(
    ("episode", "delay"),
    [
        ((1007, 1012), 7),
        ((1000, 1500), 0),
        ((995, 997), 0),  # before its event, but within 5 rows
        ((990, 995), 0),
        ((400, 1400), 0),  # open all along
        ((1024, 1030), 24),  # after its event
    ],
)
def test_an_episode_tells_an_event_within_five_rows(episode: tuple[int, int], delay: int) -> None:
    result = told(episode)
    assert result.recall == 1.0
    assert result.delay_rows.tolist() == [delay]
    assert result.delay_s.tolist() == [delay * 60.0]
    assert result.about.tolist() == [[0, 1]]
    assert result.false_episodes == 0


@pytest.mark.parametrize("episode", [(980, 994), (1025, 1030)])
def test_six_rows_away_it_is_about_nothing(episode: tuple[int, int]) -> None:
    result = told(episode)
    assert result.recall == 0.0
    assert result.told_row.tolist() == [-1]
    assert np.isnan(result.delay_rows).all()
    assert np.isnan(result.delay_s).all()
    assert result.false.tolist() == [True]


def test_the_first_of_several_episodes_tells_the_event() -> None:
    result = told((1015, 1016), (1004, 1006), (1010, 1012))
    assert result.delay_rows.tolist() == [4]
    assert result.hits == 1


def test_one_episode_can_be_about_several_events() -> None:
    events = ((500, 510), (520, 529), (600, 609), (900, 909))
    result = told((505, 602), (1500, 1510), events=events)
    assert result.about[0].tolist() == [0, 3]
    assert result.told_row.tolist() == [505, 520, 600, -1]
    assert result.delay_rows[:3].tolist() == [5, 0, 0]
    assert result.recall == 0.75
    assert result.false.tolist() == [False, True]


def test_false_episodes_of_the_first_rows_are_not_counted() -> None:
    assert told((249, 300), (250, 260)).false.tolist() == [False, True]
    # A stream whose train part went before has no such rows.
    assert judge([(3, 4)], labels((1000, 1019)), TIMES, settling=0).false.tolist() == [True]


def test_quiet_days_are_the_time_in_which_a_false_episode_could_open() -> None:
    # 2000 rows less the first 250, less 20 of the event and 5 to each side.
    assert told().quiet_days == pytest.approx((N - 250 - 30) / 1440)
    assert judge([], labels((0, 9), (1990, 1999)), TIMES, settling=0).quiet_days == pytest.approx((N - 15 - 15) / 1440)


def test_a_gap_counts_as_ten_steps_and_a_step_back_as_none() -> None:
    times = TIMES.copy()
    times[1500:] += 30 * 86_400_000
    times[1700:] -= 3_600_000
    result = judge([], labels(), times)
    # One step of a month became ten minutes, one step of a minute went backwards.
    assert result.quiet_days == pytest.approx((N - 250 - 2 + 10) / 1440)
    assert result.recall is None


def test_delay_is_in_event_time() -> None:
    times = TIMES.copy()
    times[1003:] += 5 * MINUTE_MS
    assert judge([(1004, 1010)], labels((1000, 1019)), times).delay_s.tolist() == [9 * 60.0]


@pytest.mark.parametrize("n", [0, 1])
def test_short_streams_have_no_time(n: int) -> None:
    result = judge([], np.zeros(n), np.zeros(n, np.int64))
    assert result.quiet_days == 0.0
    assert result.recall is None


@pytest.mark.parametrize("episode", [(5, 4), (-1, 4), (5, N)])
def test_episodes_that_cannot_be_are_refused(episode: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="episodes"):
        told(episode)


def test_one_time_a_row_is_demanded() -> None:
    with pytest.raises(ValueError, match="times"):
        judge([], labels(), TIMES[1:])
