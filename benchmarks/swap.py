"""Does another model cause a burst of alerts, and how long does a step take meanwhile?

    python benchmarks/swap.py [--series 100000] [--swaps 20] [--seeds 4] [--models .cache/models] [--json]

Calm generated series that training never saw, a sample a minute, through the production shard: so many samples that they are no longer
young, an hour, a swap, and an hour more. Counted are alerts that fire. Each swap has series of its own and goes from the model of one
training seed to that of another; models that are not there yet are trained as the one that ships (seed 0 ships). The same series without
the swap go on from the same state, written down and read back, so what is seen beside it is what an hour more or less does by itself.

The interval of the pooled ratio is that of a bootstrap over series: alerts of one series in both hours stay together.

The second table is about processor time: batches of 1,000 samples of 20,000 series in turn, before the swap, right behind it (each row is
met for the first time, and brought over), and when all are over; and what one slice of rows costs that nobody has met yet.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

from anomalyd.alerts.episodes import Policy  # noqa: E402  after the path
from anomalyd.alerts.timeline import written  # noqa: E402
from anomalyd.batch import SampleBatch, Source  # noqa: E402
from anomalyd.detector import Detector  # noqa: E402
from anomalyd.formats import Decoded  # noqa: E402
from anomalyd.series import SeriesIndex  # noqa: E402
from anomalyd.shard import Outcome, Shard, StreamPlan  # noqa: E402
from anomalyd.state.codec import Page, decode  # noqa: E402
from anomalyd.state.ports import Restored  # noqa: E402
from anomalyd.training import generate  # noqa: E402
from anomalyd.training.pretrain import run as pretrain  # noqa: E402

MINUTE_MS: Final = 60_000
HOUR: Final = 60
BEFORE: Final = 1_000
"""Samples until a series is not young any more."""
START_MS: Final = 1_766_000_000_000
RECORDS_AT_ONCE: Final = 10
DRAWS: Final = 4_000


class Moment(NamedTuple):
    """A record: one sample of each series."""

    offset: int
    key: bytes | None = None
    value: bytes | None = b""
    timestamp: int = -1


class Columns:
    """In the place of a decoder: what record t holds is column t.

    Args:
        values: of all series, (N, T).
    """

    def __init__(self, values: NDArray[np.float64]) -> None:
        self._values = values
        self._rows: NDArray[np.int32] | None = None
        self.moments: list[int] = []
        """Columns that the next records hold."""

    def decode(self, values: Sequence[bytes | None], _: Callable[[int], int], index: SeriesIndex) -> Decoded:
        """See `formats.Decoder`."""
        if self._rows is None:
            self._rows = np.array([index.row(str(k), {}) for k in range(len(self._values))], np.int32)
        moments = np.array(self.moments[: len(values)])
        n = len(self._rows)
        batch = SampleBatch(
            np.tile(self._rows, len(moments)),
            np.repeat(START_MS + MINUTE_MS * moments, n),
            np.ascontiguousarray(self._values[:, moments].T).reshape(-1, 1),
            np.repeat(np.arange(len(moments), dtype=np.int32), n),
        )
        return Decoded(batch, [], len(values))


@dataclass
class Run:
    """A shard and the alerts that fired in it."""

    shard: Shard
    columns: Columns
    series: list[int]
    minute: list[int]

    @classmethod
    def of(cls, detector: Detector, values: NDArray[np.float64]) -> "Run":
        """A fresh one for these series, (N, T)."""
        columns = Columns(values)
        shard = Shard(StreamPlan("swap", Policy()), Source("swap", 0), detector, columns, len(values), sweep_records=1 << 40)
        return cls(shard, columns, [], [])

    def until(self, start: int, end: int, snapshots: int = 0) -> Outcome:
        """Moments from start to end."""
        outcome = Outcome()
        for first in range(start, end, RECORDS_AT_ONCE):
            last = min(first + RECORDS_AT_ONCE, end)
            self.columns.moments = list(range(first, last))
            outcome = self.shard.process([Moment(t) for t in self.columns.moments], snapshots=snapshots if last == end else 0)
            for message, _ in outcome.alerts:
                if message.alert.status == "firing":
                    self.series.append(int(message.alert.series.key))
                    self.minute.append(message.alert.source.offset)
        return outcome

    def count(self, start: int, end: int) -> NDArray[np.int64]:
        """Alerts of each series that fired from one moment to another, (N,)."""
        chosen = [series for series, minute in zip(self.series, self.minute, strict=True) if start <= minute < end]
        return np.bincount(np.array(chosen, np.int64), minlength=self.shard.series)


class Hours(NamedTuple):
    """Alerts of each series, (N,)."""

    before: NDArray[np.int64]
    after: NDArray[np.int64]
    without: NDArray[np.int64]
    """In the same hour without the swap."""


def one(old: Detector, new: Detector, values: NDArray[np.float64]) -> Hours:
    """A swap."""
    end = BEFORE + HOUR
    run = Run.of(old, values)
    outcome = run.until(0, end, snapshots=1 << 20)
    without = Run.of(old, values)
    restored = Restored(end, end, control=outcome.control, policies=((0, written(Policy())),), timeline=((0, old.model.hash),))
    without.shard.prepare(restored)
    for key, page in outcome.pages.items():
        found = decode(key, page or b"")
        if isinstance(found, Page):
            without.shard.load(found)
    without.shard.begin(restored)
    run.shard.swap(new)
    run.until(end, end + HOUR)
    without.until(end, end + HOUR)
    if run.shard.detector is not new or without.shard.detector is not old:
        raise RuntimeError("the swap did not take place, or it did where it should not")
    return Hours(run.count(end - HOUR, end), run.count(end, end + HOUR), without.count(end, end + HOUR))


def interval(above: NDArray[np.int64], below: NDArray[np.int64], seed: int = 0) -> tuple[float, float, float]:
    """The ratio of two counts over series, and its 95 % interval by a bootstrap that draws series."""
    some = (above > 0) | (below > 0)
    above, below = above[some], below[some]
    weights = np.random.default_rng(seed).poisson(1.0, (DRAWS, len(above)))
    drawn = (weights @ above) / np.maximum(weights @ below, 1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(above.sum() / max(below.sum(), 1)), float(low), float(high)


def detectors(seeds: int, folder: Path) -> list[Detector]:
    """The models of so many training seeds."""
    made = [Detector.load(device="cpu")]
    for seed in range(1, seeds):
        own = folder / f"seed{seed}"
        if not own.exists():
            pretrain(own, seed)
        made.append(Detector.load(own, device="cpu"))
    return made


def pairs(models: Sequence[Detector], swaps: int) -> Iterator[tuple[int, int]]:
    """Which model follows which: every ordered pair before one comes again."""
    every = [(a, b) for step in range(1, len(models)) for a in range(len(models)) for b in [(a + step) % len(models)]]
    for k in range(swaps):
        yield every[k % len(every)]


def timing(old: Detector, new: Detector, series: int = 20_000, batch: int = 1_000) -> dict[str, float]:
    """Milliseconds of processor time of `process` around a swap; a clock would also tell of what else the machine does."""
    values, _ = generate.series(series // 20, 80, seed=9, calm=True)
    values = np.ascontiguousarray(np.tile(values, (20, 1)))
    run = Run.of(old, values)
    run.until(0, 60)
    rows = np.array([run.shard.index.find(str(k)) for k in range(series)], np.int32)

    def turn(moment: int) -> list[float]:
        spent = []
        for first in range(0, series, batch):
            part = slice(first, first + batch)
            run.columns.decode = lambda values, _, __, part=part: Decoded(  # type: ignore[method-assign,misc]  # a few series at a time
                SampleBatch(
                    rows[part],
                    np.full(batch, START_MS + MINUTE_MS * moment),
                    np.ascontiguousarray(run.columns._values[part, moment])[:, None],  # noqa: SLF001  our own
                    np.zeros(batch, np.int32),
                ),
                [],
                len(values),
            )
            began = time.thread_time()
            run.shard.process([Moment(moment * 1_000 + first // batch)])
            spent.append(1e3 * (time.thread_time() - began))
        return spent

    calm = [ms for moment in range(60, 66) for ms in turn(moment)]
    run.shard.swap(new)
    first = turn(66)
    turn(67)
    later = [ms for moment in range(68, 72) for ms in turn(moment)]
    run.shard.swap(old)
    run.shard.process([Moment(10**6)])
    began = time.thread_time()
    run.shard.process([], 10**6 + 1)
    slice_ms = 1e3 * (time.thread_time() - began)
    return {
        "before, median": float(np.median(calm)),
        "before, longest": max(calm),
        "first, median": float(np.median(first)),
        "first, longest": max(first),
        "later, median": float(np.median(later)),
        "later, longest": max(later),
        "a slice": slice_ms,
    }


def main() -> int:
    """Runs it; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--series", type=int, default=100_000, help="over all swaps")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4, help="models of so many training seeds")
    parser.add_argument("--models", type=Path, default=ROOT / ".cache" / "models", help="where they are kept")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    models = detectors(given.seeds, given.models)
    found: list[tuple[int, int, Hours]] = []
    for number, (a, b) in enumerate(pairs(models, given.swaps)):
        values, _ = generate.series(given.series // given.swaps, BEFORE + 2 * HOUR, seed=10_000 + number, calm=True)
        hours = one(models[a], models[b], values)
        found.append((a, b, hours))
        if not given.json:
            print(
                f"seed {a} to {b}: {hours.before.sum():5} before, {hours.after.sum():5} after, {hours.without.sum():5} without", flush=True
            )
    before, after, without = (np.concatenate([hours[k] for _, _, hours in found]) for k in range(3))
    worst = max(found, key=lambda swap: int(swap[2].after.sum()) / max(1, int(swap[2].before.sum())))
    result: dict[str, Any] = {
        "series": len(before),
        "swaps": given.swaps,
        "alerts": {"before": int(before.sum()), "after": int(after.sum()), "without": int(without.sum())},
        "ratios": {
            "after / before": interval(after, before),
            "without / before": interval(without, before),
            "after / without": interval(after, without),
            "worst swap": interval(worst[2].after, worst[2].before),
        },
        "timing": timing(models[0], models[1 % len(models)]),
    }
    if given.json:
        print(json.dumps(result))
        return 0
    print(f"\n{result['series']} series, {result['swaps']} swaps, alerts in an hour: {result['alerts']}")
    for name, (ratio, low, high) in result["ratios"].items():
        print(f"{name:18} {ratio:.3f}   95 %: {low:.3f} to {high:.3f}")
    print()
    for name, ms in result["timing"].items():
        print(f"{name:18} {ms:8.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
