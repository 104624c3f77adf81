"""The written rule for each kind of odd input, one test or more a rule."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.batch import ARMED, COUNTER, LATE, REPEATED, WARMUP, Verdicts
from anomalyd.detector import Detector, Pages
from anomalyd.detector.recipe import COUNTER_AGE, FLAT_LONG, FLAT_RUN, LATE_RUN, WARMUP_SAMPLES
from anomalyd.training.calibrate import openings
from tests.detector.population import MINUTE_MS, START_MS, Floats, assert_same_bits, batch_of, every, feed, joined

SECOND_MS = 1000


def noise(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(count)


def warmed(detector: Detector, count: int = 400) -> Pages:
    """One row that has seen `count` samples of noise around 50, sd 1, one a minute."""
    pages = detector.new_pages(1)
    feed(detector, every(count), 50.0 + noise(count), pages)
    return pages


def one(detector: Detector, pages: Pages, time_ms: int, value: float) -> Verdicts:
    return detector.step(pages, batch_of(0, time_ms, value))


def row_without(pages: Pages, *names: str) -> bytes:
    """The row's bytes with some fields blanked."""
    row = pages.buffer[0].copy()
    for name in names:
        field = pages.layout[name]
        row[field.offset : field.offset + field.count * field.dtype.itemsize] = 0
    return bytes(row)


def alarms(verdicts: Verdicts) -> NDArray[np.int64]:
    """Where an episode may open."""
    return np.flatnonzero((verdicts.score >= 1.0) & (verdicts.flags & ARMED > 0))


# --- warm-up ------------------------------------------------------------------------------------------------------------


def test_young_series_scores_zero_and_says_so(detector: Detector) -> None:
    value = noise(150)
    value[50] = 1000.0
    verdicts = feed(detector, every(150), value)

    young = np.arange(150) < WARMUP_SAMPLES
    np.testing.assert_array_equal(verdicts.flags & WARMUP > 0, young)
    assert (verdicts.score[young] == 0.0).all()
    assert not (verdicts.flags[young] & ARMED).any()


# --- late, out of order, clock set back -----------------------------------------------------------------------------------


def test_late_sample_is_scored_and_nothing_is_learned(detector: Detector) -> None:
    pages = warmed(detector)
    before = row_without(pages, "late_run")

    usual = one(detector, pages, START_MS + 100 * MINUTE_MS, 50.3)
    strange = one(detector, pages, START_MS + 101 * MINUTE_MS, 90.0)

    assert usual.flags[0] & LATE
    assert strange.flags[0] & LATE
    assert usual.score[0] < 0.5
    assert strange.score[0] > 1.0
    assert row_without(pages, "late_run") == before
    assert pages.field("late_run")[0, 0] == 2


def test_late_samples_change_no_later_score(detector: Detector) -> None:
    with_late, without = warmed(detector), warmed(detector)
    for _ in range(LATE_RUN - 1):
        one(detector, with_late, START_MS, 1e6)

    assert_same_bits(one(detector, with_late, START_MS + 400 * MINUTE_MS, 50.5), one(detector, without, START_MS + 400 * MINUTE_MS, 50.5))
    assert with_late.buffer.tobytes() == without.buffer.tobytes()


def test_swapped_neighbours_cost_one_sample(detector: Detector) -> None:
    """Of two samples in the wrong order the second is late; all others are as if it had not been."""
    times, value = every(300), 50.0 + noise(300)
    times[200], times[201], value[200], value[201] = times[201], times[200], value[201], value[200]
    verdicts = feed(detector, times, value)

    np.testing.assert_array_equal(np.flatnonzero(verdicts.flags & LATE), [201])
    kept = np.delete(np.arange(300), 201)
    without = feed(detector, times[kept], value[kept])
    np.testing.assert_array_equal(verdicts.score[kept], without.score)


def test_clock_set_back_is_accepted_after_a_run_of_late_samples(detector: Detector) -> None:
    pages = warmed(detector)
    back = START_MS - 1000 * MINUTE_MS

    verdicts = joined(one(detector, pages, back + k * MINUTE_MS, 50.0 + 0.1 * k) for k in range(LATE_RUN + 5))

    np.testing.assert_array_equal(np.flatnonzero(verdicts.flags & LATE), np.arange(LATE_RUN - 1))
    assert len(alarms(verdicts)) == 0
    assert pages.field("time")[0, 0] == back + (LATE_RUN + 4) * MINUTE_MS
    assert pages.field("age")[0, 0] == 400 + 6
    assert pages.field("late_run")[0, 0] == 0


def test_run_of_late_samples_must_be_unbroken(detector: Detector) -> None:
    pages = warmed(detector)
    now = START_MS + 400 * MINUTE_MS

    for k in range(40):
        late = one(detector, pages, START_MS, 50.0)
        assert late.flags[0] & LATE
        if k % (LATE_RUN - 2) == 0:
            assert not one(detector, pages, now + k * MINUTE_MS, 50.1).flags[0] & LATE


# --- repeated -----------------------------------------------------------------------------------------------------------


def test_repeated_sample_teaches_nothing(detector: Detector) -> None:
    """A producer that sends a sample again, or a record that is consumed again."""
    pages = warmed(detector)
    now = START_MS + 400 * MINUTE_MS
    one(detector, pages, now, 51.0)
    before = pages.buffer.tobytes()

    for _ in range(20):
        assert one(detector, pages, now, 51.0).flags[0] & REPEATED
    assert pages.buffer.tobytes() == before


def test_another_value_at_the_same_time_is_a_sample(detector: Detector) -> None:
    pages = warmed(detector)
    now = START_MS + 400 * MINUTE_MS
    one(detector, pages, now, 51.0)

    assert not one(detector, pages, now, 51.5).flags[0] & REPEATED
    assert pages.field("age")[0, 0] == 402


def test_same_value_later_is_a_sample(detector: Detector) -> None:
    pages = warmed(detector)
    one(detector, pages, START_MS + 400 * MINUTE_MS, 51.0)

    assert not one(detector, pages, START_MS + 401 * MINUTE_MS, 51.0).flags[0] & REPEATED
    assert pages.field("age")[0, 0] == 402


# --- gaps, silence --------------------------------------------------------------------------------------------------------


def walk(count: int) -> Floats:
    """Slow waves of ± 10 that move at most 0.1 a sample."""
    return np.asarray(10.0 * np.sin(np.arange(count) / 100.0) + 0.01 * noise(count))


@pytest.mark.parametrize("pause", [20, 1000, 10**6])
def test_difference_across_a_gap_says_nothing(detector: Detector, pause: int) -> None:
    """After silence a series may be anywhere in its usual range; without the silence the same jump is strange."""
    value = walk(2000)
    pages, unbroken = detector.new_pages(1), detector.new_pages(1)
    feed(detector, every(2000), value, pages)
    feed(detector, every(2000), value, unbroken)
    jump = -float(value[-1])

    after_gap = one(detector, pages, START_MS + (2000 + pause) * MINUTE_MS, jump)
    at_once = one(detector, unbroken, START_MS + 2000 * MINUTE_MS, jump)

    assert after_gap.score[0] < 1.0
    assert at_once.score[0] > 1.0
    assert after_gap.score[0] < 0.7 * at_once.score[0]


def test_series_goes_on_after_a_gap(detector: Detector) -> None:
    """Nothing is forgotten and nothing alarms when a series comes back as it was."""
    times, value = every(1200), 50.0 + noise(1200)
    times[800:] += 3 * 86_400_000

    verdicts = feed(detector, times, value)

    assert not (verdicts.flags[101:] & WARMUP).any()
    assert len(alarms(verdicts)) <= 1


# --- counters ---------------------------------------------------------------------------------------------------------------


def requests(count: int, rate: float = 200.0, step_s: float = 10.0) -> Floats:
    """A counter of about `rate` a second, read every `step_s`."""
    return np.cumsum(np.random.default_rng(3).poisson(rate * step_s, count)).astype(np.float64)


def test_counter_is_judged_by_its_rate_per_second(detector: Detector) -> None:
    verdicts = feed(detector, every(400, 10 * SECOND_MS), requests(400))

    is_counter = verdicts.flags & COUNTER > 0
    np.testing.assert_array_equal(np.flatnonzero(~is_counter), np.arange(COUNTER_AGE))
    assert verdicts.observed[is_counter].mean() == pytest.approx(200.0, rel=0.02)
    assert verdicts.expected[-100:].mean() == pytest.approx(200.0, rel=0.02)
    assert (verdicts.low <= verdicts.expected).all()
    assert (verdicts.expected <= verdicts.high).all()
    assert len(alarms(verdicts)) == 0


def test_rate_of_a_counter_accounts_for_irregular_readings(detector: Detector) -> None:
    rng = np.random.default_rng(4)
    step_s = rng.uniform(5, 60, 400)
    times = START_MS + (np.cumsum(step_s) * SECOND_MS).astype(np.int64)
    verdicts = feed(detector, times, np.floor(1e4 * np.cumsum(step_s)))

    np.testing.assert_allclose(verdicts.observed[100:], 1e4, rtol=1e-3)


@pytest.mark.parametrize("at", [90, 300, 301, 700])
@pytest.mark.parametrize("lost", [0.0, 0.5, 1.0])
def test_reset_of_a_counter_does_not_alarm(detector: Detector, at: int, lost: float) -> None:
    """Whatever part of the step it was not counting."""
    value = requests(1000)
    value[at:] -= value[at - 1] + lost * (value[at] - value[at - 1])

    verdicts = feed(detector, every(1000, 10 * SECOND_MS), value)

    assert (verdicts.flags[COUNTER_AGE:] & COUNTER).all()
    assert (verdicts.observed[COUNTER_AGE:] >= 0).all()
    assert not ((alarms(verdicts) >= at) & (alarms(verdicts) < at + 100)).any()


def test_counter_that_stops_or_runs_alarms(detector: Detector) -> None:
    increments = np.random.default_rng(3).poisson(2000, 1000).astype(np.float64)
    increments[600:620] = 0
    increments[900:] *= 5

    verdicts = feed(detector, every(1000, 10 * SECOND_MS), np.cumsum(increments))

    assert ((alarms(verdicts) >= 600) & (alarms(verdicts) < 603)).any()
    assert ((alarms(verdicts) >= 900) & (alarms(verdicts) < 903)).any()


def test_counter_that_falls_a_little_was_a_gauge(detector: Detector) -> None:
    """Counters only fall to begin anew: this one is judged by its value from here on, after a new warm-up and without alarm."""
    value = requests(1000)
    value[500:] = value[499] + 100 * noise(500) - 1000

    verdicts = feed(detector, every(1000, 10 * SECOND_MS), value)

    assert (verdicts.flags[COUNTER_AGE:500] & COUNTER).all()
    assert not (verdicts.flags[500:] & COUNTER).any()
    np.testing.assert_array_equal(verdicts.observed[500:, 0], value[500:])
    assert (verdicts.flags[500 : 500 + WARMUP_SAMPLES] & WARMUP).all()
    assert not (verdicts.flags[500 + WARMUP_SAMPLES :] & WARMUP).any()
    assert len(alarms(verdicts)) == 0


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(noise(300), id="noise"),
        pytest.param(np.repeat(np.arange(100.0), 3), id="rises-a-third-of-the-time"),
        pytest.param(np.arange(300.0) - 150, id="rises-through-zero-after-64-samples-below"),
        pytest.param(-requests(300), id="falls"),
        pytest.param(np.full(300, 7.0), id="constant"),
    ],
)
def test_other_series_are_no_counters(detector: Detector, value: Floats) -> None:
    assert not (feed(detector, every(300), value).flags & COUNTER).any()


def test_counter_keeps_its_kind_and_open_episode_when_it_starts_anew(detector: Detector) -> None:
    pages, value = detector.new_pages(1), requests(200)
    feed(detector, every(64, SECOND_MS), value[:64], pages)
    pages.episodes[0] = 7

    feed(detector, every(200, SECOND_MS)[64:], value[64:], pages)

    assert (pages.episodes[0] == 7).all()
    assert pages.field("kind")[0, 0] == 2


def test_counter_above_the_precision_of_single_floats(detector: Detector) -> None:
    """Increments of 1 on top of 2^50 are seen."""
    value = 2.0**50 + np.cumsum(np.tile([1.0, 2.0, 1.0, 4.0], 100))

    verdicts = feed(detector, every(400, SECOND_MS), value)

    np.testing.assert_array_equal(verdicts.observed[COUNTER_AGE:, 0], np.diff(value, prepend=0)[COUNTER_AGE:])


# --- constant series, level shifts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 1.0, -273.15, 1e12, 1e-12])
def test_constant_series_never_alarms_and_its_change_does(detector: Detector, level: float) -> None:
    value = np.full(1000, level)
    value[900:] += max(1.0, abs(level))

    verdicts = feed(detector, every(1000), value)

    assert (verdicts.score[:900] < 0.5).all()
    assert verdicts.score[900] > 1.0
    assert verdicts.flags[900] & ARMED


def noisy_then_still(still: int, repeats: int = 0) -> Floats:
    """Noise, in which `repeats` equal values in a row have been seen before, and at the end a value that stands still."""
    value: Floats = 50.0 + np.random.default_rng(6).standard_normal(2000 + still)
    value[500 : 501 + repeats] = value[500]
    value[2000:] = value[1999]
    return value


def test_value_that_stands_still_alarms_once_it_is_no_chance(detector: Detector) -> None:
    """Thirty equal readings of a series that never repeated itself: a stuck sensor."""
    verdicts = detector.step(detector.new_pages(1), batch_of(0, every(2060), noisy_then_still(60)))

    assert verdicts.score[2000 + FLAT_RUN - 2] < 1.0
    assert verdicts.score[2000 + FLAT_RUN] > 1.0


def test_standing_still_as_long_as_before_is_normal(detector: Detector) -> None:
    """A series that stood still for an hour once does not alarm when it does so for two."""
    verdicts = detector.step(detector.new_pages(1), batch_of(0, every(2120), noisy_then_still(120, repeats=60)))

    assert (verdicts.score[2010:] < 1.0).all()


def test_standing_still_for_long_becomes_normal(detector: Detector) -> None:
    """A device taken out of service does not alarm for ever."""
    verdicts = detector.step(detector.new_pages(1), batch_of(0, every(2000 + FLAT_LONG + 20), noisy_then_still(FLAT_LONG + 20)))

    assert verdicts.score[2000 + FLAT_LONG - 10] > 1.0
    assert (verdicts.score[2000 + FLAT_LONG + 2 :] < 1.0).all()


def test_level_shift_alarms_at_once_and_is_then_learned(detector: Detector) -> None:
    value = 50.0 + noise(3000)
    value[1500:] += 15.0

    verdicts = feed(detector, every(3000), value)

    # Rows alarm for two hours, within one episode.
    opened = openings(verdicts.score[:, None], verdicts.flags[:, None] & ARMED > 0, 1.0)[:, 0]
    assert np.flatnonzero(opened)[0] in (1500, 1501)
    assert opened.sum() <= 2
    assert alarms(verdicts)[-1] < 1650
    assert abs(verdicts.expected[-500:].mean() - 65.0) < 1.0
    assert (verdicts.score[-500:] < 1.0).all()


# --- numbers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e15, 1e60])
def test_unit_of_the_values_does_not_matter(detector: Detector, scale: float, sign: float) -> None:
    """Bytes or gigabytes, cost or profit: the same scores, as long as the spread is no float noise."""
    value = 5.0 + noise(600)
    value[500] += 20.0

    verdicts = feed(detector, every(600), sign * scale * value)
    expected = feed(detector, every(600), sign * value)

    np.testing.assert_allclose(verdicts.score, expected.score, atol=1e-2)
    np.testing.assert_allclose(verdicts.expected, scale * expected.expected, rtol=1e-3, atol=1e-3 * scale)


def test_negative_integers_are_judged_as_they_are(detector: Detector) -> None:
    value = -np.round(1e9 + 1e6 * noise(500))
    verdicts = feed(detector, every(500), value)

    np.testing.assert_array_equal(verdicts.observed[:, 0], value)
    assert len(alarms(verdicts)) <= 1


# --- event time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first_ms", [0, 1, 1_700_000_000_000, 7_258_118_400_000], ids=["epoch", "1-ms", "2023", "year-2200"])
def test_any_event_time_gives_the_same_scores(detector: Detector, first_ms: int) -> None:
    times, value = every(300) - START_MS, 50.0 + noise(300)
    pages = detector.new_pages(1)

    verdicts = feed(detector, times + first_ms, value, pages)

    assert_same_bits(verdicts, feed(detector, times, value))
    assert pages.field("time")[0, 0] == first_ms + 299 * MINUTE_MS


def test_jump_to_the_far_future_and_back(detector: Detector) -> None:
    """One sample with a wrong clock: what follows is late, then taken as the present; nothing alarms."""
    times, value = every(600), 50.0 + noise(600)
    times[300] = 7_258_118_400_000

    verdicts = feed(detector, times, value)

    np.testing.assert_array_equal(np.flatnonzero(verdicts.flags & LATE), 301 + np.arange(LATE_RUN - 1))
    assert len(alarms(verdicts)) <= 1


# --- long lives -----------------------------------------------------------------------------------------------------------------


def test_memories_of_a_long_lived_series_do_not_overflow(detector: Detector) -> None:
    """300,000 samples in the same few bins and prototypes: int16 columns stay positive, scores stay calm."""
    pages = detector.new_pages(1)
    value = np.random.default_rng(8).choice([1.0, 2.0], 300_000)

    verdicts = feed(detector, every(300_000, SECOND_MS), value, pages)

    for name in ("histogram", "a_weight", "b_weight"):
        column = pages.field(name)[0]
        assert (column >= 0).all(), name
        assert column.max() < 2**15 - 100, name
    assert (verdicts.score[1000:] < 1.0).all()


@pytest.mark.parametrize("age", [2**24 - 50, 2**30])
def test_age_beyond_the_precision_of_single_floats(detector: Detector, age: int) -> None:
    pages = warmed(detector, 1000)
    pages.field("age")[:] = age
    pages.field("born")[:] = age

    verdicts = feed(detector, every(300) + 1000 * MINUTE_MS, 50.0 + noise(300, seed=9), pages)

    assert pages.field("age")[0, 0] == age + 300
    assert np.isfinite(verdicts.score).all()
    assert (verdicts.score < 1.0).all()


# --- the caller's arrays, determinism, rows ---------------------------------------------------------------------------------------


def test_batch_is_not_modified(detector: Detector) -> None:
    batch = batch_of(0, every(300), noise(300))
    copy = replace(batch, row=batch.row.copy(), time_ms=batch.time_ms.copy(), value=batch.value.copy(), record=batch.record.copy())

    detector.step(detector.new_pages(1), batch)

    for name in ("row", "time_ms", "value", "record"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(copy, name))


def test_two_detectors_give_the_same_bits(detector: Detector) -> None:
    value = noise(500)
    pages, others = detector.new_pages(1), detector.new_pages(1)

    assert_same_bits(feed(detector, every(500), value, pages), feed(Detector.load(device="cpu"), every(500), value, others))
    assert pages.buffer.tobytes() == others.buffer.tobytes()


def test_cleared_row_is_as_new(detector: Detector) -> None:
    """A row that is given to another series after eviction."""
    pages = detector.new_pages(4)
    for row in range(4):
        feed(detector, every(200), noise(200, seed=row), pages, row)
    pages.episodes[:] = 9
    others = pages.buffer[[0, 3]].tobytes()

    pages.clear(np.array([1, 2], np.int32))

    assert not pages.buffer[1:3].any()
    assert pages.buffer[[0, 3]].tobytes() == others
    value = 1e6 + noise(200, seed=7)
    assert_same_bits(feed(detector, every(200), value, pages, row=2), feed(detector, every(200), value))


def test_empty_batch_is_fine(detector: Detector) -> None:
    verdicts = detector.step(detector.new_pages(1), batch_of(np.empty(0, int), np.empty(0, int), np.empty((0, 1))))

    assert len(verdicts) == 0
