"""Episodes: when they open, what is told about them and when they end."""

from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.alerts.episodes import Episodes, Policy
from anomalyd.alerts.machine import ABOVE, BELOW, CRITICAL, EPISODE, FIRING, OPEN_END, RESOLVED, UPDATED, WARNING
from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP
from anomalyd.detector.recipe import EPISODE_BYTES
from anomalyd.errors import ConfigError
from tests.alerts.columns import Reference, Sample, columns, episodes, play, told

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000


def steady(scores: list[float], step_ms: int = SECOND) -> list[Sample]:
    """One series, one score after the other."""
    return [Sample(row=0, time_ms=step_ms * i, score=score) for i, score in enumerate(scores)]


# --- one series, rule by rule


def test_the_life_of_an_alert() -> None:
    """It fires at the first score of 1, ends with the first sample of the quiet run, and says so when the run is long enough."""
    _, found = play(steady([0.2, 1.0, 1.0, 0.9, 0.9, 0.9, 0.2]), Policy(resolve_after_samples=3))

    assert told(found) == [(1, "firing"), (5, "resolved")]
    assert found[0] == found[0] | {"starts_at_ms": SECOND, "ends_at_ms": OPEN_END, "event_time_ms": SECOND, "score": 1.0, "lapsed": False}
    assert found[1] == found[1] | {
        "starts_at_ms": SECOND,
        "ends_at_ms": 3 * SECOND,
        "event_time_ms": 5 * SECOND,
        "score": 0.9,
        "peak_score": 1.0,
    }


def test_a_strange_sample_starts_the_quiet_run_anew() -> None:
    _, found = play(steady([1, 0, 0, 1, 0, 0, 0]), Policy(resolve_after_samples=3))

    assert told(found) == [(0, "firing"), (6, "resolved")]
    assert found[1]["ends_at_ms"] == 4 * SECOND


def test_minimum_duration_is_event_time_from_the_opening_sample() -> None:
    """The alert fires late, and says that it started with the first strange sample."""
    _, found = play(steady([0, 1, 5, 1, 1]), Policy(min_duration_ms=2 * SECOND))

    assert told(found) == [(3, "firing")]
    assert found[0] == found[0] | {"starts_at_ms": SECOND, "peak_score": 5.0, "score": 1.0, "severity": CRITICAL}


def test_one_normal_sample_ends_a_pending_episode_silently() -> None:
    machine, found = play(steady([1, 1, 0, 1, 1, 0]), Policy(min_duration_ms=2 * SECOND))

    assert found == []
    assert machine.open_count == 0


def test_opens_only_where_the_detector_is_armed() -> None:
    samples = steady([5, 5, 5])

    _, found = play([replace(samples[0], flags=0), replace(samples[1], flags=COUNTER), samples[2]])

    assert told(found) == [(2, "firing")]


def test_an_open_episode_needs_no_armed_samples() -> None:
    """The refractory envelope keeps new alerts away; it does not make an open one look quiet."""
    opening, *rest = steady([5, 5, 5, 5])

    _, found = play([opening, *(replace(s, flags=0) for s in rest)], Policy(resolve_after_samples=2))

    assert told(found) == [(0, "firing")]


@pytest.mark.parametrize("flag", [WARMUP, LATE, REPEATED])
def test_warmup_late_and_repeated_samples_change_nothing(flag: int) -> None:
    policy = Policy(resolve_after_samples=2)
    plain = steady([5, 0, 0])
    noise = [Sample(row=0, time_ms=t, score=score, flags=ARMED | flag) for t, score in ((0, 9.0), (SECOND, 0.0), (30 * DAY, 9.0))]

    assert play(noise, policy)[1] == []
    _, found = play([plain[0], *noise, plain[1], *noise, plain[2]], policy)

    assert told(found) == [(0, "firing"), (8, "resolved")]
    assert found[1]["peak_score"] == 5


def test_a_second_episode_cannot_have_the_name_of_the_first() -> None:
    """An episode opens later than the previous one of its series, so stream, series and start name it."""
    policy = Policy(resolve_after_samples=1)
    same_time = [replace(s, time_ms=0) for s in steady([1, 0, 1])]

    assert told(play(same_time, policy)[1]) == [(0, "firing"), (1, "resolved")]
    assert told(play([*same_time, Sample(0, 1, 1.0)], policy)[1]) == [(0, "firing"), (1, "resolved"), (3, "firing")]


def test_event_time_before_1970_is_a_time_like_any_other() -> None:
    _, found = play([replace(s, time_ms=s.time_ms - DAY) for s in steady([1, 0])], Policy(resolve_after_samples=1))

    assert [t["starts_at_ms"] for t in found] == [-DAY, -DAY]
    assert found[1]["ends_at_ms"] == -DAY + SECOND


def test_severity_rises_with_the_peak_and_never_falls() -> None:
    _, found = play(steady([1, 4, 1, 1, 0], step_ms=6 * MINUTE), Policy(critical_score=3, resolve_after_samples=1))

    assert [(t["status"], t["severity"], t["peak_score"]) for t in found] == [
        (FIRING, WARNING, 1),
        (UPDATED, CRITICAL, 4),
        (RESOLVED, CRITICAL, 4),
    ]


def test_an_escalation_right_after_firing_is_told_at_once_but_a_mere_peak_waits() -> None:
    assert told(play(steady([1, 2, 3]), Policy(critical_score=3))[1]) == [(0, "firing"), (2, "updated")]


def test_updates_are_five_minutes_of_event_time_apart_and_what_waited_is_told() -> None:
    _, found = play(steady([1, 3, 4, 5, 0, 0, 0, 0, 0], step_ms=MINUTE), Policy(critical_score=3))

    assert told(found) == [(0, "firing"), (1, "updated"), (6, "updated")]
    assert found[2] == found[2] | {"peak_score": 5, "score": 0}


def test_an_open_episode_is_told_of_once_a_day() -> None:
    _, found = play(steady([1] * 60, step_ms=HOUR))

    assert told(found) == [(0, "firing"), (24, "updated"), (48, "updated")]


def test_a_long_gap_closes_an_episode_when_it_was_last_seen() -> None:
    """What happened in the gap is not known; the returning sample may open an episode of its own."""
    policy = Policy(max_gap_ms=DAY)
    before = steady([2, 2])

    quiet_return = play([*before, Sample(0, 3 * DAY, 0.1)], policy)[1]
    strange_return = play([*before, Sample(0, 3 * DAY, 4.0)], policy)[1]
    quiet_before = play([*before, Sample(0, 2 * SECOND, 0.0), Sample(0, 3 * SECOND, 0.0), Sample(0, 3 * DAY, 0.1)], policy)[1]

    assert told(quiet_return) == [(0, "firing"), (2, "resolved")]
    assert quiet_return[1] == quiet_return[1] | {"ends_at_ms": SECOND, "lapsed": True}
    assert told(strange_return) == [(0, "firing"), (2, "resolved"), (2, "firing")]
    assert [t["starts_at_ms"] for t in strange_return] == [0, 0, 3 * DAY]
    assert quiet_before[1]["ends_at_ms"] == 2 * SECOND


def test_a_gap_as_long_as_allowed_closes_nothing() -> None:
    assert told(play([Sample(0, 0, 2.0), Sample(0, DAY, 2.0)], Policy(max_gap_ms=DAY))[1]) == [(0, "firing"), (1, "updated")]


@pytest.mark.parametrize(("direction", "expected"), [("both", [0, 1]), ("above", [0]), ("below", [1])])
def test_direction_chooses_which_side_counts(direction: str, expected: list[int]) -> None:
    samples = [Sample(row=0, time_ms=0, score=2, side=ABOVE), Sample(row=1, time_ms=0, score=2, side=BELOW)]

    _, found = play(samples, Policy(direction=direction))  # type: ignore[arg-type]  # parametrised literals are plain strings to mypy

    assert [t["row"] for t in found] == expected
    assert [t["direction"] for t in found] == [samples[row].side for row in expected]


def test_the_unwanted_side_neither_raises_the_peak_nor_keeps_the_episode_open() -> None:
    rise, *falls = steady([2, 9, 9])

    _, found = play([rise, *(replace(s, side=BELOW) for s in falls)], Policy(direction="above", resolve_after_samples=2))

    assert told(found) == [(0, "firing"), (2, "resolved")]
    assert found[1] == found[1] | {"direction": ABOVE, "peak_score": 2, "ends_at_ms": SECOND}


def test_direction_follows_the_feature_with_the_largest_share() -> None:
    samples = [Sample(row, 0, 2.0, side=side, features=3, top=top) for row, (side, top) in enumerate([(ABOVE, 2), (BELOW, 0), (BELOW, 1)])]

    _, found = play(samples)

    assert [t["direction"] for t in found] == [ABOVE, BELOW, BELOW]
    assert [int(np.argmax(t["share"])) for t in found] == [2, 0, 1]


def test_what_lies_too_close_to_the_expected_value_neither_opens_nor_keeps_open() -> None:
    """In the units of the series."""
    samples = [replace(s, away=away) for s, away in zip(steady([2.0] * 6), (2.9, 3.0, 2.9, 9.0, 2.9, 2.9), strict=True)]

    _, found = play(samples, Policy(min_deviation=3.0, resolve_after_samples=2))

    assert told(found) == [(1, "firing"), (5, "resolved")]
    assert found[1]["ends_at_ms"] == 4 * SECOND


@pytest.mark.parametrize(("ratio", "expected"), [(0.25, [0]), (0.5, [1]), (0.6, [])])
def test_the_least_deviation_may_be_a_part_of_what_was_expected(ratio: float, expected: list[int]) -> None:
    """Of the feature with the largest share: here the last of nine, of which 8 was expected."""
    samples = [replace(s, features=9, top=8, away=away) for s, away in zip(steady([2.0, 2.0]), (3.0, 4.0), strict=True)]

    _, found = play(samples, Policy(min_deviation_ratio=ratio))

    assert [t["sample"] for t in found] == expected


def test_both_least_deviations_must_be_reached() -> None:
    samples = [replace(s, features=9, top=8, away=away) for s, away in zip(steady([2.0, 2.0, 2.0]), (3.0, 4.0, 5.0), strict=True)]

    assert told(play(samples, Policy(min_deviation=5.0, min_deviation_ratio=0.5))[1]) == [(2, "firing")]


def test_a_series_that_flaps_is_told_of_once_in_the_time_asked_for() -> None:
    """Strange every other minute: after the first alert nothing for ten minutes after its end, and then the episode of that moment."""
    scores = [2.0 if i % 2 == 0 else 0.0 for i in range(26)]
    policy = Policy(resolve_after_samples=1, reopen_after_ms=10 * MINUTE)

    machine, found = play(steady(scores, step_ms=MINUTE), policy)

    assert told(found) == [(0, "firing"), (1, "resolved"), (12, "firing"), (13, "resolved"), (24, "firing"), (25, "resolved")]
    assert machine.flapping == 10


def test_an_incident_that_outlasts_the_time_fires_then_and_says_when_it_began() -> None:
    policy = Policy(resolve_after_samples=2, reopen_after_ms=10 * MINUTE)

    machine, found = play(steady([2.0, 0.0, 0.0, *[4.0] * 12], step_ms=MINUTE), policy)

    assert told(found) == [(0, "firing"), (2, "resolved"), (11, "firing")]
    assert found[2] == found[2] | {"starts_at_ms": 3 * MINUTE, "peak_score": 4.0, "severity": CRITICAL}
    assert (machine.flapping, machine.open_count) == (1, 1)


def test_an_episode_of_which_nobody_was_told_holds_no_other_back() -> None:
    """It was too short to fire, so it is not the one before."""
    policy = Policy(min_duration_ms=2 * MINUTE, resolve_after_samples=1, reopen_after_ms=10 * MINUTE)

    machine, found = play(steady([2, 2, 0, 2, 2, 2], step_ms=MINUTE), policy)

    assert told(found) == [(5, "firing")]
    assert machine.flapping == 0


def test_a_muted_incident_that_ends_in_time_is_never_told_of() -> None:
    samples = [replace(s, muted=i < 4) for i, s in enumerate(steady([2, 2, 0, 0, 0, 0]))]

    machine, found = play(samples, Policy(resolve_after_samples=2))

    assert found == []
    assert (machine.muted, machine.open_count) == (1, 0)


def test_what_dies_down_when_the_mute_ends_is_no_news() -> None:
    samples = [replace(s, muted=i < 2) for i, s in enumerate(steady([2, 2, 0, 0, 0]))]

    assert play(samples, Policy(resolve_after_samples=3))[1] == []


def test_a_muted_incident_that_goes_on_fires_when_the_mute_ends() -> None:
    """Whether the detector would be armed then does not matter: the opening was. A quiet sample in between does not end it either."""
    opening, *rest = steady([5, 2, 0, 2, 2])
    samples = [replace(opening, muted=True), *(replace(s, flags=0, muted=i < 2) for i, s in enumerate(rest))]

    machine, found = play(samples, Policy(resolve_after_samples=2))

    assert told(found) == [(3, "firing")]
    assert found[0] == found[0] | {"starts_at_ms": 0, "event_time_ms": 3 * SECOND, "peak_score": 5}
    assert machine.muted == 1


def test_a_mute_leaves_what_is_open_alone() -> None:
    samples = [replace(s, muted=i > 0) for i, s in enumerate(steady([2, 4, 0, 0]))]

    assert told(play(samples, Policy(resolve_after_samples=2))[1]) == [(0, "firing"), (1, "updated"), (3, "resolved")]


def test_a_withheld_episode_ends_silently_over_a_long_gap() -> None:
    samples = [replace(Sample(0, 0, 2.0), muted=True), Sample(0, 2 * DAY, 0.0), Sample(0, 2 * DAY + 1, 2.0)]

    assert told(play(samples, Policy(max_gap_ms=DAY))[1]) == [(2, "firing")]


def test_counters_are_marked() -> None:
    _, found = play([Sample(0, 0, 2.0, flags=ARMED | COUNTER), Sample(1, 0, 2.0)])

    assert [t["counter"] for t in found] == [True, False]


# --- many series, batches, memory


def test_a_storm_of_all_series_is_told_series_by_series() -> None:
    rows = 5000
    machine = episodes(Policy(resolve_after_samples=1), capacity=rows)

    fired = machine.advance(*columns([Sample(row, 0, 4.0) for row in range(rows)]))
    at_storm = machine.open_count
    ended = machine.advance(*columns([Sample(row, SECOND, 0.0) for row in range(rows)]))

    assert fired.row.tolist() == ended.row.tolist() == list(range(rows))
    assert set(fired.status.tolist()) == {FIRING}
    assert set(ended.status.tolist()) == {RESOLVED}
    assert (at_storm, machine.open_count) == (rows, 0)


def test_an_empty_batch_is_fine() -> None:
    assert len(episodes().advance(*columns([]))) == 0


def test_columns_outlive_the_next_batch() -> None:
    """What a batch returned does not change when the scratch memory is used again."""
    machine = episodes()
    first = machine.advance(*columns([Sample(0, 5, 2.0)]))
    machine.advance(*columns([Sample(1, 7, 9.0)]))

    assert (first.row.tolist(), first.starts_at_ms.tolist(), first.peak_score.tolist()) == ([0], [5], [2.0])


def test_cleared_rows_are_forgotten_without_a_message() -> None:
    machine = episodes(Policy(resolve_after_samples=1))
    machine.advance(*columns([Sample(0, 10, 2.0), Sample(1, 10, 2.0), Sample(2, 10, 0.5)]))

    machine.clear(np.array([1, 2], np.int32))

    assert machine.open_count == 1
    # The row belongs to another series now: it may open at any time, even at one that the old series used.
    later = machine.advance(*columns([Sample(1, 10, 2.0), Sample(0, 11, 0.0)]))
    assert list(zip(later.row.tolist(), later.status.tolist(), strict=True)) == [(1, FIRING), (0, RESOLVED)]


def test_a_row_cleared_before_by_its_owner_is_counted_right() -> None:
    """Whoever owns the state rows may have zeroed them already."""
    storage = np.zeros((2, EPISODE.itemsize), np.uint8)
    machine = Episodes(Policy(), storage)
    machine.advance(*columns([Sample(0, 0, 2.0), Sample(1, 0, 2.0)]))

    storage[0] = 0
    machine.clear([0])

    assert machine.open_count == 1


def test_restored_rows_go_on_where_they_were() -> None:
    """The 96 bytes are all there is: episodes that were moved give the transitions of episodes that were not."""
    samples = [Sample(row, SECOND * i, score) for i, score in enumerate([2, 4, 0, 0, 3, 0, 0, 0]) for row in range(4)]
    policy = Policy(resolve_after_samples=3, min_duration_ms=SECOND)
    _, expected = play(samples, policy)
    storage = np.zeros((4, EPISODE.itemsize), np.uint8)
    before = Episodes(policy, storage).advance(*columns(samples[:12]))
    other = Episodes(policy, storage.copy())
    other.restored(range(4))

    after = other.advance(*columns(samples[12:]))

    assert [*before.status.tolist(), *after.status.tolist()] == [t["status"] for t in expected]
    assert [*before.starts_at_ms.tolist(), *after.starts_at_ms.tolist()] == [t["starts_at_ms"] for t in expected]
    assert other.open_count == 0


def test_restoring_twice_counts_once() -> None:
    storage = np.zeros((1, EPISODE.itemsize), np.uint8)
    Episodes(Policy(), storage).advance(*columns([Sample(0, 0, 2.0)]))
    machine = Episodes(Policy(), storage)

    machine.restored([0])
    machine.restored([0, 0])

    assert machine.open_count == 1


def test_the_state_row_has_room_for_exactly_one_episode() -> None:
    """The detector reserves the bytes, the alerts own them; neither knows the other."""
    assert EPISODE.itemsize == EPISODE_BYTES


def test_an_inactive_row_holds_when_the_last_alert_began_and_ended_and_nothing_else() -> None:
    """State bytes depend on what is still true, so equal histories make equal snapshots."""
    storage = np.zeros((1, EPISODE.itemsize), np.uint8)
    Episodes(Policy(resolve_after_samples=1), storage).advance(*columns(steady([4, 1, 0], step_ms=HOUR)))

    left = np.zeros((), EPISODE)
    left["opened"], left["starts_ms"], left["ended"], left["ended_ms"] = 1, 0, 1, 2 * HOUR
    assert storage.tobytes() == left.tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_deviation", -0.1),
        ("min_deviation_ratio", float("inf")),
        ("min_duration_ms", -1),
        ("reopen_after_ms", -1),
        ("resolve_after_samples", 0),
        ("critical_score", 0.5),
        ("critical_score", float("nan")),
        ("update_interval_ms", -1),
        ("heartbeat_ms", 0),
        ("max_gap_ms", 0),
        ("direction", "sideways"),
    ],
)
def test_a_wrong_policy_is_refused_by_the_name_of_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        Policy(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


# --- properties

SCORES = st.one_of(st.sampled_from([0.0, 0.5, 0.999, 1.0, 1.5, 2.0, 3.0, 6.0]), st.floats(0, 8))
STEPS = st.sampled_from([0, 1, SECOND, MINUTE, 5 * MINUTE, 6 * HOUR, DAY, 8 * DAY])
FLAGS = st.sampled_from([ARMED] * 6 + [0, 0, WARMUP, LATE, REPEATED, ARMED | COUNTER, ARMED | LATE])


@st.composite
def histories(draw: st.DrawFn) -> list[Sample]:
    """Samples of a few series in one partition; each series' event time never goes back, except in samples marked as late."""
    features = draw(st.integers(1, 3))
    clocks = [draw(st.integers(-DAY, DAY)) for _ in range(3)]
    samples = []
    sides, tops, muted = st.sampled_from([ABOVE, BELOW]), st.integers(0, features - 1), st.sampled_from([False, False, True])
    kinds = st.tuples(st.integers(0, 2), STEPS, SCORES, FLAGS, sides, tops, st.sampled_from([10.0, 10.0, 1.0]), muted)
    for row, step, score, flags, side, top, away, mute in draw(st.lists(kinds, max_size=60)):
        late = bool(flags & LATE)
        clocks[row] += 0 if late else step
        samples.append(Sample(row, clocks[row] - (step if late else 0), score, flags, side, features, top, away, mute))
    return samples


POLICIES = st.builds(
    Policy,
    min_deviation=st.sampled_from([0.0, 0.0, 2.0]),
    min_deviation_ratio=st.sampled_from([0.0, 0.0, 1.0, 6.0]),
    min_duration_ms=st.sampled_from([0, 0, SECOND, 10 * MINUTE]),
    reopen_after_ms=st.sampled_from([0, 0, MINUTE, DAY]),
    resolve_after_samples=st.integers(1, 4),
    critical_score=st.sampled_from([1.0, 1.5, 3.0]),
    direction=st.sampled_from(["both", "both", "above", "below"]),
    max_gap_ms=st.sampled_from([DAY, 7 * DAY]),
)


@given(histories(), POLICIES)
def test_the_compiled_machine_does_what_the_plain_one_does(samples: list[Sample], policy: Policy) -> None:
    machine, found = play(samples, policy)

    reference = {row: Reference(policy) for row in range(3)}
    expected = [{"sample": i} | t for i, s in enumerate(samples) for t in reference[s.row].feed(s)]
    assert [{k: t[k] for k in ("sample", *(expected[0] if expected else ()))} for t in found] == expected if expected else found == []
    assert machine.open_count == sum(bool(r.told) for r in reference.values())
    assert machine.muted + machine.flapping == sum(r.withholdings for r in reference.values())


@given(histories(), POLICIES, st.data())
def test_how_a_partition_is_cut_into_batches_does_not_matter(samples: list[Sample], policy: Policy, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(samples)), max_size=8))

    assert play(samples, policy, cuts)[1] == play(samples, policy)[1]


@given(histories(), POLICIES)
def test_other_series_do_not_matter(samples: list[Sample], policy: Policy) -> None:
    _, together = play(samples, policy)

    for row in range(3):
        places = [i for i, s in enumerate(samples) if s.row == row]
        _, alone = play([samples[i] for i in places], policy)
        assert [t | {"sample": places[t["sample"]]} for t in alone] == [t for t in together if t["row"] == row]


@given(histories(), POLICIES)
def test_every_alert_is_a_well_formed_story(samples: list[Sample], policy: Policy) -> None:
    """One firing, then updates that are far enough apart, then at most one resolved; names are never used twice."""
    machine, found = play(samples, policy)

    still_open = 0
    for row in range(3):
        stories = [list(g) for _, g in groupby((t for t in found if t["row"] == row), key=lambda t: t["starts_at_ms"])]
        starts = [story[0]["starts_at_ms"] for story in stories]
        assert starts == sorted(set(starts))
        for story in stories:
            firing, *rest = [t["status"] for t in story]
            assert firing == FIRING
            assert set(rest[:-1]) <= {UPDATED}
            updates = [t["event_time_ms"] for t in story if t["status"] == UPDATED]
            assert all(b - a >= policy.update_interval_ms for a, b in pairwise(updates))
            assert [t["severity"] for t in story] == sorted(t["severity"] for t in story)
            assert [t["peak_score"] for t in story] == sorted(t["peak_score"] for t in story)
            assert all(t["starts_at_ms"] <= t["event_time_ms"] for t in story)
            if story[-1]["status"] == RESOLVED:
                assert story[0]["starts_at_ms"] <= story[-1]["ends_at_ms"] <= story[-1]["event_time_ms"]
            else:
                still_open += 1
        assert all(story[-1]["status"] == RESOLVED for story in stories[:-1])
    assert machine.open_count == still_open
