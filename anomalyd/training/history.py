"""What a history must be like before a model is fitted on it, and before torch is needed: long enough, and without holes."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

LEAST_TRAIN: Final = 256
"""Rows below which there is nothing to fit a model on."""


def filled(values: NDArray[np.float64], before: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Samples with the last known value of a feature in the place of each missing one.

    Args:
        values: in the order of time, NaN where one is missing, shape (n, F).
        before: what stands in front of the first sample, finite, shape (F,). None: the first known value, which is only known later,
            or zero for a feature that has none.

    Returns:
        Finite values, shape (n, F).
    """
    if before is not None:
        return filled(np.vstack([before, values]))[1:]
    known = ~np.isnan(values)
    newest = np.maximum.accumulate(np.where(known, np.arange(len(values))[:, None], 0), axis=0)
    found = np.take_along_axis(values, np.maximum(newest, known.argmax(axis=0)), axis=0)
    return np.where(known.any(axis=0), found, 0.0)
