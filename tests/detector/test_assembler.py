"""Single values to samples, against the rules written down in a few lines of plain Python."""

import math
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch
from anomalyd.detector import Layout, Pages, Shape
from anomalyd.detector.assembler import MISSED, WAITING, Assembler
from anomalyd.detector.recipe import LATE_RUN

FEATURES: Final = 3
ROWS: Final = 2
LAYOUT: Final = Layout(Shape(FEATURES, 4, 1, 2, joint=True))

Value = tuple[int, int, int, float]
"""Row, feature, time, value."""
Sample = tuple[int, int, int, tuple[float | None, ...]]
"""Index of the value that completed it, row, time, values."""


def oracle(values: list[Value]) -> tuple[list[Sample], int, int]:
    """Samples, late and repeated values, entity by entity, value after value."""
    found: list[Sample] = []
    late = repeated = 0
    for row in range(ROWS):
        own: dict[int, float] = {}
        awaited: dict[int, int] = {}
        time: int | None = None
        newest: int | None = None  # time of the newest sample that was whole
        open_, run, late_time = False, 0, None
        for i, (_, k, now, x) in (item for item in enumerate(values) if item[1][0] == row):
            emitted = []
            if time is not None and now < time:
                another = run == 0 or now != late_time
                run, late_time = run + another, now if another else late_time
                if not another or run % LATE_RUN:
                    if another and newest is not None and now < newest and run < LATE_RUN:
                        found.append((i, row, now, tuple(x if j == k else None for j in range(FEATURES))))
                    else:
                        late += 1
                    continue
                own = {}
            elif now == time and not open_:
                repeated += own.get(k) == x
                late += own.get(k) != x
                awaited |= {} if k in own else {k: MISSED}
                continue
            elif now != time and open_:
                emitted.append((time, own))
                own = {}
            elif now != time:
                own = {}
            for when, sample in emitted:
                found.append((i, row, int(when or 0), tuple(sample.get(j) for j in range(FEATURES))))
                awaited = waited(awaited, sample)
                newest, run = when, 0
            time, open_ = now, True
            own[k] = x
            wanted = range(FEATURES) if newest is None else [j for j in range(FEATURES) if awaited.get(j)]
            if all(j in own for j in wanted):
                found.append((i, row, now, tuple(own.get(j) for j in range(FEATURES))))
                awaited = waited(awaited, own)
                newest, run, open_ = now, 0, False
    return sorted(found, key=lambda sample: sample[0]), late, repeated


def waited(awaited: dict[int, int], sample: dict[int, float]) -> dict[int, int]:
    return {j: max(awaited.get(j, 0) - 1, WAITING if j in sample else 0) for j in range(FEATURES)}


def batch(values: list[Value]) -> SampleBatch:
    rows, features, times, numbers = ([value[part] for value in values] for part in range(4))
    record = np.arange(len(values), dtype=np.int32)
    column = np.array(numbers, np.float64)[:, None]
    return SampleBatch(np.array(rows, np.int32), np.array(times, np.int64), column, record, np.array(features, np.int32))


def assembled(pages: Pages, values: list[Value], cuts: list[int] | None = None) -> tuple[list[Sample], int, int]:
    """What the compiled one makes of them, cut into batches."""
    found: list[Sample] = []
    late = repeated = 0
    edges = sorted({0, len(values), *(cut for cut in cuts or [] if cut < len(values))})
    assembler = Assembler(pages)
    for begin, end in pairwise(edges):
        for made in assembler.samples(batch(values[begin:end])):
            late, repeated = late + made.late, repeated + made.repeated
            columns: list[NDArray[Any]] = [made.origin, made.batch.row, made.batch.time_ms, made.batch.value]
            for origin, row, time, value in zip(*(column.tolist() for column in columns), strict=True):
                found.append((begin + origin, row, time, tuple(None if math.isnan(x) else x for x in value)))
            assert made.batch.record.tolist() == made.origin.tolist()
    return found, late, repeated


steady = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, FEATURES - 1), st.integers(0, 3), st.sampled_from([1.0, 2.0])), max_size=60
).map(lambda steps: [(row, k, 1000 + 10 * (i // 4) - 7 * back * (back > 2), x) for i, (row, k, back, x) in enumerate(steps)])
wild = st.lists(
    st.tuples(st.integers(0, ROWS - 1), st.integers(0, FEATURES - 1), st.integers(0, 30), st.sampled_from([1.0, 2.0])), max_size=80
)


@settings(max_examples=400, deadline=None)
@given(values=st.one_of(steady, wild), cuts=st.lists(st.integers(1, 80), max_size=6))
def test_what_comes_out_is_what_the_rules_say_however_values_are_cut_into_batches(values: list[Value], cuts: list[int]) -> None:
    pages, others = Pages(LAYOUT, ROWS), Pages(LAYOUT, ROWS)

    assert assembled(pages, values, cuts) == oracle(values)
    assembled(others, values)
    assert (pages.buffer == others.buffer).all()


def rounds(count: int, features: range = range(FEATURES), first: int = 0) -> list[Value]:
    return [(0, k, 10 * i, float(i + k)) for i in range(first, first + count) for k in features]


def test_a_sample_is_whole_with_the_last_feature_that_is_waited_for() -> None:
    """So that detection is not a step late: from the second sample on nobody waits for what an entity does not bring."""
    found, late, _ = assembled(Pages(LAYOUT, ROWS), rounds(3, range(2)))

    assert [(origin, value) for origin, _, _, value in found] == [(2, (0.0, 1.0, None)), (3, (1.0, 2.0, None)), (5, (2.0, 3.0, None))]
    assert late == 0


def test_a_feature_that_stopped_is_waited_for_in_eight_samples() -> None:
    values = rounds(5) + rounds(20, range(2), first=5)

    waited_for = [values[origin][2] - time for origin, _, time, value in assembled(Pages(LAYOUT, ROWS), values)[0] if value[2] is None]

    assert waited_for == [10] * WAITING + [0] * (20 - WAITING)


def test_a_feature_that_comes_seldom_and_last_is_lost_once_only() -> None:
    """Every twentieth sample has a third value, behind the others."""
    values = [(0, k, 10 * i, float(k)) for i in range(200) for k in range(3) if k < 2 or i % 20 == 0]

    found, late, _ = assembled(Pages(LAYOUT, ROWS), values)

    assert late == 1
    assert [time for _, _, time, value in found if value[2] is not None] == [0, *range(400, 2000, 200)]


def test_a_clock_that_was_set_back_is_followed_after_eight_times() -> None:
    """The first value of each of seven times reaches the detector, so that it counts them, too; the eighth sample is whole."""
    values = rounds(10, first=1000) + rounds(20)

    found, _, _ = assembled(Pages(LAYOUT, ROWS), values)

    lacking = [None not in value for _, _, _, value in found]
    assert lacking == [True] * 10 + [False] * (LATE_RUN - 1) + [True] * (20 - LATE_RUN + 1)
    assert [time for _, _, time, _ in found[10:]] == [10 * i for i in range(20)]


def test_samples_are_refused_where_values_are_wanted() -> None:
    whole = SampleBatch(np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros((1, FEATURES)), np.zeros(1, np.int32))

    with pytest.raises(ValueError, match="which feature"):
        list(Assembler(Pages(LAYOUT, ROWS)).samples(whole))
