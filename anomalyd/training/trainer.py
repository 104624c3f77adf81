"""Fits the autoencoder: truncated back-propagation through time with carried state. A pure function of its data and seed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anomalyd.detector.detector import Device
from anomalyd.detector.layout import Shape
from anomalyd.detector.network import Autoencoder, SequenceOutput
from anomalyd.detector.recipe import JOINT_LAGS
from anomalyd.errors import ConfigError

Floats32 = NDArray[np.float32]
Loss = Literal["student", "huber", "mse"]


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
    masking: float = 0.0
    """Share of the samples that the network is not shown: it reads the mean instead, as where a value is missing."""
    dropout: float = 0.0
    """Share of the outputs of encoder and decoder that are left out at each step."""
    early: int = 32
    """The first samples of a series weigh a tenth: nobody can know a series before having seen it."""
    loss: Loss = "student"
    """Student-t with a learned scale follows how noisy each value is; Huber and the square weigh all values alike, in units of their
    scale, the square large errors most."""


Progress = Callable[[int, int, float], None]
"""Told after each step how many are done, of how many, and its loss."""
Watch = Callable[[Autoencoder, int], bool]
"""Looks at the network after each step, given how many are done, and says whether to stop."""


def fit(
    inputs: Floats32,
    targets: Floats32,
    shape: Shape,
    plan: Plan,
    seed: int,
    progress: Progress | None = None,
    linear: Tensor | None = None,
    make: Callable[[Shape, int], Autoencoder] = Autoencoder,
    *,
    counts: Floats32 | None = None,
    draw: Floats32 | None = None,
    watch: Watch | None = None,
    device: str = "cpu",
) -> tuple[Autoencoder, float]:
    """Trains one network on many series.

    Equal arguments give equal weights on the same machine with the same number of threads.

    Args:
        inputs: (N, T, I), from the detector's own front end.
        targets: what has to be reconstructed, (N, T, F).
        shape: of the network.
        plan: how to train.
        seed: of weights and draws.
        progress: told after each step.
        linear: the linear part of a joint forecast, the weight of `Autoencoder.linear`, which stays as it is; None: there is none.
        make: (shape, window) → the network to begin with.
        counts: how much each step counts, (N, T), 0 where a series has ended; None: all alike.
        draw: how often each series is drawn, (N,), in any unit; None: all equally often.
        watch: may end the training early.
        device: of torch, where the network is trained; what is drawn is drawn on the CPU, so it is the same on all.

    Returns:
        The network, on the CPU, and the mean loss of the last tenth of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network = make(shape, plan.window)
    network.dropout = plan.dropout
    if network.linear is not None:
        weight = torch.zeros_like(network.linear.weight) if linear is None else linear
        network.linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    network.to(device)
    optimiser = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], plan.learning_rate, weight_decay=plan.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.steps)
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
    weight_of = None if counts is None else torch.from_numpy(counts).to(device)
    odds = None if draw is None else torch.from_numpy(draw)
    known = None if network.linear is None else network.linear(lagged(x)).detach()
    stretches = max(1, x.shape[1] // plan.stretch)
    losses: list[float] = []
    done = 0
    stopped = False
    while done < plan.steps and not stopped:
        if odds is None:
            members = torch.randint(len(x), (min(plan.batch, len(x)),), generator=generator)
        else:
            members = torch.multinomial(odds, plan.batch, replacement=True, generator=generator)
        members = members.to(device)
        state = None
        for k in range(stretches):
            if done == plan.steps or stopped:
                break
            here = slice(k * plan.stretch, (k + 1) * plan.stretch)
            given, wanted = x[members, here], y[members, here]
            out = network(_disturbed(given, plan, generator), state)
            state = _detached(out.state)
            following = y[members, here.stop : here.stop + 1] if here.stop < y.shape[1] else wanted[:, -1:]
            earlier = y[members, max(0, here.start - plan.window + 1) : here.start]
            coming = torch.cat([wanted[:, 1:], following], dim=1)
            if known is not None:
                coming = coming - known[members, here]
            counted = None if weight_of is None else weight_of[members, here]
            loss = _loss(out, wanted, earlier, coming, plan, first=k == 0, counts=counted)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call] # torch does not annotate it
            torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
            done += 1
            if progress:
                progress(done, plan.steps, losses[-1])
            stopped = watch is not None and watch(network, done)
    return network.cpu(), float(np.mean(losses[-max(1, len(losses) // 10) :]))


@torch.inference_mode()
def loss_of(network: Autoencoder, inputs: Floats32, targets: Floats32, counts: Floats32, plan: Plan) -> float:
    """The loss of series that were not trained on, from a fresh state; arguments as those of `fit`. The last step has no next one."""
    device = _device(network)
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)
    weight = torch.from_numpy(counts).clone().to(device)
    weight[:, -1] = 0.0
    coming = torch.cat([y[:, 1:], y[:, -1:]], dim=1)
    if network.linear is not None:
        coming = coming - network.linear(lagged(x))
    network.eval()
    loss = float(_loss(network(x), y, y[:, :0], coming, plan, first=False, counts=weight))
    network.train()
    return loss


@torch.inference_mode()
def guesses(network: Autoencoder, inputs: Floats32) -> tuple[Floats32, Floats32]:
    """What the network makes of series from a fresh state: of each value when it was the newest, and of the next one, (N, T, F) both."""
    x = torch.from_numpy(inputs).to(_device(network))
    network.eval()
    out = network(x)
    network.train()
    following = out.next if network.linear is None else out.next + network.linear(lagged(x))
    return out.window[..., : following.shape[2]].cpu().numpy(), following.cpu().numpy()


def device_for(wanted: Device) -> str:
    """Where to train: auto is the GPU where there is one.

    Raises:
        ConfigError: a GPU was asked for, and torch sees none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("device: cuda, but torch sees no GPU; use cpu or auto")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _device(network: Autoencoder) -> torch.device:
    return network.newest.weight.device


def _disturbed(given: Tensor, plan: Plan, generator: torch.Generator) -> Tensor:
    """Inputs (B, T, I) as the network gets to see them in training."""
    if plan.input_noise:
        given = given + plan.input_noise * torch.randn(given.shape, generator=generator).to(given.device)
    if plan.masking:
        given = given * (torch.rand((*given.shape[:2], 1), generator=generator) >= plan.masking).to(given.device)
    return given


def _detached(state: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    (a, b), (c, d) = state
    return (a.detach(), b.detach()), (c.detach(), d.detach())


def lagged(x: Tensor) -> Tensor:
    """The inputs (N, T, F) that the linear part of a joint forecast sees at each step, (N, T, lags * F); zeros before the first."""
    steps = x.shape[1]
    return torch.cat([torch.nn.functional.pad(x, (0, 0, lag, 0))[:, :steps] for lag in JOINT_LAGS], dim=2)


def _loss(
    out: SequenceOutput, wanted: Tensor, earlier: Tensor, coming: Tensor, plan: Plan, *, first: bool, counts: Tensor | None = None
) -> Tensor:
    """Loss of the W newest values and of the next one, equal weights.

    `earlier` are up to W - 1 targets before this stretch, `coming` what the forecast should be at each step, `counts` (B, T) how much
    each step does.
    """
    w, f = plan.window, wanted.shape[2]
    missing = w - 1 - earlier.shape[1]
    padded = torch.cat([earlier.new_zeros(earlier.shape[0], missing, f), earlier, wanted], dim=1)  # (B, W - 1 + T, F)
    # lags 0 … W - 1 of every step, newest first, as the heads give them
    window = torch.cat([padded[:, w - 1 - lag : padded.shape[1] - lag] for lag in range(w)], dim=2)
    weight = wanted.new_ones(wanted.shape[1])
    if first:
        weight[: plan.early] = 0.1
    if plan.loss == "student":
        both = _student(window - out.window, out.window_log_scale), _student(coming - out.next, out.next_log_scale)
    else:
        of = torch.nn.functional.huber_loss if plan.loss == "huber" else torch.nn.functional.mse_loss
        both = of(out.window, window, reduction="none"), of(out.next, coming, reduction="none")
    if counts is not None:
        each, weight = both[0].mean(dim=2) + both[1].mean(dim=2), counts * weight
        return (each * weight).sum() / weight.sum().clamp(min=1.0)
    error = both[0].mean(dim=(0, 2)) + both[1].mean(dim=(0, 2))
    return (error * weight).sum() / weight.sum()


def _student(residual: Tensor, log_scale: Tensor, nu: float = 4.0) -> Tensor:
    """Negative log-likelihood of a Student-t distribution up to a constant, with a learned scale kept in a sane range."""
    log_scale = log_scale.clamp(-5.0, 3.0)
    return log_scale + (nu + 1.0) / 2.0 * torch.log1p((residual / log_scale.exp()) ** 2 / nu)
