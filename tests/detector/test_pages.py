"""State rows: layout, pages and what a series costs."""

import resource
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.detector import EPISODE_BYTES, Detector, Layout, Pages, Shape
from anomalyd.detector.layout import ALIGNMENT
from tests.detector.population import batch_of

SHIPPED = Shape(1, 32, 1, 4, joint=False)

shapes = st.builds(Shape, st.integers(1, 6), st.integers(1, 70), st.integers(1, 3), st.integers(1, 9), st.booleans())


@given(shapes)
def test_fields_are_aligned_and_do_not_overlap(shape: Shape) -> None:
    layout = Layout(shape)
    end = 0
    for field in sorted(layout.fields.values(), key=lambda f: f.offset):
        assert field.offset % field.dtype.itemsize == 0
        assert field.offset >= end or field.count == 0
        end = field.offset + field.count * field.dtype.itemsize
    assert end <= layout.row_bytes
    assert layout.row_bytes % ALIGNMENT == 0
    assert layout["episode"].offset % 8 == 0


def test_row_of_the_shipped_model_fits_the_budget() -> None:
    """2.5 KiB a series with everything; the row is the largest part of it."""
    assert Layout(SHIPPED).row_bytes <= 2048


@given(shapes)
def test_page_is_at_most_256_rows_and_512_kib(shape: Shape) -> None:
    pages = Pages(Layout(shape), 1)

    assert 1 <= pages.page_rows <= 256
    assert pages.page_rows * pages.layout.row_bytes <= 512 << 10


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux only, and the daemon runs there")
def test_unused_rows_cost_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pages = Pages(Layout(SHIPPED), 20_000_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before

    assert len(pages.buffer) == 20_000_000
    assert grown < 10_000


def test_views_are_the_same_memory(detector: Detector) -> None:
    pages = detector.new_pages(3)
    pages.field("mean")[1] = 4.5
    pages.episodes[1] = 255

    assert pages.episodes.shape == (3, EPISODE_BYTES)
    assert pages.bytes_of("mean")[1].view(np.float64)[0] == 4.5
    assert pages.buffer[1].sum() > 255 * EPISODE_BYTES
    assert not pages.buffer[[0, 2]].any()


def test_step_leaves_the_episode_alone(detector: Detector) -> None:
    pages = detector.new_pages(1)
    pages.episodes[:] = np.arange(EPISODE_BYTES)

    detector.step(pages, batch_of(0, np.arange(500) * 1000, np.random.default_rng(0).standard_normal(500)))

    np.testing.assert_array_equal(pages.episodes[0], np.arange(EPISODE_BYTES))


def test_copied_bytes_go_on_as_the_original(detector: Detector) -> None:
    """All that is carried is in the row's bytes: a row restored elsewhere gives the same bits."""
    value = np.random.default_rng(0).standard_normal(400)
    pages, elsewhere = detector.new_pages(1), detector.new_pages(7)
    detector.step(pages, batch_of(0, np.arange(200) * 1000, value[:200]))
    elsewhere.buffer[5] = np.frombuffer(pages.buffer[0].tobytes(), np.uint8)

    here = detector.step(pages, batch_of(0, np.arange(200, 400) * 1000, value[200:]))
    there = detector.step(elsewhere, batch_of(5, np.arange(200, 400) * 1000, value[200:]))

    np.testing.assert_array_equal(there.score, here.score)
    assert elsewhere.buffer[5].tobytes() == pages.buffer[0].tobytes()
