"""Fits the autoencoder: truncated back-propagation through time with carried state. A pure function of its data and seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyd.detector.layout import Shape
from anomalyd.detector.network import Autoencoder, SequenceOutput
from anomalyd.detector.recipe import JOINT_LAGS

Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Plan:
    """How to train."""

    steps: int = 600
    batch: int = 192
    stretch: int = 128
    """Samples between detachments: gradients reach at most this far back, the state is carried on."""
    window: int = 16
    """W: how many of the newest values are reconstructed."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    clip: float = 1.0
    input_noise: float = 0.0
    """Standard deviation of noise added to the inputs, not to the targets (denoising)."""
    early: int = 32
    """The first samples of a series weigh a tenth: nobody can know a series before having seen it."""
    loss: Literal["student", "huber"] = "student"
    """Student-t with a learned scale follows how noisy each value is; Huber weighs all values alike, in units of their scale."""


Progress = Callable[[int, int, float], None]


def fit(
    inputs: Floats32,
    targets: Floats32,
    shape: Shape,
    plan: Plan,
    seed: int,
    progress: Progress | None = None,
    linear: Tensor | None = None,
    make: Callable[[Shape, int], Autoencoder] = Autoencoder,
) -> tuple[Autoencoder, float]:
    """Trains one network on many series.

    `inputs` (N, T, I) and `targets` (N, T, F) come from the detector's own front end; `linear` is the linear part of a joint forecast,
    the weight of `Autoencoder.linear`, and stays as it is; None: there is none. `make` (shape, window) is the network to begin with.
    Returns the network and the mean loss of the last tenth of the steps. Equal arguments give equal weights on the same machine with the
    same number of threads.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = make(shape, plan.window)
    if network.linear is not None:
        weight = torch.zeros_like(network.linear.weight) if linear is None else linear
        network.linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.steps)
    x, y = torch.from_numpy(inputs), torch.from_numpy(targets)
    known = None if network.linear is None else network.linear(lagged(x)).detach()
    stretches = max(1, x.shape[1] // plan.stretch)
    losses: list[float] = []
    done = 0
    while done < plan.steps:
        members = torch.randint(len(x), (min(plan.batch, len(x)),), generator=generator)
        state = None
        for k in range(stretches):
            if done == plan.steps:
                break
            here = slice(k * plan.stretch, (k + 1) * plan.stretch)
            given, wanted = x[members, here], y[members, here]
            if plan.input_noise:
                given = given + plan.input_noise * torch.randn(given.shape, generator=generator)
            out = network(given, state)
            state = _detached(out.state)
            following = y[members, here.stop : here.stop + 1] if here.stop < y.shape[1] else wanted[:, -1:]
            earlier = y[members, max(0, here.start - plan.window + 1) : here.start]
            coming = torch.cat([wanted[:, 1:], following], dim=1)
            if known is not None:
                coming = coming - known[members, here]
            loss = _loss(out, wanted, earlier, coming, plan, first=k == 0)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            done += 1
            if progress:
                progress(done, plan.steps, losses[-1])
    return network, float(np.mean(losses[-max(1, plan.steps // 10) :]))


def _detached(state: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (a, b), (c, d) = state
    return (a.detach(), b.detach()), (c.detach(), d.detach())


def lagged(x: Tensor) -> Tensor:
    """The inputs (N, T, F) that the linear part of a joint forecast sees at each step, (N, T, lags * F); zeros before the first."""
    steps = x.shape[1]
    return torch.cat([torch.nn.functional.pad(x, (0, 0, lag, 0))[:, :steps] for lag in JOINT_LAGS], dim=2)


def _loss(out: SequenceOutput, wanted: Tensor, earlier: Tensor, coming: Tensor, plan: Plan, *, first: bool) -> Tensor:
    """Loss of the W newest values and of the next one, equal weights.

    `earlier` are up to W - 1 targets before this stretch, `coming` what the forecast should be at each step.
    """
    w, f = plan.window, wanted.shape[2]
    missing = w - 1 - earlier.shape[1]
    padded = torch.cat([earlier.new_zeros(earlier.shape[0], missing, f), earlier, wanted], dim=1)  # (B, W - 1 + T, F)
    # lags 0 … W - 1 of every step, newest first, as the heads give them
    window = torch.cat([padded[:, w - 1 - lag : padded.shape[1] - lag] for lag in range(w)], dim=2)
    weight = torch.ones(wanted.shape[1])
    if first:
        weight[: plan.early] = 0.1
    if plan.loss == "huber":
        both = (
            torch.nn.functional.huber_loss(out.window, window, reduction="none"),
            torch.nn.functional.huber_loss(out.next, coming, reduction="none"),
        )
    else:
        both = _student(window - out.window, out.window_log_scale), _student(coming - out.next, out.next_log_scale)
    error = both[0].mean(dim=(0, 2)) + both[1].mean(dim=(0, 2))
    return (error * weight).sum() / weight.sum()


def _student(residual: Tensor, log_scale: Tensor, nu: float = 4.0) -> Tensor:
    """Negative log-likelihood of a Student-t distribution up to a constant, with a learned scale kept in a sane range."""
    log_scale = log_scale.clamp(-5.0, 3.0)
    return log_scale + (nu + 1.0) / 2.0 * torch.log1p((residual / log_scale.exp()) ** 2 / nu)
