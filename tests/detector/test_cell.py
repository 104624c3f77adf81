"""The LSTM cell of both backends against the gate equations, written out in double precision."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from anomalyd.detector import Detector, Shape
from anomalyd.detector.network import Autoencoder
from anomalyd.detector.step_cpu import LANES, build_cells, tanh
from anomalyd.detector.weights import tensor_shapes
from anomalyd.training.features import network_inputs
from tests.detector.population import MINUTE_MS, START_MS, batch_of, untrained

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


def driving(inputs: int, series: int = LANES) -> NDArray[np.float32]:
    """Inputs (steps, series, inputs) that excite every gate: noise with outliers up to the limit of ± 8."""
    noise = np.random.default_rng(inputs).standard_t(2.0, (STEPS, series, inputs))
    return np.clip(noise, -8.0, 8.0).astype(np.float32)


def reference_states(tensors: dict[str, NDArray[np.float32]], x: NDArray[np.float32], layers: int) -> Floats:
    """h and c of every layer after every step, (steps, 2, layers, units), for one series x (steps, inputs)."""
    stack = reference_layers(tensors, "encoder", layers)
    states = []
    for sample in x.astype(np.float64):
        signal = sample
        for layer in stack:
            signal = layer.advance(signal)
        states.append([[layer.h for layer in stack], [layer.c for layer in stack]])
    return np.array(states)


@pytest.mark.parametrize(("units", "layers"), SIZES)
def test_compiled_cell_follows_the_gate_equations(units: int, layers: int) -> None:
    """Several series side by side, each with inputs of its own."""
    tensors, x = weights(units, layers), driving(2)
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
    cells, scratch = build_cells(units), np.empty(LANES * 4 * units, np.float32)
    h, c = np.zeros((2, layers, LANES, units), np.float32)

    seen = []
    for t in range(STEPS):
        signal = x[t]
        for k in range(layers):
            cells(packed[k], 0, signal, signal.shape[1], h[k], c[k], scratch)
            signal = h[k]
        seen.append([h.copy(), c.copy()])

    states = np.array(seen)  # (steps, 2, layers, lanes, units)
    for lane in range(LANES):
        np.testing.assert_allclose(states[:, :, :, lane], reference_states(tensors, x[:, lane], layers), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("units", "layers"), SIZES)
def test_torch_cell_follows_the_gate_equations(units: int, layers: int) -> None:
    tensors, x = weights(units, layers), driving(2, series=1)[:, 0]
    encoder = Autoencoder(Shape(1, units, layers, 4, joint=False)).encoder
    encoder.load_state_dict({name.removeprefix("encoder."): torch.from_numpy(t) for name, t in tensors.items() if "encoder" in name})
    state = (torch.zeros(layers, 1, units), torch.zeros(layers, 1, units))

    seen = []
    with torch.inference_mode():
        for t in range(STEPS):
            _, state = encoder(torch.from_numpy(x[t])[None, None, :], state)
            seen.append(torch.stack(state)[:, :, 0].numpy())

    np.testing.assert_allclose(np.array(seen), reference_states(tensors, x, layers), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [Shape(1, 32, 1, 4, joint=False), Shape(1, 50, 2, 3, joint=False)], ids=str)
def test_step_follows_the_equations_of_the_whole_network(detector: Detector, shape: Shape) -> None:
    """Encoder, code, decoder and forecast of the compiled step, from the state row, over a thousand samples of a series."""
    one = detector if shape == detector.layout.shape else Detector(untrained(shape), "cpu")
    value = 10.0 + np.random.default_rng(1).standard_t(3.0, STEPS)
    inputs, _ = network_inputs(value[None, :, None], np.array([float(MINUTE_MS)]), shape)
    tensors = {name: t.astype(np.float64) for name, t in one.artifact.tensors.items()}
    encoder = reference_layers(dict(one.artifact.tensors), "encoder", shape.layers)
    decoder = reference_layers(dict(one.artifact.tensors), "decoder", shape.layers)
    pages = one.new_pages(1)
    for t in range(STEPS):
        signal: Floats = inputs[0, t].astype(np.float64)
        for layer in encoder:
            signal = layer.advance(signal)
        signal = tensors["code.weight"] @ signal + tensors["code.bias"]
        for layer in decoder:
            signal = layer.advance(signal)
        one.step(pages, batch_of(0, START_MS + MINUTE_MS * t, value[t]))

        for part, stack in (("encoder", encoder), ("decoder", decoder)):
            np.testing.assert_allclose(pages.field(f"{part}_h")[0], np.concatenate([layer.h for layer in stack]), rtol=0, atol=1e-5)
            c = np.concatenate([layer.c for layer in stack])
            np.testing.assert_allclose(pages.field(f"{part}_c")[0], c, rtol=1e-5, atol=1e-5)
        forecast = tensors["next.weight"] @ signal + tensors["next.bias"]
        np.testing.assert_allclose(pages.field("forecast")[0], forecast, rtol=0, atol=2e-5)


def test_gates_of_the_reference_open_and_close() -> None:
    """The comparison above would mean little if every gate stayed half open."""
    tensors, x = weights(32, 1), driving(2, series=1)[:, 0]
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
