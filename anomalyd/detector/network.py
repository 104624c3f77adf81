"""The LSTM autoencoder as a torch module: what training fits and what the torch backend runs.

An encoder LSTM reads the inputs, a linear bottleneck of size Z squeezes its hidden state into a code at every step, a decoder LSTM
reads the codes and reconstructs the last W values of u, newest first, and forecasts the next one. Both LSTMs carry their state
from step to step; nothing is ever re-encoded.

The heads for the older W - 1 values and for the learned scales exist for training alone: they make the code remember more than the
newest value, and keep bursts from dominating the loss. Scoring uses the heads `newest` and `next`.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from anomalyd.detector.artifact import Artifact
from anomalyd.detector.layout import Shape
from anomalyd.detector.recipe import JOINT_LAGS
from anomalyd.detector.weights import tensor_shapes

State = tuple[Tensor, Tensor]


class StepOutput(NamedTuple):
    """One step: heads (B, F) and code (B, Z), and the states (L, B, H) after it."""

    newest: Tensor
    next: Tensor
    code: Tensor
    encoder: State
    decoder: State


class SequenceOutput(NamedTuple):
    """A sequence (B, T, ...): means and log scales of the W newest values at each step, and of the next one."""

    window: Tensor
    """(B, T, W * F), newest first."""
    window_log_scale: Tensor
    next: Tensor
    """(B, T, F)"""
    next_log_scale: Tensor
    state: tuple[State, State]


class Autoencoder(nn.Module):
    """Encoder LSTM, linear code, decoder LSTM, linear heads. `window` W is only used in training."""

    def __init__(self, shape: Shape, window: int = 1) -> None:
        super().__init__()
        self.shape, self.window = shape, window
        self.dropout = 0.0
        """Share of the outputs of encoder and decoder that training leaves out; scoring never does."""
        out = shape.features if shape.joint else 1
        self.encoder = self.recurrent(shape.inputs)
        self.code = nn.Linear(shape.units, shape.latent)
        self.decoder = self.recurrent(shape.latent)
        self.newest = nn.Linear(shape.units, out)
        self.next = nn.Linear(shape.units, out)
        self.older = nn.Linear(shape.units, out * (window - 1)) if window > 1 else None
        self.log_scale = nn.Linear(shape.units, out * (window + 1))
        self.linear = nn.Linear(len(JOINT_LAGS) * out, out, bias=False) if shape.joint else None
        """Of several features: the linear part of the forecast, a map of the newest inputs; `next` is what the decoder adds to it."""

    def recurrent(self, inputs: int) -> nn.Module:
        """One of the two recurrent parts: an LSTM, called with inputs (B, T, I) and a state."""
        lstm = nn.LSTM(inputs, self.shape.units, self.shape.layers, batch_first=True)
        with torch.no_grad():  # a forget gate that starts open lets gradients reach far back
            for layer in range(self.shape.layers):
                getattr(lstm, f"bias_hh_l{layer}")[self.shape.units : 2 * self.shape.units] = 1.5
        return lstm

    @classmethod
    def from_artifact(cls, artifact: Artifact) -> Self:
        """The network with an artifact's weights, for scoring."""
        network = cls(artifact.shape)
        tensors = {name: torch.from_numpy(artifact.tensors[name].copy()) for name in tensor_shapes(artifact.shape)}
        network.load_state_dict(tensors, strict=False)
        return network

    def step(self, x: Tensor, encoder: State, decoder: State) -> StepOutput:
        """One sample of each of B series: x (B, I)."""
        h, encoder = self.encoder(x[:, None, :], encoder)
        code = self.code(h)
        g, decoder = self.decoder(code, decoder)
        return StepOutput(self.newest(g[:, 0]), self.next(g[:, 0]), code[:, 0], encoder, decoder)

    def forward(self, x: Tensor, state: tuple[State, State] | None = None) -> SequenceOutput:
        """A stretch of T samples of each of B series: x (B, T, I), continuing from `state`."""
        h, encoder = self.encoder(x, state[0] if state else None)
        g, decoder = self.decoder(self.code(self._thinned(h)), state[1] if state else None)
        g = self._thinned(g)
        window = torch.cat([self.newest(g), self.older(g)], dim=2) if self.older else self.newest(g)
        scales = self.log_scale(g)
        width = window.shape[2]
        return SequenceOutput(window, scales[..., :width], self.next(g), scales[..., width:], (encoder, decoder))

    def _thinned(self, h: Tensor) -> Tensor:
        return nn.functional.dropout(h, self.dropout, self.training) if self.dropout else h
