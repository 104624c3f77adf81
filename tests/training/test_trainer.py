"""The trainer: a pure function of data and seed, whose loss falls."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anomalyd.detector import Shape
from anomalyd.errors import ConfigError
from anomalyd.training import generate
from anomalyd.training.features import network_inputs
from anomalyd.training.trainer import Floats32, Plan, device_for, fit

SHAPE = Shape(1, 8, 1, 2, joint=False)
PLAN = Plan(steps=12, batch=16, stretch=48, window=4)


@pytest.fixture(scope="module")
def data() -> tuple[Floats32, Floats32]:
    values, step_s = generate.series(32, 200, seed=3)
    return network_inputs(values[:, :, None], step_s * 1000.0, SHAPE)


def weights(data: tuple[Floats32, Floats32], plan: Plan = PLAN, seed: int = 0) -> dict[str, torch.Tensor]:
    network, _ = fit(*data, SHAPE, plan, seed)
    return network.state_dict()


def test_equal_seeds_give_equal_weights(data: tuple[Floats32, Floats32]) -> None:
    one, same, other = weights(data), weights(data), weights(data, seed=1)

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_weights_do_not_depend_on_what_was_drawn_before(data: tuple[Floats32, Floats32]) -> None:
    one = weights(data)
    torch.rand(7)

    assert all(torch.equal(tensor, one[name]) for name, tensor in weights(data).items())


def test_loss_falls_and_progress_tells_it(data: tuple[Floats32, Floats32]) -> None:
    told: list[tuple[int, int, float]] = []
    _, loss = fit(*data, SHAPE, replace(PLAN, steps=120), 0, lambda done, of, now: told.append((done, of, now)))

    assert [done for done, _, _ in told] == list(range(1, 121))
    assert {of for _, of, _ in told} == {120}
    losses = [now for *_, now in told]
    assert loss == pytest.approx(np.mean(losses[-12:]))
    assert loss < np.mean(losses[:12]) - 0.1
    assert np.isfinite(losses).all()


def test_data_is_not_modified(data: tuple[Floats32, Floats32]) -> None:
    before = data[0].copy(), data[1].copy()
    weights(data, replace(PLAN, input_noise=0.3))

    np.testing.assert_array_equal(data[0], before[0])
    np.testing.assert_array_equal(data[1], before[1])


def test_input_noise_changes_the_weights(data: tuple[Floats32, Floats32]) -> None:
    assert not torch.equal(weights(data)["code.weight"], weights(data, replace(PLAN, input_noise=0.3))["code.weight"])


@pytest.mark.parametrize(
    "plan",
    [replace(PLAN, window=1), replace(PLAN, stretch=200), replace(PLAN, stretch=999), replace(PLAN, steps=1), replace(PLAN, batch=999)],
)
def test_odd_plans_train_too(data: tuple[Floats32, Floats32], plan: Plan) -> None:
    network, loss = fit(*data, SHAPE, plan, 0)

    assert np.isfinite(loss)
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


def test_forecast_beats_the_last_value_on_what_can_be_foreseen() -> None:
    """Waves without noise, learned for a few seconds: the forecast head must be nearer than "as now"."""
    rng = np.random.default_rng(0)
    t = np.arange(400)
    values = np.sin(2 * np.pi * (t / rng.uniform(10, 40, (48, 1)) + rng.random((48, 1))))
    inputs, targets = network_inputs(values[:, :, None], np.full(48, 60_000.0), Shape(1, 16, 1, 4, joint=False))
    network, _ = fit(inputs[:40], targets[:40], Shape(1, 16, 1, 4, joint=False), Plan(steps=150, batch=40, stretch=64, window=4), 0)

    with torch.inference_mode():
        forecast = network(torch.from_numpy(inputs[40:])).next[:, :, 0].numpy()
    late = slice(200, 398)
    missed = np.abs(forecast[:, late] - targets[40:, 201:399, 0]).mean()
    as_now = np.abs(targets[40:, late, 0] - targets[40:, 201:399, 0]).mean()
    assert missed < 0.8 * as_now


def test_all_of_a_training_is_where_it_was_asked_for(data: tuple[Floats32, Floats32]) -> None:
    """A device without data refuses what lies elsewhere, as a GPU does; the first number that is asked for ends it."""
    plan = replace(PLAN, steps=1, input_noise=0.1, masking=0.1, dropout=0.1)
    counts = np.ones(data[0].shape[:2], np.float32)

    with pytest.raises(RuntimeError, match=r"item\(\)"):
        fit(*data, SHAPE, plan, 0, counts=counts, draw=counts[:, 0], device="meta")


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert (device_for("auto"), device_for("cpu")) == ("cpu", "cpu")
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        device_for("cuda")
