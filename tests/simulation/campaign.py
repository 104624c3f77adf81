"""Many runs, on all cores."""

import gc
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Final
from unittest import mock

from tests.simulation.faults import CLASSES
from tests.simulation.world import Mutation, Report, Simulation

SHOWN_EVENTS: Final = 80
_CHUNK: Final = 10
_CHUNKS_A_PROCESS: Final = 10


@dataclass(frozen=True, slots=True)
class Told:
    """What is left of a run, small enough to travel."""

    seed: int
    hits: Counter[str]
    records: int
    cpu_s: float
    figures: dict[str, int]
    trace: int
    failure: str
    """How it failed, with its last events; empty if it did not."""


@dataclass
class Campaign:
    """Consecutive seeds.

    Args:
        base: the first.
        seeds: how many.
        processes: None: one for each core.
    """

    base: int
    seeds: int
    processes: int | None = None
    done: list[Told] = field(default_factory=list)

    @staticmethod
    def one(seed: int, *, exactly_once: bool | None = None, mutation: Mutation | None = None) -> Report:
        """One seed, here and now; see `Simulation`."""
        _compile()
        gc.collect()
        gc.disable()  # so that what is collected, and when, depends on the run alone
        try:
            report = Simulation(seed, exactly_once=exactly_once, mutation=mutation).run()
        finally:
            gc.enable()
        failure: BaseException | None = report.failure
        while failure is not None:  # frames would keep the whole world until somebody else collects it
            traceback.clear_frames(failure.__traceback__)
            failure = failure.__cause__ or failure.__context__
        # What the killed left hanging is collected here, where what its cleanup complains about disturbs nobody.
        with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
            warnings.simplefilter("ignore")
            for _ in range(3):  # what one round finalises may be garbage for the next
                gc.collect()
        # What a seed leaves behind for good, the client's connections for one, is not looked through again for each of the next.
        gc.freeze()
        return report

    def run(self, progress: Callable[[str], None] = lambda _: None, *, stop_at_failures: int = 5) -> None:
        """Runs them; gives up after some failures."""
        chunks = [range(start, min(start + _CHUNK, self.base + self.seeds)) for start in range(self.base, self.base + self.seeds, _CHUNK)]
        began = time.monotonic()
        processes = self.processes or len(os.sched_getaffinity(0))
        # A process that runs thousands of seeds grows; each begins anew after some. (ProcessPoolExecutor hangs there in 3.11.)
        with get_context("spawn").Pool(processes, maxtasksperchild=_CHUNKS_A_PROCESS) as pool:
            for told in pool.imap_unordered(run_all, chunks):
                self.done += told
                failed = ", ".join(str(failure.seed) for failure in self.failures) or "none"
                progress(f"{len(self.done)} of {self.seeds} seeds, failed: {failed}, {time.monotonic() - began:.0f} s")
                if len(self.failures) >= stop_at_failures:
                    break

    @property
    def failures(self) -> list[Told]:
        return [told for told in self.done if told.failure]

    @property
    def hits(self) -> Counter[str]:
        """Faults by class, over all runs."""
        return sum((told.hits for told in self.done), Counter())

    def summary(self) -> str:
        """Everything in some lines."""
        figures: Counter[str] = sum((Counter(told.figures) for told in self.done), Counter())
        lines = [told.failure for told in self.failures]
        lines += [f"{kind:22} {self.hits[kind]}" for kind in CLASSES]
        lines.append(", ".join(f"{count} {name}" for name, count in figures.items()))
        cpu_s = sum(told.cpu_s for told in self.done)
        lines.append(
            f"{len(self.done)} seeds from {self.base}: {len(self.failures)} failed; {sum(told.records for told in self.done)} records, "
            f"{self.hits.total()} faults, {cpu_s / max(1, len(self.done)):.2f} s of CPU a seed"
        )
        return "\n".join(lines)


@cache
def _compile() -> None:
    """Kernels that are compiled while a seed runs draw from its randomness: in another process it would be another run."""
    with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
        warnings.simplefilter("ignore")
        Simulation(0).run()


def run_all(seeds: Sequence[int]) -> list[Told]:
    """Some seeds in this process."""
    told = []
    for seed in seeds:
        began = time.process_time()
        report = Campaign.one(seed)
        told.append(
            Told(
                seed,
                report.hits,
                report.records,
                time.process_time() - began,
                report.figures,
                report.trace,
                show(report, SHOWN_EVENTS) if report.failure is not None else "",
            )
        )
    return told


def show(report: Report, events: int) -> str:
    """A run, for people."""
    lines = list(report.events)[-events:]
    if report.failure is not None:
        lines += traceback.format_exception(report.failure)[-12:] if not isinstance(report.failure, AssertionError) else []
        lines.append(f"seed {report.seed}: {type(report.failure).__name__}: {report.failure}")
        lines.append(f"again: {Path(sys.executable).name} -m tests.simulation --seed {report.seed}")
    else:
        lines.append(
            f"seed {report.seed}: {report.records} records, {report.hits.total()} faults, {report.seconds:.0f} s, {report.figures}"
        )
    return "\n".join(lines)


def base_seed() -> int:
    """The first seed: ANOMALYD_SIMULATION_SEED, or drawn from the commit, so that every commit looks at others."""
    if given := os.environ.get("ANOMALYD_SIMULATION_SEED"):
        return int(given)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return int(commit.stdout[:8] or "1", 16) * 10_000
