"""Recurrent layers for sequences a thousand steps long: loops over time compiled, forward and backward, with torch around them.

torch's own loops spend most of their time between operators when a layer is small: with 16 units and 16 sequences its RNN took 97 us a
step for forward and backward, its GRU 295; these took 10 and 25 on the same busy processor. Its LSTM, 27, is no slower than this one, 30,
which is here so that all cells go the same way. Weights, their layout and their start stay torch's.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from anomalyd.detector.step_cpu import tanh
from anomalyd.jit import njit

BATCH: Final = 16
"""Sequences side by side: a constant of the machine code."""

F4 = np.float32
ONE, HALF = F4(1.0), F4(0.5)
Floats = NDArray[np.float32]
Pair = tuple[Tensor, Tensor]


class Weights(NamedTuple):
    """Of a layer, in torch's layout: gates r, z, n of a GRU, i, f, g, o of an LSTM."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor
    b_hh: Tensor

    @classmethod
    def of(cls, layer: nn.RNNBase) -> Self:
        """Those of a layer's parameters that a recurrence reads."""
        named = dict(layer.named_parameters())
        return cls(*(named[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")))


# One recurrent layer, forward and backward, letters as in torch's documentation. `u` (G * H, H) are the recurrent weights of the G
# gates. `gates` (T, G * H, B) comes in as input products with biases; backward overwrites it with its gradient. `h` (T + 1, H, B) and
# `memory`, likewise: the cells of an LSTM; of a GRU the recurrent products of the candidate, which come in as their bias; nothing of
# an RNN. `dh` (H, B) is the gradient of the last h.


@njit(forceinline=True)
def sigmoid(x: np.float32) -> np.float32:
    """Logistic function."""
    return np.float32(HALF * tanh(HALF * x) + HALF)


@njit
def add_products(w: Floats, v: Floats, out: Floats) -> None:
    """`out` (M, B) += `w` (M, N) . `v` (N, B), four of N at a time."""
    for row in range(w.shape[0]):
        sums = out[row]
        for j in range(0, w.shape[1], 4):
            a, b, c, d = w[row, j], w[row, j + 1], w[row, j + 2], w[row, j + 3]
            p, q, r, s = v[j], v[j + 1], v[j + 2], v[j + 3]
            for k in range(BATCH):
                sums[k] += a * p[k] + b * q[k] + c * r[k] + d * s[k]


@njit
def rnn_forward(u: Floats, gates: Floats, h: Floats, memory: Floats) -> None:  # noqa: ARG001 - all cells are called alike
    """Plain: h = tanh(W x + U h + b)."""
    for t in range(len(gates)):
        add_products(u, h[t], gates[t])
        a, after = gates[t].reshape(-1), h[t + 1].reshape(-1)
        for k in range(len(after)):
            after[k] = tanh(a[k])


@njit
def rnn_backward(u: Floats, gates: Floats, h: Floats, memory: Floats, dh: Floats) -> None:  # noqa: ARG001
    """Turns `gates` into their gradient."""
    transposed, d = np.ascontiguousarray(u.T), dh.reshape(-1)
    for t in range(len(gates) - 1, -1, -1):
        a, after = gates[t].reshape(-1), h[t + 1].reshape(-1)
        for k in range(len(d)):
            a[k] = d[k] * (ONE - after[k] * after[k])
        d[:] = 0
        add_products(transposed, gates[t], dh)


@njit
def gru_forward(u: Floats, gates: Floats, h: Floats, memory: Floats) -> None:
    """r, z = sigmoid(W x + U h + b); n = tanh(W x + b + r * (U h + b)); h = (1 - z) * n + z * h."""
    units = u.shape[1]
    n_at = units * BATCH
    for t in range(len(gates)):
        add_products(u[: 2 * units], h[t], gates[t])
        add_products(u[2 * units :], h[t], memory[t + 1])
        a, m, before, after = gates[t].reshape(-1), memory[t + 1].reshape(-1), h[t].reshape(-1), h[t + 1].reshape(-1)
        rs, zs, ns = a[:n_at], a[n_at : 2 * n_at], a[2 * n_at :]
        for k in range(len(after)):
            r, z = sigmoid(rs[k]), sigmoid(zs[k])
            n = tanh(ns[k] + r * m[k])
            rs[k], zs[k], ns[k] = r, z, n
            after[k] = n + z * (before[k] - n)


@njit
def gru_backward(u: Floats, gates: Floats, h: Floats, memory: Floats, dh: Floats) -> None:
    """Turns `gates` and `memory` into their gradients."""
    units = u.shape[1]
    n_at = units * BATCH
    of_gates, of_candidate, d = np.ascontiguousarray(u[: 2 * units].T), np.ascontiguousarray(u[2 * units :].T), dh.reshape(-1)
    for t in range(len(gates) - 1, -1, -1):
        a, m, before = gates[t].reshape(-1), memory[t + 1].reshape(-1), h[t].reshape(-1)
        rs, zs, ns = a[:n_at], a[n_at : 2 * n_at], a[2 * n_at :]
        for k in range(len(d)):
            r, z, n = rs[k], zs[k], ns[k]
            dn = d[k] * (ONE - z) * (ONE - n * n)
            rs[k], zs[k], ns[k] = dn * m[k] * r * (ONE - r), d[k] * (before[k] - n) * z * (ONE - z), dn
            m[k] = dn * r
            d[k] *= z
        add_products(of_gates, gates[t, : 2 * units], dh)
        add_products(of_candidate, memory[t + 1], dh)


@njit
def lstm_forward(u: Floats, gates: Floats, h: Floats, memory: Floats) -> None:
    """i, f, o = sigmoid(W x + U h + b); g = tanh(W x + U h + b); c = f * c + i * g; h = o * tanh(c)."""
    n = u.shape[1] * BATCH
    for t in range(len(gates)):
        add_products(u, h[t], gates[t])
        a, c, c_after, after = gates[t].reshape(-1), memory[t].reshape(-1), memory[t + 1].reshape(-1), h[t + 1].reshape(-1)
        i_s, f_s, g_s, o_s = a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :]
        for k in range(n):
            i, f, g, o = sigmoid(i_s[k]), sigmoid(f_s[k]), tanh(g_s[k]), sigmoid(o_s[k])
            i_s[k], f_s[k], g_s[k], o_s[k] = i, f, g, o
            c_after[k] = f * c[k] + i * g
            after[k] = o * tanh(c_after[k])


@njit
def lstm_backward(u: Floats, gates: Floats, h: Floats, memory: Floats, dh: Floats) -> None:  # noqa: ARG001
    """Turns `gates` into their gradient."""
    n = u.shape[1] * BATCH
    transposed, d, dc = np.ascontiguousarray(u.T), dh.reshape(-1), np.zeros(n, F4)
    for t in range(len(gates) - 1, -1, -1):
        a, c, c_after = gates[t].reshape(-1), memory[t].reshape(-1), memory[t + 1].reshape(-1)
        i_s, f_s, g_s, o_s = a[:n], a[n : 2 * n], a[2 * n : 3 * n], a[3 * n :]
        for k in range(n):
            i, f, g, o, y = i_s[k], f_s[k], g_s[k], o_s[k], tanh(c_after[k])
            e = dc[k] + d[k] * o * (ONE - y * y)
            i_s[k], f_s[k], g_s[k] = e * g * i * (ONE - i), e * c[k] * f * (ONE - f), e * i * (ONE - g * g)
            o_s[k] = d[k] * y * o * (ONE - o)
            dc[k] = e * f
        d[:] = 0
        add_products(transposed, gates[t], dh)


class Family(NamedTuple):
    """A kind of cell: torch's module, which holds and initialises the weights, and the loops over time."""

    module: type[nn.RNN | nn.GRU | nn.LSTM]
    forward: Callable[[Floats, Floats, Floats, Floats], None]
    backward: Callable[[Floats, Floats, Floats, Floats, Floats], None]


FAMILIES: Final = {
    "rnn": Family(nn.RNN, rnn_forward, rnn_backward),
    "gru": Family(nn.GRU, gru_forward, gru_backward),
    "lstm": Family(nn.LSTM, lstm_forward, lstm_backward),
}


class Recurrence(torch.autograd.Function):
    """Last h and memory, each (H, B), of a layer that reads x (T, I, B) from there on. Gradients reach the weights, not x and state."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's
        family: Family,
        x: Tensor,
        state: Pair,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor,
        b_hh: Tensor,
    ) -> Pair:
        """Runs the loop forward."""
        steps, units = len(x), w_hh.shape[1]
        h, memory = (torch.empty(steps + 1, units, BATCH) for _ in range(2))
        h[0], memory[0] = state
        bias = b_ih + b_hh
        if family.module is nn.GRU:
            bias[2 * units :] = b_ih[2 * units :]
            memory[1:] = b_hh[2 * units :, None]
        gates = torch.matmul(w_ih, x) + bias[:, None]
        family.forward(w_hh.numpy(), gates.numpy(), h.numpy(), memory.numpy())
        ctx.family, ctx.tensors = family, (x, w_hh, gates, h, memory)
        last = h[-1].clone(), memory[-1].clone()
        ctx.mark_non_differentiable(last[1])
        return last

    @staticmethod
    def backward(ctx: Any, dh: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's
        """Runs it backward; once only, because it works in place."""
        x, w_hh, gates, h, memory = ctx.tensors
        ctx.family.backward(w_hh.numpy(), gates.numpy(), h.numpy(), memory.numpy(), dh.contiguous().numpy().copy())
        of_input = _flat(gates)
        of_state = torch.cat([of_input[: 2 * w_hh.shape[1]], _flat(memory[1:])]) if ctx.family.module is nn.GRU else of_input
        return None, None, None, of_input @ _flat(x).T, of_state @ _flat(h[:-1]).T, of_input.sum(1), of_state.sum(1)


def _flat(a: Tensor) -> Tensor:
    """(T, K, B) to (K, T * B)."""
    return a.transpose(0, 1).reshape(a.shape[1], -1)
