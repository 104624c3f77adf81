"""Generated series: seeded, finite, varied, and calm where they must be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.training import generate


@settings(max_examples=25, deadline=None)
@given(count=st.integers(1, 8), samples=st.integers(64, 400), seed=st.integers(0, 2**31), calm=st.booleans())
def test_series_are_finite_and_shaped(count: int, samples: int, seed: int, calm: bool) -> None:
    values, step_s = generate.series(count, samples, seed, calm=calm)

    assert values.shape == (count, samples)
    assert step_s.shape == (count,)
    assert np.isfinite(values).all()
    assert ((step_s >= 60.0) & (step_s <= 3600.0)).all()


def test_equal_seeds_give_equal_series() -> None:
    (a, a_steps), (b, b_steps), (c, _) = (generate.series(20, 300, seed) for seed in (5, 5, 6))

    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a_steps, b_steps)
    assert not np.array_equal(a, c)


def test_series_come_in_many_kinds() -> None:
    """Constants, counters with restarts, intermittent and discrete series are all there, on scales from 1e-2 to 1e5."""
    values, _ = generate.series(400, 512, seed=1)
    spread = np.ptp(values, axis=1)
    rising = (np.diff(values, axis=1) >= 0).mean(axis=1)
    zeros = (values == 0).mean(axis=1)
    distinct = np.array([len(np.unique(x)) for x in values])

    assert (spread == 0).any(), "constant"
    assert ((rising == 1) & (spread > 0)).any(), "counter"
    assert ((rising > 0.98) & (rising < 1)).any(), "counter with restarts"
    assert ((zeros > 0.6) & (spread > 0)).any(), "intermittent"
    assert ((distinct > 2) & (distinct < 30)).any(), "counts or quantised"
    positive = spread[spread > 0]
    assert np.quantile(positive, 0.99) / np.quantile(positive, 0.01) > 1e4


@pytest.mark.parametrize("calm", [True, False])
def test_calm_constants_stay_constant(calm: bool) -> None:
    """An alert is for changes of level, so series that the threshold is calibrated on have none."""
    values, _ = generate.series(1000, 256, seed=2, calm=calm)
    distinct = np.array([len(np.unique(x)) for x in values])

    assert (distinct == 1).any()
    assert (distinct == 2).any() or calm


def test_entities_are_finite_shaped_and_seeded() -> None:
    values, step_s = generate.entities(6, 300, 4, seed=1)
    again, _ = generate.entities(6, 300, 4, seed=1)

    assert values.shape == (6, 300, 4)
    assert step_s.shape == (6,)
    assert np.isfinite(values).all()
    np.testing.assert_array_equal(values, again)


def test_features_of_an_entity_move_together() -> None:
    """About half follow a common driver: that is what a joint model can learn."""
    values, _ = generate.entities(20, 400, 4, seed=2)
    related = []
    for entity in values:
        moving = entity[:, np.std(entity, axis=0) > 1e-9]
        if moving.shape[1] > 1:
            related.append(np.abs(np.corrcoef(moving.T) - np.eye(moving.shape[1])).max())

    assert np.quantile(related, 0.7) > 0.8
