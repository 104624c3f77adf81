"""How far back can a recurrent network learn to remember? LSTM, GRU and plain RNN on lags of 10 to 1,000 steps, trained alike.

    python benchmarks/long_memory.py [--lags 10 30 100 300 1000] [--cells rnn lstm ...] [--updates 600] [--seeds 2] [--json]

The task, "remember the first symbol", is the simplest in which a gradient has to bridge a known lag. A sequence has a line of values and
a line that marks its first step. The first value is +1 or -1, the `lag` values after it are noise of the same size on the same line, and
after the last of them the network has to say which it was. Chance is one half. It is the two-sequence problem, noise and signal on one
line, of [1] and of [2, experiment 3], with the mark of the adding problem [2, experiment 4]. Nothing nearer than the lag helps: no later
value knows the answer.

Why it is hard: the gradient that says "keep the first value" comes through `lag` steps, and each multiplies it: in a plain RNN by
the recurrent matrix and the slope of tanh, whose product vanishes or explodes [1]; in an LSTM mainly by the forget gate f. A gate half
open (a bias of 0) leaves 10^-30 of a gradient after 100 steps; the bias of 1.5 that `anomalyd/detector/network.py` sets, f = 0.82,
leaves 10^-9. The cell of 1997, for which 1,000 steps were claimed, had no forget gate: f = 1, the constant error carousel. The gate came
in 2000 [3]. So the start decides, and each cell is measured with several:

    rnn             torch's own: uniform within 1 / sqrt(units)
    rnn identity    the recurrent matrix is the identity [4], here with tanh
    gru             torch's own
    gru chrono      biases of the update gate log U(1, 999), so that units forget after 1 to 1,000 steps [5]
    lstm            torch's own: forget bias about 0
    lstm anomalyd   forget bias 1.5, as in network.py
    lstm chrono     forget biases log U(1, 999), input biases the negative of them [5]
    lstm 1997       a forget gate that is open and stays so, the cell of [2]: by a bias so large that the gate's gradient is 0

All have the same number of units (so an LSTM has four times the weights of an RNN, a GRU three times), optimiser, learning rate and decay
(those of `training/trainer.py`), sequences for a seed, budget of updates, and rule to stop: no error in the last 400 sequences, each of
which is seen once. Each is trained with gradients clipped to a norm of 1, as the trainer does, and unclipped. A gradient that is not
finite changes nothing and is counted.

The last table is about state that is carried beyond the stretch that is trained. anomalyd carries state for as long as a series lives, but
is trained by back-propagation truncated to 128 steps (`Plan.stretch`), so for a lag of 300 no gradient ever connects the answer with
the symbol. What is learned all the same, with the state carried? Without it, nothing could be: the last 128 values do not know the
answer. And does what was learned on a lag of 100 hold at 300 and at 1,000?

[1] Y. Bengio, P. Simard, P. Frasconi: Learning long-term dependencies with gradient descent is difficult. IEEE Transactions on Neural
    Networks 5(2), 1994.
[2] S. Hochreiter, J. Schmidhuber: Long short-term memory. Neural Computation 9(8), 1997.
[3] F. Gers, J. Schmidhuber, F. Cummins: Learning to forget: continual prediction with LSTM. Neural Computation 12(10), 2000.
[4] Q. Le, N. Jaitly, G. Hinton: A simple way to initialize recurrent networks of rectified linear units. arXiv:1504.00941, 2015.
[5] C. Tallec, Y. Ollivier: Can recurrent neural networks warp time? ICLR 2018.
"""

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

from anomalyd.training.trainer import Plan  # noqa: E402  after the path
from benchmarks.recurrence import BATCH, FAMILIES, Pair, Recurrence, Weights  # noqa: E402

UNITS: Final = 16
LONGEST: Final = 1000
"""What chrono initialisation is told of how long memory may have to be; the same for every lag."""
EXPLODED: Final = 10.0
"""A gradient norm beyond it counts as exploded: ten times what is clipped."""
STREAK: Final = 25
"""Updates without an error after which training ends."""
TESTED: Final = 32
"""Batches of a test."""
SOLVED: Final = 0.99
BEYOND: Final = 300
"""A lag beyond the stretch of anomalyd's training."""
PLAN: Final = Plan()


class Network(nn.Module):
    """A layer of one family and a logit."""

    def __init__(self, cell: str, seed: int) -> None:
        super().__init__()
        name, _, start = cell.partition(" ")
        self.family = FAMILIES[name]
        torch.manual_seed(seed)
        self.layer = self.family.module(2, UNITS)
        self.head = nn.Linear(UNITS, 1)
        with torch.no_grad():
            STARTS[start](Weights.of(self.layer))

    def forward(self, x: Tensor, reach: int | None = None) -> Tensor:
        """Logits (B,) after x (T, 2, B). Gradients reach back `reach` steps; state is carried over all of them."""
        state = torch.zeros(UNITS, BATCH), torch.zeros(UNITS, BATCH)
        split = max(0, len(x) - reach) if reach else 0
        if split:
            with torch.no_grad():
                state = self._advance(x[:split], state)
        h, _ = self._advance(x[split:], state)
        logits: Tensor = self.head(h.T)[:, 0]
        return logits

    def _advance(self, x: Tensor, state: Pair) -> Pair:
        after: Pair = Recurrence.apply(self.family, x, state, *Weights.of(self.layer))
        return after


def _identity(weights: Weights) -> None:
    nn.init.eye_(weights.w_hh)
    nn.init.zeros_(weights.b_ih)
    nn.init.zeros_(weights.b_hh)


def _forget_bias(weights: Weights) -> None:
    weights.b_hh[SECOND] = 1.5  # and b_ih, which is near 0, as in network.py


def _chrono(weights: Weights) -> None:
    keep = torch.empty(UNITS).uniform_(1.0, LONGEST - 1.0).log()
    nn.init.zeros_(weights.b_ih)
    nn.init.zeros_(weights.b_hh)
    weights.b_ih[SECOND] = keep
    if len(weights.b_ih) == 4 * UNITS:  # an LSTM, whose input gate is another
        weights.b_ih[:UNITS] = -keep


def _no_forget_gate(weights: Weights) -> None:
    weights.w_ih[SECOND] = 0.0
    weights.w_hh[SECOND] = 0.0
    weights.b_ih[SECOND] = 100.0


SECOND: Final = slice(UNITS, 2 * UNITS)
"""The gate that keeps: z of a GRU, f of an LSTM."""
STARTS: Final[dict[str, Callable[[Weights], None]]] = {
    "": lambda _: None,
    "identity": _identity,
    "anomalyd": _forget_bias,
    "chrono": _chrono,
    "1997": _no_forget_gate,
}
CELLS: Final = ("rnn", "rnn identity", "gru", "gru chrono", "lstm", "lstm anomalyd", "lstm chrono", "lstm 1997")


def sequences(lag: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Values and the mark (lag + 1, 2, B), and what is wanted (B,): 1.0 where the first value is +1."""
    x = torch.zeros(lag + 1, 2, BATCH)
    x[:, 0] = torch.randn(lag + 1, BATCH, generator=generator)
    wanted = torch.randint(2, (BATCH,), generator=generator).float()
    x[0, 0], x[0, 1] = 2.0 * wanted - 1.0, 1.0
    return x, wanted


@dataclass(frozen=True)
class Run:
    """What became of one network."""

    cell: str
    lag: int
    seed: int
    clipped: bool
    reach: int | None
    """Steps that gradients came back; None: all."""
    updates: int
    accuracy: dict[int, float]
    """By lag of the test: the lag of the training and longer ones, the weights as they are."""
    loss: float
    """Cross-entropy at the lag of the training, nats; chance is ln 2 = 0.693."""
    largest: float
    """The largest finite gradient norm, before clipping."""
    exploded: int
    """Updates with a norm beyond 10 or not finite."""
    not_finite: int
    seconds: float = field(compare=False)
    """Processor time; 0 where the run is the same as the clipped one."""

    @property
    def solved(self) -> bool:
        """Right in 99 of 100 sequences that it has never seen."""
        return self.accuracy[self.lag] >= SOLVED

    def __str__(self) -> str:
        how = "clipped" if self.clipped else "unclipped"
        return f"{self.cell}, lag {self.lag}, seed {self.seed}, {how}: {self.accuracy[self.lag]:.0%} after {self.updates} updates"


def train(cell: str, lag: int, seed: int, updates: int, *, clip: float, reach: int | None = None, longer: Sequence[int] = ()) -> Run:
    """Trains one network and tests it at its lag and at `longer` ones. Equal arguments give an equal run."""
    began = time.process_time()
    network, generator = Network(cell, seed), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(network.parameters(), PLAN.learning_rate, weight_decay=PLAN.weight_decay)
    norms: list[float] = []
    right = 0
    while len(norms) < updates and right < STREAK:
        x, wanted = sequences(lag, generator)
        logits = network(x, reach)
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits, wanted).backward()  # type: ignore[no-untyped-call] # torch does not annotate it
        norms.append(nn.utils.clip_grad_norm_(network.parameters(), clip).item())
        if math.isfinite(norms[-1]):
            optimiser.step()
        right = right + 1 if bool(((logits > 0) == (wanted > 0)).all()) else 0
    tests = {far: test(network, far) for far in (lag, *longer)}
    return Run(
        cell,
        lag,
        seed,
        math.isfinite(clip),
        reach,
        len(norms),
        {far: accuracy for far, (accuracy, _) in tests.items()},
        tests[lag][1],
        max((norm for norm in norms if math.isfinite(norm)), default=math.inf),
        sum(not norm <= EXPLODED for norm in norms),
        sum(not math.isfinite(norm) for norm in norms),
        time.process_time() - began,
    )


@torch.no_grad()
def test(network: Network, lag: int) -> tuple[float, float]:
    """Accuracy and loss on sequences that no training draws."""
    generator = torch.Generator().manual_seed(-1 - lag)
    logits, wanted = zip(*((network(x), wanted) for x, wanted in (sequences(lag, generator) for _ in range(TESTED))), strict=True)
    answers, truth = torch.cat(logits), torch.cat(wanted)
    loss = nn.functional.binary_cross_entropy_with_logits(answers, truth)
    return ((answers > 0) == (truth > 0)).float().mean().item(), loss.item()


@dataclass(frozen=True)
class Job:
    """Networks that one process trains in a turn."""

    cell: str
    lag: int
    seed: int
    updates: int
    reach: int | None = None
    longer: tuple[int, ...] = ()

    def __call__(self) -> list[Run]:
        """Clipped and unclipped; with a truncated gradient only clipped, as anomalyd trains."""
        torch.set_num_threads(1)
        runs = [self.trained(PLAN.clip)]
        if self.reach is None:
            # Where no gradient was long enough to be clipped, unclipped is the same run to the last bit.
            same = runs[0].largest < 0.999 * PLAN.clip
            runs.append(replace(runs[0], clipped=False, seconds=0.0) if same else self.trained(math.inf))
        return runs

    def trained(self, clip: float) -> Run:
        """One of them."""
        return train(self.cell, self.lag, self.seed, self.updates, clip=clip, reach=self.reach, longer=self.longer)


def measure(jobs: Sequence[Job], workers: int) -> list[Run]:
    """All jobs, side by side, longest first; progress on a terminal."""
    for name in FAMILIES:
        Job(name, 1, 0, 1)()  # compiles, where there is no machine code yet, so that the processes need not each
    runs: list[Run] = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(job) for job in sorted(jobs, key=lambda job: -job.lag)]
        for done, future in enumerate(as_completed(waiting), 1):
            runs += future.result()
            print(f"{done}/{len(jobs)}", "; ".join(map(str, future.result())), file=sys.stderr, flush=True)
    return runs


def solved_table(runs: Sequence[Run], lags: Sequence[int]) -> str:
    """Seeds that solved a lag, and in how many updates; else the accuracies."""

    def entry(of: list[Run]) -> str:
        count = f"{sum(run.solved for run in of)}/{len(of)}"
        if all(run.solved for run in of):
            return f"{count} in {_range([run.updates for run in of])}"
        return f"{count}, {_range([100 * run.accuracy[run.lag] for run in of])} %"

    return _table(runs, lags, entry)


def gradient_table(runs: Sequence[Run], lags: Sequence[int]) -> str:
    """Updates whose gradient exploded, of all, and the largest norm."""

    def entry(of: list[Run]) -> str:
        bad = f", {count} not finite" if (count := sum(run.not_finite for run in of)) else ""
        return f"{sum(run.exploded for run in of)} of {sum(run.updates for run in of):,}; {max(run.largest for run in of):,.2g}{bad}"

    return _table(runs, lags, entry)


def carried_table(runs: Sequence[Run], truncated: Sequence[Run], lags: Sequence[int]) -> str:
    """What carried state gives beyond the stretch that is trained."""
    head = ["cell", f"lag {BEYOND}, whole gradient", f"lag {BEYOND}, gradient of {PLAN.stretch} steps, state carried"]
    inside = within(lags)
    run_at = [lag for lag in lags if inside and (lag == inside or lag > PLAN.stretch)]
    head += [f"trained on lag {inside}, run at {lag}" for lag in run_at]
    lines = [head, ["---"] * len(head)]
    for cell in dict.fromkeys(run.cell for run in truncated):
        mine = [run for run in runs if run.cell == cell and run.clipped]
        columns = [
            [run.accuracy[BEYOND] for run in mine if run.lag == BEYOND],
            [run.accuracy[BEYOND] for run in truncated if run.cell == cell],
            *([run.accuracy[lag] for run in mine if run.lag == inside] for lag in run_at),
        ]
        lines.append([cell, *(f"{_range([100 * a for a in column])} %" if column else "" for column in columns)])
    return _markdown(lines)


def within(lags: Sequence[int]) -> int | None:
    """The longest lag that the stretch of anomalyd's training holds."""
    return max((lag for lag in lags if lag < PLAN.stretch), default=None)


def _table(runs: Sequence[Run], lags: Sequence[int], entry: Callable[[list[Run]], str]) -> str:
    lines = [["cell", "clipped", *(f"lag {lag}" for lag in lags)], ["---"] * (2 + len(lags))]
    for cell, clipped in dict.fromkeys((run.cell, run.clipped) for run in runs):
        mine = [run for run in runs if (run.cell, run.clipped) == (cell, clipped)]
        lines.append([cell, "yes" if clipped else "no", *(entry([run for run in mine if run.lag == lag]) for lag in lags)])
    return _markdown(lines)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return low if low == high else f"{low} to {high}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measures and prints."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lags", type=int, nargs="+", default=[10, 30, 100, 300, 1000])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--updates", type=int, default=600, help="at most, of 16 sequences each")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    lags, cells, updates, seeds = sorted(options.lags), options.cells, options.updates, range(options.seeds)
    further = {within(lags): tuple(lag for lag in lags if lag > PLAN.stretch)}
    jobs = [
        *(Job(c, lag, s, updates, longer=further.get(lag, ())) for c in cells for lag in lags for s in seeds),
        *(Job(c, BEYOND, s, updates, reach=PLAN.stretch) for c in cells for s in seeds),
    ]
    measured = sorted(measure(jobs, options.workers), key=lambda run: (cells.index(run.cell), not run.clipped, run.lag, run.seed))
    runs, truncated = [run for run in measured if run.reach is None], [run for run in measured if run.reach]
    seconds, processor = time.monotonic() - began, sum(run.seconds for run in measured)
    cost = f"{seconds / 60:.1f} minutes with {options.workers} processes, of processor time {processor / 60:.1f} minutes"
    print(f"Seeds that solved it, in updates of {BATCH} sequences (at most {updates}); else right answers, chance 50 %:\n")
    print(solved_table(runs, lags), f"\nUpdates with a gradient norm beyond {EXPLODED:.0f}; the largest norm:\n", sep="\n")
    print(gradient_table(runs, lags), f"\nRight answers beyond the {PLAN.stretch} steps that are trained:\n", sep="\n")
    print(carried_table(runs, truncated, lags), f"\n{options.seeds} seeds; {cost}", sep="\n")
    if options.json:
        costs = {"minutes": seconds / 60, "processor_minutes": processor / 60}
        print(json.dumps(costs | {"updates": updates, "runs": [asdict(run) for run in measured]}))


if __name__ == "__main__":
    main()
