"""The LSTM cell of both backends against the gate equations, written out in double precision."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomalyd.detector import Shape
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.step_cpu import cell, tanh
from anomalyd.detector.weights import tensor_shapes
from tests.detector.population import untrained

STEPS = 1000
SIZES = [(32, 1), (50, 1), (7, 1), (32, 2), (7, 2)]
Floats = NDArray[np.float64]


def sigmoid(x: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


class ReferenceLayer:
    """Hochreiter & Schmidhuber's cell with the forget gate of Gers, Schmidhuber & Cummins (2000)."""

    def __init__(self, weight_ih: Floats, weight_hh: Floats, bias: Floats) -> None:
        units = weight_hh.shape[1]
        # torch stacks the gates in the order input, forget, candidate, output
        self.w_i, self.w_f, self.w_g, self.w_o = weight_ih.reshape(4, units, -1)
        self.u_i, self.u_f, self.u_g, self.u_o = weight_hh.reshape(4, units, units)
        self.b_i, self.b_f, self.b_g, self.b_o = bias.reshape(4, units)
        self.h, self.c = np.zeros(units), np.zeros(units)

    def advance(self, x: Floats) -> Floats:
        f = sigmoid(self.w_f @ x + self.u_f @ self.h + self.b_f)
        i = sigmoid(self.w_i @ x + self.u_i @ self.h + self.b_i)
        g = np.tanh(self.w_g @ x + self.u_g @ self.h + self.b_g)
        o = sigmoid(self.w_o @ x + self.u_o @ self.h + self.b_o)
        self.c = f * self.c + i * g
        self.h = o * np.tanh(self.c)
        return self.h


def reference_layers(tensors: dict[str, NDArray[np.float32]], part: str, layers: int) -> list[ReferenceLayer]:
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    return [
        ReferenceLayer(
            wide[f"{part}.weight_ih_l{k}"], wide[f"{part}.weight_hh_l{k}"], wide[f"{part}.bias_ih_l{k}"] + wide[f"{part}.bias_hh_l{k}"]
        )
        for k in range(layers)
    ]


def weights(units: int, layers: int) -> dict[str, NDArray[np.float32]]:
    """Random weights three times as wide as torch's own initial ones, so that gates open and close."""
    shape = Shape(1, units, layers, 4, joint=False)
    tensors = untrained(shape, seed=units + layers).tensors
    assert tensors.keys() == tensor_shapes(shape).keys()
    return {name: 3.0 * tensor for name, tensor in tensors.items()}


def driving(inputs: int) -> NDArray[np.float32]:
    """Inputs that excite every gate: noise with outliers up to the limit of ± 8."""
    noise = np.random.default_rng(inputs).standard_t(2.0, (STEPS, inputs))
    return np.clip(noise, -8.0, 8.0).astype(np.float32)


def reference_states(tensors: dict[str, NDArray[np.float32]], x: NDArray[np.float32], layers: int) -> tuple[Floats, Floats]:
    """h and c of every layer after every step, (steps, layers, units)."""
    stack = reference_layers(tensors, "encoder", layers)
    h, c = [], []
    for sample in x.astype(np.float64):
        signal = sample
        for layer in stack:
            signal = layer.advance(signal)
        h.append([layer.h for layer in stack])
        c.append([layer.c for layer in stack])
    return np.array(h), np.array(c)


@pytest.mark.parametrize(("units", "layers"), SIZES)
def test_compiled_cell_follows_the_gate_equations(units: int, layers: int) -> None:
    tensors, x = weights(units, layers), driving(2)
    h, c = reference_states(tensors, x, layers)
    packed = [
        np.concatenate(
            [
                np.ascontiguousarray(tensors[f"encoder.weight_ih_l{k}"].T).ravel(),
                np.ascontiguousarray(tensors[f"encoder.weight_hh_l{k}"].T).ravel(),
                tensors[f"encoder.bias_ih_l{k}"] + tensors[f"encoder.bias_hh_l{k}"],
            ]
        )
        for k in range(layers)
    ]
    state = np.zeros(2 * layers * units, np.float32)  # h of all layers, then c
    gates = np.empty(4 * units, np.float32)

    seen = []
    for t in range(STEPS):
        cell(packed[0], 0, x[t], 0, 2, state, 0, layers * units, units, gates)
        for k in range(1, layers):
            cell(packed[k], 0, state, (k - 1) * units, units, state, k * units, (layers + k) * units, units, gates)
        seen.append(state.reshape(2, layers, units).copy())

    np.testing.assert_allclose(np.array(seen)[:, 0], h, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.array(seen)[:, 1], c, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("units", "layers"), SIZES)
def test_torch_cell_follows_the_gate_equations(units: int, layers: int) -> None:
    tensors, x = weights(units, layers), driving(2)
    h, c = reference_states(tensors, x, layers)
    encoder = Autoencoder(Shape(1, units, layers, 4, joint=False)).encoder
    encoder.load_state_dict({name.removeprefix("encoder."): torch.from_numpy(t) for name, t in tensors.items() if "encoder" in name})
    state = (torch.zeros(layers, 1, units), torch.zeros(layers, 1, units))

    seen = []
    with torch.inference_mode():
        for t in range(STEPS):
            _, state = encoder(torch.from_numpy(x[t])[None, None, :], state)
            seen.append(torch.stack(state)[:, :, 0].numpy())

    np.testing.assert_allclose(np.array(seen)[:, 0], h, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.array(seen)[:, 1], c, rtol=0, atol=1e-5)


def test_gates_of_the_reference_open_and_close() -> None:
    """The comparison above would mean little if every gate stayed half open."""
    tensors, x = weights(32, 1), driving(2)
    (layer,) = reference_layers(tensors, "encoder", 1)
    forget = []
    for sample in x.astype(np.float64):
        forget.append(sigmoid(layer.w_f @ sample + layer.u_f @ layer.h + layer.b_f))
        layer.advance(sample)

    assert np.quantile(forget, 0.01) < 0.1
    assert np.quantile(forget, 0.99) > 0.9


def test_compiled_tanh_is_exact_to_single_precision() -> None:
    x = np.concatenate([np.linspace(-12, 12, 20_001), 10.0 ** np.linspace(-30, 1, 500)]).astype(np.float32)

    np.testing.assert_allclose([tanh(v) for v in x], np.tanh(x.astype(np.float64)), rtol=5e-7, atol=0)
