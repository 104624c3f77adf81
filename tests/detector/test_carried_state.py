"""State is carried: a series fed sample by sample is the same as the whole sequence at once."""

import numpy as np
import pytest
import torch

from anomalyd.detector import Detector, Shape
from anomalyd.detector.network import Autoencoder
from anomalyd.training.features import network_inputs
from tests.detector.population import MINUTE_MS, Floats, assert_same_bits, batch_of, every, feed, in_torch, joined, mixed, untrained

SAMPLES = 600


def wave(samples: int = SAMPLES) -> Floats:
    rng = np.random.default_rng(5)
    return np.asarray(30.0 + 10.0 * np.sin(np.arange(samples) / 20.0) + rng.standard_normal(samples))


@pytest.mark.parametrize("make", [pytest.param(None, id="shipped"), pytest.param(Shape(1, 50, 2, 3, joint=False), id="50-units-2-layers")])
def test_compiled_state_and_forecast_equal_the_sequence_in_torch(detector: Detector, make: Shape | None) -> None:
    """h and c of every layer, and every forecast, against torch's own LSTM over the whole sequence."""
    one = Detector(untrained(make), "cpu") if make else detector
    value, shape = wave(), one.layout.shape
    inputs, _ = network_inputs(value[None, :, None], np.array([float(MINUTE_MS)]), shape)
    network = Autoencoder.from_artifact(one.artifact).eval()
    with torch.inference_mode():
        whole = network(torch.from_numpy(inputs))

    pages, forecasts = one.new_pages(1), []
    for time_ms, x in zip(every(SAMPLES), value, strict=True):
        one.step(pages, batch_of(0, time_ms, x))
        forecasts.append(pages.field("forecast")[0, 0])

    np.testing.assert_allclose(forecasts, whole.next[0, :, 0].numpy(), rtol=0, atol=2e-4)
    for part, state in zip(("encoder", "decoder"), whole.state, strict=True):
        for name, tensor in zip("hc", state, strict=True):
            np.testing.assert_allclose(pages.field(f"{part}_{name}")[0], tensor.numpy().ravel(), rtol=2e-4, atol=2e-4)


def test_network_carries_its_state_from_stretch_to_stretch(detector: Detector) -> None:
    """Torch over the sequence at once, in stretches, and step by step; training relies on it."""
    network = Autoencoder.from_artifact(detector.artifact).eval()
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((3, 60, 2)).astype(np.float32))
    zeros = torch.zeros(1, 3, 32)
    with torch.inference_mode():
        whole = network(x)
        first = network(x[:, :25])
        second = network(x[:, 25:], first.state)
        encoder, decoder, steps = (zeros, zeros), (zeros, zeros), []
        for t in range(60):
            out = network.step(x[:, t], encoder, decoder)
            encoder, decoder = out.encoder, out.decoder
            steps.append(out.next)

    torch.testing.assert_close(torch.cat([first.next, second.next], dim=1), whole.next, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(steps, dim=1), whole.next, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder, whole.state[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", range(13))
def test_one_batch_of_a_series_equals_as_many_batches_of_one(detector: Detector, kind: int) -> None:
    """Bit for bit, for every kind of series, late and repeated samples among them."""
    times, values = mixed(13, 250)
    at_once, one_by_one = detector.new_pages(1), detector.new_pages(1)

    whole = feed(detector, times[:, kind], values[:, kind], at_once)
    single = joined(detector.step(one_by_one, batch_of(0, t, x)) for t, x in zip(times[:, kind], values[:, kind], strict=True))

    assert_same_bits(whole, single)
    assert at_once.buffer.tobytes() == one_by_one.buffer.tobytes()


def test_one_batch_of_a_series_equals_as_many_batches_of_one_in_torch(detector: Detector) -> None:
    """Rounds: a row is stepped once a round, so that its samples see each other."""
    value = wave(60)
    step, at_once, one_by_one = in_torch(detector), detector.new_pages(1), detector.new_pages(1)

    whole = step(at_once, batch_of(0, every(60), value))
    single = joined(step(one_by_one, batch_of(0, t, x)) for t, x in zip(every(60), value, strict=True))

    assert_same_bits(whole, single)
    assert at_once.buffer.tobytes() == one_by_one.buffer.tobytes()
