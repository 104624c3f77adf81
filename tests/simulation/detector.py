"""A detector that is cheap, exact and forgets nothing: every sample is folded into the row, and every score depends on all of them."""

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import ARMED, LATE, REPEATED, WARMUP, SampleBatch, Verdicts
from anomalyd.detector import Calibration, Layout, Options, Pages, Shape
from anomalyd.detector.detector import ModelInfo
from anomalyd.detector.migrate import without_network

EXPECTED: Final = 450_000_000
"""Crossings to be expected of a sample, in billionths; half of them cross, on and off."""
HOT: Final = 90.0
"""Values from here on are anomalies."""
PAGE_ROWS: Final = (4, 3, 2)
"""By model, so that few series make many pages, of several sizes."""
UNITS: Final = (2, 3, 5)
"""By model: rows have as many sizes."""

_MASK: Final = (1 << 64) - 1
_WARM: Final = 2


def _share(time_ms: int) -> int:
    """Thousandths of the samples that cross: more and fewer than expected by turns."""
    return (900, 200)[time_ms // 600_000 % 2]


class FoldingDetector:
    """In the place of `anomalyd.detector.Detector`, with rows as they really are.

    Args:
        number: which model it is. All fold in another way, and what a row was under others shows for ever.
    """

    device = "cpu"
    features = 1

    def __init__(self, number: int = 0) -> None:
        self._number = number
        self.layout = Layout(Shape(features=1, units=UNITS[number], layers=1, latent=1, joint=False))
        self.model = ModelInfo("folding", str(number + 1), "fed"[number] * 64)
        self.options = Options()
        self.artifact = SimpleNamespace(calibration=Calibration(0.0, 1.0, 1.0))

    def new_pages(self, capacity: int) -> Pages:
        pages = Pages(self.layout, capacity)
        pages.page_rows = PAGE_ROWS[self._number]
        return pages

    def taken_over(
        self, rows: NDArray[np.uint8], layout: Sequence[tuple[str, str, int, int]], *, same_model: bool, same_features: bool = True
    ) -> NDArray[np.uint8]:
        new = without_network(self.layout, rows, layout)
        if not same_model:
            fold = new.view(np.uint64)[:, self.layout["mean"].first]
            fold[:] = (fold ^ np.uint64(self._number + 1)) * np.uint64(2862933555777941757)
        return new

    def threshold_at(self, budget_per_day: float, correction: float = 0.0) -> NDArray[np.float64]:
        return np.array([budget_per_day, correction])

    def step(self, pages: Pages, batch: SampleBatch, threshold: NDArray[np.float64], tally: NDArray[np.int64]) -> Verdicts:
        n = len(batch)
        verdicts = Verdicts(
            score=np.zeros(n),
            evidence=np.zeros(n),
            observed=batch.value.copy(),
            expected=np.zeros((n, 1)),
            low=np.zeros((n, 1)),
            high=np.zeros((n, 1)),
            share=np.ones((n, 1), np.float32),
            flags=np.full(n, ARMED, np.uint8),
        )
        limit = threshold[1] + 1.0 - threshold[0] / 10
        newest: Any = pages.field("time")
        last: Any = pages.field("last")
        seen: Any = pages.field("seen")
        age: Any = pages.field("age")
        fold: Any = pages.bytes_of("mean").view(np.uint64)
        rows, times, values = batch.row.tolist(), batch.time_ms.tolist(), batch.value[:, 0].tolist()
        for i, (row, time_ms, value) in enumerate(zip(rows, times, values, strict=True)):
            young = int(age[row, 0])
            before = int(fold[row, 0])
            if young and time_ms < newest[row, 0]:
                verdicts.flags[i] |= LATE
            elif young and time_ms == newest[row, 0] and value == last[row, 0]:
                verdicts.flags[i] |= REPEATED
            else:
                (bits,) = struct.unpack("<Q", struct.pack("<d", value))
                newest[row, 0], last[row, 0], seen[row, 0], age[row, 0] = time_ms, value, value, young + 1
                (force,) = struct.unpack("<Q", struct.pack("<d", limit))
                fold[row, 0] = ((before ^ bits ^ force) * 6364136223846793005 + time_ms + 1 + self._number) & _MASK
                if young >= _WARM:
                    tally += ((before >> 40) % 1000 < _share(time_ms), EXPECTED, 60_000)
            if young < _WARM:
                verdicts.flags[i] |= WARMUP
                continue
            memory = (before >> 20) % 1000 / 1000
            verdicts.expected[i, 0] = 40.0 + memory
            verdicts.low[i, 0], verdicts.high[i, 0] = 30.0 + memory, 50.0 + memory
            verdicts.evidence[i] = (1.0 + (value - HOT) / 2 + memory / 4) if value >= HOT else memory / 2
            verdicts.score[i] = verdicts.evidence[i] / limit
        return verdicts


MODELS: Final = tuple(map(FoldingDetector, range(len(UNITS))))
"""All that there are."""
