"""A detector that keeps what others overwrite: the state rows of one series around each of a few samples."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.detector import Artifact, Detector, Options, Pages
from anomalyd.detector.detector import Device


class Witness(Detector):
    """Scores as any detector does and copies rows while it goes; verdicts do not depend on how samples are cut into steps.

    Args:
        artifact: the weights.
        device: where to score.
        options: what an operator may choose.
        wanted: which samples to watch, counted from 0 over everything that is ever scored, ascending; all of one series.
    """

    def __init__(self, artifact: Artifact, device: Device, options: Options, wanted: NDArray[np.int64]) -> None:
        super().__init__(artifact, device, options)
        self._wanted = wanted
        self._seen = 0
        self._before: NDArray[np.uint8] | None = None
        self._after: list[NDArray[np.uint8]] = []

    def step(
        self,
        pages: Pages,
        batch: SampleBatch,
        threshold: NDArray[np.float64] | None = None,
        tally: NDArray[np.int64] | None = None,
    ) -> Verdicts:
        """See Detector.step."""
        first, self._seen = self._seen, self._seen + len(batch)
        begin, end = np.searchsorted(self._wanted, (first, self._seen))
        parts, done = [], 0
        for at in (self._wanted[begin:end] - first).tolist():
            if at > done:
                parts.append(super().step(pages, batch.part(slice(done, at)), threshold, tally))
            row = int(batch.row[at])
            if self._before is None:
                self._before = pages.buffer[row].copy()
            parts.append(super().step(pages, batch.part(slice(at, at + 1)), threshold, tally))
            self._after.append(pages.buffer[row].copy())
            done = at + 1
        if done < len(batch) or not parts:
            parts.append(super().step(pages, batch.part(slice(done, len(batch))), threshold, tally))
        return _joined(parts)

    @property
    def rows(self) -> NDArray[np.uint8]:
        """The row in front of the first sample that was wanted, and behind each of them, uint8 (m + 1, row_bytes)."""
        return np.stack([*([] if self._before is None else [self._before]), *self._after])


def _joined(parts: Sequence[Verdicts]) -> Verdicts:
    return Verdicts(*(np.concatenate([getattr(part, column.name) for part in parts]) for column in fields(Verdicts)))
