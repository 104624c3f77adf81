"""A shard holds its alert budget: on data that alarm too often or too seldom, among incidents, and whatever is cut where."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from anomalyd.alerts.budget import Pace
from anomalyd.alerts.episodes import Policy
from anomalyd.batch import ARMED, SampleBatch, Source, Verdicts
from anomalyd.detector import Detector, Pages
from anomalyd.detector.recipe import CONTROL_REST
from anomalyd.formats import make_decoder
from anomalyd.shard import Outcome, Shard, StreamPlan
from anomalyd.shard_budget import days_of
from anomalyd.state.ports import Restored

STEP_MS = 300_000
SERIES = 60
TICKS = 288
"""A day."""
START_MS = 1_766_016_000_000


class Told(Detector):
    """Whose evidence is what the sample says; threshold, level and rest as the real one has them, its steps five minutes."""

    def step(
        self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64] | None = None, tally: NDArray[np.int64] | None = None
    ) -> Verdicts:
        assert threshold is not None
        assert tally is not None
        log10_budget, intercept, slope, lowest, level, per_try, alarms_per_ms = threshold.tolist()
        limit = max((intercept - log10_budget - math.log10(STEP_MS)) / slope, lowest)
        evidence, flags = batch.value[:, 0], np.full(len(batch), ARMED, np.uint8)
        rest, time = pages.field("rest")[:, 0], pages.field("time")[:, 0]
        for begin in range(0, len(batch), SERIES):  # each of another series
            rows, now = batch.row[begin : begin + SERIES], evidence[begin : begin + SERIES]
            trial = rest[rows] == 0
            tally[0] += np.count_nonzero(trial & (now >= level) & (now < limit))
            tally[1] += np.count_nonzero(trial) * int(per_try - alarms_per_ms * STEP_MS)
            rest[rows] = np.where(now >= level, CONTROL_REST, np.maximum(rest[rows] - 1, 0))
            time[rows] = batch.time_ms[begin : begin + SERIES]
        tally[2] += len(batch) * STEP_MS
        zeros = np.zeros((len(batch), 1))
        return Verdicts(evidence / limit, evidence, batch.value, zeros, zeros, zeros, np.ones((len(batch), 1), np.float32), flags)


@pytest.fixture(scope="module")
def told() -> Told:
    return Told.load(device="cpu")


def shard(detector: Detector, policy: Policy | None = None, pace: Pace | None = None) -> Shard:
    plan, decoder = StreamPlan("hosts", policy or Policy()), make_decoder("plain-json")
    made = Shard(plan, Source("metrics", 0), detector, decoder, SERIES, now_ms=lambda: 5, pace=pace)
    for number in range(SERIES):
        made.index.row("m", {"h": str(number)})
    return made


def normal(detector: Detector, days: int, *, often: float = 1.0, seed: int = 0) -> NDArray[np.float64]:
    """Evidence (ticks, series) of series that cross the level `often` times as often as calibrated, with the tail of the calibration."""
    rng, line = np.random.default_rng(seed), detector.threshold
    shape = (days * TICKS, SERIES)
    tail = line[4] + rng.exponential(1 / (line[2] * math.log(10)), shape)
    return np.where(rng.random(shape) < often * line[5] / 1e9, tail, 1.0)


def with_incidents(evidence: NDArray[np.float64], share: float, *, every: int = TICKS, seed: int = 0) -> NDArray[np.float64]:
    """The same, where in a share of the series evidence swells up to an alarm and ebbs away, at some time of each day."""
    rng, result = np.random.default_rng(seed), evidence.copy()
    course = np.concatenate([np.linspace(2, 14, 20), np.full(30, 14.0), np.linspace(14, 2, 40)])
    for begin in range(0, len(evidence) - every, every):
        for series in range(round(share * SERIES)):
            at = begin + int(rng.integers(0, every - len(course)))
            result[at : at + len(course), series] = np.maximum(result[at : at + len(course), series], course)
    return result


def feed(shard: Shard, evidence: NDArray[np.float64], first: int = 0, ticks: int = 36) -> Iterator[Outcome]:
    """Ticks of all series, a record each, so many in a batch."""
    for begin in range(0, len(evidence), ticks):
        part = evidence[begin : begin + ticks]
        number = np.repeat(np.arange(len(part)), SERIES)
        batch = SampleBatch(
            np.tile(np.arange(SERIES, dtype=np.int32), len(part)),
            START_MS + (first + begin + number) * STEP_MS,
            part.reshape(-1, 1).copy(),
            number.astype(np.int32),
        )
        yield shard.advance(batch, first + begin + np.arange(len(part)))


def together(outcomes: Iterator[Outcome]) -> Outcome:
    whole = Outcome()
    for outcome in outcomes:
        whole.add(outcome)
    return whole


def against_budget(outcome: Outcome) -> float:
    return outcome.fired / outcome.alarms_allowed


def test_data_that_alarm_three_times_too_often_come_back_to_the_budget(told: Told) -> None:
    held, free = shard(told), shard(told, Policy(budget_control=False))
    evidence = normal(told, 100, often=3.0)
    learning, then = evidence[: 40 * TICKS], evidence[40 * TICKS :]

    for _ in feed(held, learning):
        pass

    assert 2.5 < against_budget(together(feed(free, then))) < 3.6
    assert 0.5 < against_budget(together(feed(held, then, len(learning)))) < 2.0
    assert 0.3 < held.correction < 0.55


def test_data_that_are_too_calm_come_back_to_the_budget(told: Told) -> None:
    held = shard(told)
    evidence = normal(told, 100, often=0.35)
    for _ in feed(held, evidence[: 40 * TICKS]):
        pass

    assert 0.5 < against_budget(together(feed(held, evidence[40 * TICKS :], 40 * TICKS))) < 2.0


def test_data_as_calibrated_move_the_threshold_by_a_tenth_at_most(told: Told) -> None:
    held = shard(told)
    whole = together(feed(held, normal(told, 60)))

    assert 0.7 < against_budget(whole) < 1.4
    assert 0.9 < whole.crossings / (whole.crossings_expected / 1e9) < 1.1
    assert abs(held.correction) <= 0.05


def test_daily_incidents_in_a_fifth_of_the_series_move_the_threshold_by_less_than_a_sixth_of_a_decade(told: Told) -> None:
    held = shard(told)
    whole = together(feed(held, with_incidents(normal(told, 60), 0.2)))

    assert whole.fired > 2 * whole.alarms_allowed
    assert abs(held.correction) < 0.16


def test_series_that_never_come_to_rest_do_not_shut_the_others_up(told: Told) -> None:
    held = shard(told)
    evidence = normal(told, 60)
    evidence[:, : SERIES // 5] = np.random.default_rng(3).choice([1.0, 7.0], (len(evidence), SERIES // 5), p=[0.9, 0.1])
    for _ in feed(held, evidence):
        pass

    assert abs(held.correction) < 0.1


def test_one_clock_in_the_future_ends_no_day(told: Told) -> None:
    held, right = shard(told), shard(told)
    evidence = normal(told, 20, often=3.0)
    for outcome in feed(right, evidence):
        assert outcome.samples
    for begin in range(0, len(evidence), 36):
        part = evidence[begin : begin + 36]
        number = np.repeat(np.arange(len(part)), SERIES)
        time_ms = START_MS + (begin + number) * STEP_MS
        time_ms[::SERIES] += 400 * 86_400_000
        rows = np.tile(np.arange(SERIES, dtype=np.int32), len(part))
        held.advance(SampleBatch(rows, time_ms, part.reshape(-1, 1).copy(), number.astype(np.int32)), begin + np.arange(len(part)))

    ours, theirs = days_of(held.control), days_of(right.control)
    assert len(ours) == len(theirs) > 8
    np.testing.assert_allclose(ours, theirs, atol=150)


@pytest.mark.parametrize("ticks", [1, 7, 1000])
def test_how_records_are_cut_into_batches_changes_nothing(told: Told, ticks: int) -> None:
    pace = Pace(day_ms=21_600_000, expected=1.0, days=8)
    evidence = normal(told, 8, often=4.0)
    whole, cut = shard(told, pace=pace), shard(told, pace=pace)
    a, b = together(feed(whole, evidence)), together(feed(cut, evidence, ticks=ticks))

    assert a.corrections
    assert a.corrections == b.corrections
    assert whole.control == cut.control
    assert whole.digest() == cut.digest()
    assert [alert.message.value for alert in a.alerts] == [alert.message.value for alert in b.alerts]


def test_a_policy_turns_it_off_and_on_again(told: Told) -> None:
    held = shard(told, pace=Pace(expected=1.0))
    for _ in feed(held, normal(told, 15, often=8.0)):
        pass
    found = held.correction
    held.adopt(StreamPlan("hosts", Policy(budget_control=False)))
    held.process([], 15 * TICKS)
    off = held.correction
    held.adopt(StreamPlan("hosts", Policy(budget_per_day=0.5)))
    outcome = held.process([], 15 * TICKS)

    assert found > 0.3
    assert (off, held.correction, held.budget_per_day) == (0.0, found, 0.5)
    assert [offset for offset, _ in outcome.policies] == [15 * TICKS]


def test_what_was_counted_comes_back_and_the_offset_decides_what_is_corrected(told: Told) -> None:
    first = shard(told, pace=Pace(expected=1.0))
    whole = together(feed(first, normal(told, 15, often=8.0)))
    assert whole.corrections
    offset, _ = whole.corrections[0]
    again = shard(told)
    again.begin(Restored(15 * TICKS, offset - 1, control=first.control, corrections=tuple(whole.corrections)))

    assert again.correction == 0.0
    assert again.control == first.control


def test_days_of_rest_between_samples_of_one_series_bring_no_correction(told: Told) -> None:
    detector: Any = told
    alone = shard(detector)
    row = alone.index.row("m", {"h": "0"})
    value = normal(told, 30, often=1.0)[:, :1]
    for begin in range(0, len(value), 100):
        part = value[begin : begin + 100]
        numbers = np.arange(len(part))
        alone.advance(
            SampleBatch(np.full(len(part), row, np.int32), START_MS + (begin + numbers) * 3 * 86_400_000, part, numbers.astype(np.int32)),
            begin + numbers,
        )

    assert alone.correction == 0.0
