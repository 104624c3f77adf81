"""The same autoencoder with other cells, as torch modules to train, and their weights as the compiled step takes them.

The step keeps four blocks of gates for each layer, as an LSTM has. A GRU fits in them: reset gate, update gate, and the candidate's two
products, with input and with state, which the reset gate keeps apart (Cho et al. 2014, as cuDNN and torch have it). A plain RNN (Elman
1990) is a GRU whose gates stand still, the reset gate open and the update gate shut: see `kernels.build_gru`.
"""

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomalyd.detector.layout import Shape
from anomalyd.detector.network import Autoencoder, State
from anomalyd.detector.weights import tensor_shapes

Tensors = dict[str, NDArray[np.float32]]

_STILL: Final = 100.0
"""A bias with which the step's sigmoid is 1, or 0 for its negative, whatever the inputs."""


class Recurrent(nn.Module):
    """A recurrent part without a cell state, to be called as an LSTM is: in the place of c it carries h a second time."""

    def __init__(self, kind: type[nn.RNN | nn.GRU], inputs: int, shape: Shape) -> None:
        super().__init__()
        self.inner = kind(inputs, shape.units, shape.layers, batch_first=True)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """A stretch x (B, T, I) from a state (L, B, H): outputs (B, T, H) and the state after."""
        out, h = self.inner(x, None if state is None else state[0])
        return out, (h, h)


class GruAutoencoder(Autoencoder):
    """The autoencoder with GRU cells."""

    def recurrent(self, inputs: int) -> nn.Module:
        """See Autoencoder."""
        return Recurrent(nn.GRU, inputs, self.shape)


class RnnAutoencoder(Autoencoder):
    """The autoencoder with cells h = tanh(W x + U h + b)."""

    def recurrent(self, inputs: int) -> nn.Module:
        """See Autoencoder."""
        return Recurrent(nn.RNN, inputs, self.shape)


def parameters(network: Autoencoder) -> int:
    """Numbers that scoring needs: those of both recurrent parts, the code and the heads `newest` and `next`."""
    scoring = (network.encoder, network.code, network.decoder, network.newest, network.next)
    return sum(tensor.numel() for part in scoring for tensor in part.parameters())


def tensors(network: Autoencoder) -> Tensors:
    """The weights by the names and shapes of `weights.tensor_shapes`, whatever the cells are."""
    state = {name.replace(".inner.", "."): tensor.numpy() for name, tensor in network.state_dict().items()}
    widen = {GruAutoencoder: _gru, RnnAutoencoder: _rnn}.get(type(network))
    return {name: state[name] if widen is None or "_l" not in name else widen(name, state[name]) for name in tensor_shapes(network.shape)}


def _gru(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    reset, update, candidate = np.split(tensor, 3)
    nothing = np.zeros_like(candidate)
    return np.concatenate([reset, update, *((candidate, nothing) if "_ih_" in name else (nothing, candidate))])


def _rnn(name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
    still = np.zeros_like(tensor) if "weight" in name or "_hh_" in name else np.full_like(tensor, _STILL)
    return _gru(name, np.concatenate([still, -still, tensor]))


def untrained(shape: Shape, seed: int) -> Autoencoder:
    """An LSTM network as training begins with it."""
    torch.manual_seed(seed)
    return Autoencoder(shape)
