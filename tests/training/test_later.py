"""What is held back: the latest part of each series, by which weights are chosen and models are compared."""

import math

import numpy as np
import pytest
import torch

from anomalyd.detector import Shape
from anomalyd.detector.network import Autoencoder
from anomalyd.errors import ArtifactError
from anomalyd.training.course import Prepared, Regime, learn
from anomalyd.training.later import WARM, Pieces, Stopper, errors, held_back, stacked
from anomalyd.training.trainer import Floats32, Plan

SHAPE = Shape(1, 8, 1, 2, joint=False)
PLAN = Plan(steps=50, batch=8, stretch=32, window=1)


def series(samples: int, seed: int) -> tuple[Floats32, Floats32]:
    """Inputs (n, 2) and targets (n, 1)."""
    rng = np.random.default_rng(seed)
    u = (np.sin(np.arange(samples) / 5) + 0.05 * rng.standard_normal(samples)).astype(np.float32)
    return np.stack([u, np.diff(u, prepend=u[:1])], axis=1), u[:, None]


def pieces(samples: int) -> Pieces:
    return stacked([(*series(samples, seed), np.ones(samples, np.float32)) for seed in range(6)])


def test_only_the_latest_part_counts_and_what_is_before_warms_up() -> None:
    long, short = series(1000, 1), series(300, 2)

    later = held_back([long, short], 0.2)

    assert later is not None
    assert later.counts.sum(axis=1).tolist() == [200, 60]
    np.testing.assert_array_equal(later.inputs[0, : WARM + 200], long[0][800 - WARM :])
    np.testing.assert_array_equal(later.counts[0, :WARM], 0)
    np.testing.assert_array_equal(later.inputs[1, :300], short[0])
    np.testing.assert_array_equal(later.counts[1, 300:], 0)
    assert held_back([long], 0.0) is None


def test_surprise_is_calibrated_by_each_series_own_past() -> None:
    """A network that knows nothing forecasts zero: noise twice as wide is no more surprising, noise that has become wider is."""
    network = Autoencoder(SHAPE)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    noise = np.random.default_rng(0).laplace(0, 1, (4, 600, 1)).astype(np.float32)

    def surprise(target: Floats32) -> float:
        counts = np.zeros((4, 600), np.float32)
        counts[:, 300:] = 1
        return errors(network, Pieces(np.repeat(target, 2, axis=2), target, counts)).surprise

    wider = noise.copy()
    wider[:, 300:] *= 4
    assert surprise(noise) == pytest.approx(math.log(2) + 1, abs=0.1)  # the entropy of what was drawn
    assert surprise(2 * noise) == pytest.approx(surprise(noise) + math.log(2), abs=1e-4)  # wider, but as usual
    assert surprise(wider) > surprise(noise) + 2.5


def test_the_best_weights_are_taken_and_patience_ends_it() -> None:
    """The held-back loss is made to rise: what was held back is the opposite of what is learned."""
    on = pieces(128)
    later = Pieces(on.inputs, -on.targets, on.counts)

    learned = learn(Prepared(on, np.ones(6, np.float32), later), SHAPE, Regime(PLAN, 0.2, patience=3), seed=0)

    best = min(learned.later, key=lambda look: look[1])
    assert learned.best_step == best[0]
    assert len(learned.losses) == learned.later[-1][0] < PLAN.steps
    assert sum(step > best[0] for step, _ in learned.later) == 3
    again = Stopper(later, PLAN, 0)
    again(learned.network, PLAN.steps)
    assert again.best_loss == pytest.approx(best[1], abs=1e-6)


def test_without_anything_held_back_the_last_weights_are_taken() -> None:
    learned = learn(Prepared(pieces(128), None, None), SHAPE, Regime(PLAN, 0.0), seed=0)

    assert (learned.best_step, learned.later, learned.errors) == (PLAN.steps, [], None)


def test_what_is_padded_does_not_count() -> None:
    """Zeros behind the end of a series change nothing."""
    whole = pieces(64)
    longer = Pieces(*(np.pad(column, [(0, 0), (0, 64), *[(0, 0)] * (column.ndim - 2)]) for column in whole))
    plan = Plan(steps=1, batch=6, stretch=64, window=1)

    losses = [learn(Prepared(on, np.ones(6, np.float32), None), SHAPE, Regime(plan, 0.0), seed=0).losses for on in (whole, longer)]

    # The one step that differs is the last: only there is it known what follows.
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("changed", [{"dropout": 0.4}, {"masking": 0.4}, {"input_noise": 0.4}])
def test_what_disturbs_training_changes_the_weights_and_repeats(changed: dict[str, float]) -> None:
    on = Prepared(pieces(128), np.ones(6, np.float32), None)
    plan = Plan(steps=3, batch=8, stretch=32, window=1)

    def weights(plan: Plan) -> Floats32:
        return learn(on, SHAPE, Regime(plan, 0.0), seed=0).tensors["code.weight"]

    disturbed = Plan(steps=3, batch=8, stretch=32, window=1, **changed)  # type: ignore[arg-type]  # names of fields
    assert not np.array_equal(weights(disturbed), weights(plan))
    np.testing.assert_array_equal(weights(disturbed), weights(disturbed))


def test_a_training_that_goes_astray_is_said() -> None:
    on = Prepared(pieces(128), np.ones(6, np.float32), None)

    with pytest.raises(ArtifactError, match=r"went astray.*--learning-rate"):
        learn(on, SHAPE, Regime(Plan(steps=20, batch=8, stretch=32, window=1, learning_rate=1e30, loss="mse"), 0.0), seed=0)
