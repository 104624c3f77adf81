"""Which policy is in force at which offset, and how policies are written down."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.alerts.episodes import Policy
from anomalyd.alerts.mutes import Mute
from anomalyd.alerts.timeline import NEVER, Timeline, read, written
from anomalyd.errors import StateError

FIRST, SECOND, THIRD = Policy(), Policy(min_duration_ms=5), Policy(mutes=(Mute(("cpu.*",), start_ms=1, end_ms=9),))


def test_a_replay_goes_through_the_policies_that_were_in_force() -> None:
    timeline = Timeline(Policy(direction="above"))
    timeline.begin([(10, written(FIRST)), (20, written(SECOND)), (30, written(THIRD))], 15)

    assert (timeline.policy, timeline.boundary) == (FIRST, 20)
    assert not timeline.reach(19)
    assert timeline.reach(20)
    assert (timeline.policy, timeline.boundary) == (SECOND, 30)
    assert timeline.reach(35)
    assert (timeline.policy, timeline.boundary) == (THIRD, NEVER)


def test_several_changes_may_be_passed_at_once_and_the_first_entry_reaches_back() -> None:
    timeline = Timeline(Policy(direction="above"))
    timeline.begin([(10, written(FIRST)), (20, written(SECOND)), (20, written(THIRD))], 5)

    assert (timeline.policy, timeline.boundary) == (FIRST, 20)
    timeline.reach(20)
    assert timeline.policy == THIRD


def test_only_what_is_new_has_to_be_written_down() -> None:
    timeline = Timeline(FIRST)

    assert timeline.settle(FIRST, 7) == [(7, written(FIRST))]
    assert timeline.settle(Policy(), 9) == []
    assert timeline.settle(SECOND, 11) == [(11, written(SECOND))]
    assert (timeline.policy, timeline.boundary) == (SECOND, NEVER)


def test_what_was_written_down_before_need_not_be_again() -> None:
    timeline = Timeline(SECOND)
    timeline.begin([(10, written(FIRST)), (20, written(SECOND))], 10)

    assert timeline.settle(SECOND, 25) == []
    assert timeline.policy == SECOND


POLICIES: st.SearchStrategy[Any] = st.builds(
    Policy,
    min_deviation=st.floats(0, 1e18),
    min_duration_ms=st.integers(0, 1 << 40),
    critical_score=st.floats(1, 1e6),
    direction=st.sampled_from(["both", "above", "below"]),
    mutes=st.lists(
        st.one_of(
            st.builds(
                Mute, st.just(("a*", '{b="\u00e4"}')), st.just((5, 6)), st.integers(0, 700), st.integers(701, 1440), st.just("Asia/Tokyo")
            ),
            st.builds(Mute, start_ms=st.just(-5), end_ms=st.integers(0, 1 << 50)),
        ),
        max_size=3,
    ).map(tuple),
)


@given(POLICIES)
def test_a_policy_comes_back_as_it_was(policy: Policy) -> None:
    assert read(written(policy)) == policy


def test_fields_of_newer_releases_are_passed_over_and_missing_ones_have_their_defaults() -> None:
    assert read('{"min_duration_ms": 5, "of_tomorrow": [1]}') == SECOND


@pytest.mark.parametrize("text", ["", "[]", '{"min_deviation": -1}', '{"direction": "up"}', '{"mutes": [{"timezone": "Mars/Olympus"}]}'])
def test_what_cannot_be_understood_stops_the_partition(text: str) -> None:
    with pytest.raises(StateError, match="alert policy"):
        Timeline(FIRST).begin([(0, text)], 0)
