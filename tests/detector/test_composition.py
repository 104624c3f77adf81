"""What else is in the batch does not matter: scores and state bytes of a series are the same bit for bit."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector import Detector, Pages, Shape
from tests.detector.population import assert_same_bits, batch_of, in_torch, joined, mixed, taken, untrained

SERIES, SAMPLES = 16, 160


OTHER = Shape(1, 50, 2, 3, joint=False)
"""Sizes that are no multiple of a vector: what is left over at the end of a loop must not depend on the batch either."""


@cache
def alone(shape: Shape | None = None) -> tuple[Detector, list[Verdicts], list[bytes]]:
    """Every series by itself, one sample a batch: verdicts and row."""
    detector = Detector(untrained(shape), "cpu") if shape else Detector.load(device="cpu")
    times, values = mixed(SERIES, SAMPLES, seed=3)
    verdicts, rows = [], []
    for i in range(SERIES):
        pages = detector.new_pages(1)
        verdicts.append(joined(detector.step(pages, batch_of(0, times[t, i], values[t, i])) for t in range(SAMPLES)))
        rows.append(pages.buffer[0].tobytes())
    return detector, verdicts, rows


def together(order: NDArray[np.integer], rows: NDArray[np.integer]) -> SampleBatch:
    """All samples in one batch: `order` names the series of each, `rows` the row of each series."""
    times, values = mixed(SERIES, SAMPLES, seed=3)
    seen = np.zeros(SERIES, int)
    which = np.empty(len(order), int)
    for k, i in enumerate(order):
        which[k], seen[i] = seen[i], seen[i] + 1
    return batch_of(rows[order], times[which, order], values[which, order])


def assert_nothing_differs(
    pages: Pages, order: NDArray[np.integer], rows: NDArray[np.integer], cuts: list[int], shape: Shape | None = None
) -> None:
    detector, verdicts, bytes_alone = alone(shape)
    batch = together(order, rows)
    edges = [0, *sorted(cuts), len(batch)]
    got = joined(detector.step(pages, taken(batch, slice(a, b))) for a, b in pairwise(edges))
    for i in range(SERIES):
        own = np.flatnonzero(order == i)
        assert_same_bits(Verdicts(*(getattr(got, name)[own] for name in Verdicts.__slots__)), verdicts[i])
        assert pages.buffer[rows[i]].tobytes() == bytes_alone[i]


@pytest.mark.parametrize("size", [1, 3, 7, 100, 256, SERIES * SAMPLES])
def test_batch_size_does_not_matter(size: int) -> None:
    detector, *_ = alone()
    order = np.tile(np.arange(SERIES), SAMPLES)

    assert_nothing_differs(detector.new_pages(SERIES), order, np.arange(SERIES), list(range(size, len(order), size)))


def test_series_one_after_the_other_equal_series_side_by_side() -> None:
    detector, *_ = alone()

    assert_nothing_differs(detector.new_pages(SERIES), np.repeat(np.arange(SERIES), SAMPLES), np.arange(SERIES), [])


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, SERIES * SAMPLES), max_size=60),
    capacity=st.integers(SERIES, 3000),
)
def test_interleaving_rows_and_cuts_do_not_matter(seed: int, cuts: list[int], capacity: int) -> None:
    """Samples of all series in any interleaving, series in any rows of any pages, batches cut anywhere, empty ones too."""
    detector, *_ = alone()
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.repeat(np.arange(SERIES), SAMPLES))

    assert_nothing_differs(detector.new_pages(capacity), order, rng.permutation(capacity)[:SERIES], cuts)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100, SERIES * SAMPLES])
def test_batch_size_does_not_matter_to_other_networks(size: int) -> None:
    detector, *_ = alone(OTHER)
    order = np.random.default_rng(size).permutation(np.repeat(np.arange(SERIES), SAMPLES))

    assert_nothing_differs(detector.new_pages(SERIES), order, np.arange(SERIES), list(range(size, len(order), size)), OTHER)


def test_threads_share_a_detector() -> None:
    """The step runs without the GIL: partitions are stepped side by side by one detector."""
    detector, *_ = alone()
    order = np.tile(np.arange(SERIES), SAMPLES)

    def one_partition(size: int) -> None:
        for _ in range(20):
            assert_nothing_differs(detector.new_pages(SERIES), order, np.arange(SERIES), list(range(size, len(order), size)))

    with ThreadPoolExecutor(4) as threads:
        for outcome in [threads.submit(one_partition, size) for size in (100, 101, 256, len(order))]:
            outcome.result()


def test_neighbouring_rows_are_not_touched() -> None:
    detector, *_ = alone()
    pages = detector.new_pages(5)
    pages.buffer[[0, 1, 3, 4]] = 0xA5

    detector.step(pages, batch_of(2, np.arange(300) * 1000, np.random.default_rng(0).standard_normal(300)))

    assert (pages.buffer[[0, 1, 3, 4]] == 0xA5).all()
    assert pages.buffer[2].any()


def test_composition_does_not_matter_in_torch_either() -> None:
    """Full tiles whatever the batch: mixed, permuted and cut batches give the bits of single samples."""
    detector, *_ = alone()
    times, values = mixed(SERIES, 40, seed=3)
    step, rng = in_torch(detector), np.random.default_rng(2)
    single, mixed_up = detector.new_pages(SERIES), detector.new_pages(SERIES)
    rows = np.tile(np.arange(SERIES), 40)
    batch = batch_of(rows, times.ravel(), values.ravel())

    for i in range(4):  # four series alone: every call pays for a full tile
        step(single, taken(batch, np.flatnonzero(rows == i)))
    shuffled = np.argsort(rng.permutation(rows), kind="stable")
    which = np.empty_like(shuffled)
    which[shuffled] = np.argsort(rows, kind="stable")  # each series keeps its order, the series are interleaved at random
    for part in np.array_split(which, 7):
        step(mixed_up, taken(batch, part))

    assert single.buffer[:4].tobytes() == mixed_up.buffer[:4].tobytes()
