"""Which weights score a file: the shipped ones, or a joint model fitted on the train part of files with several values."""

from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Artifact
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import InputFileError
from anomalyd.evaluation.readers import InputFile, Table, read_table

LEAST_TRAIN: Final = 256
"""Rows below which there is nothing to fit a model on."""


class Models:
    """The artifacts of one backtest.

    Args:
        files: all inputs.
        fit: fit joint models; otherwise the shipped network looks at each value by itself.
        shared: fit one model for all files with equally many values instead of one for each.
        seed: of the training.
    """

    def __init__(self, files: Sequence[InputFile], *, fit: bool, shared: bool, seed: int = 0) -> None:
        self._files = files
        self._seed = seed
        self._fit, self._shared = fit, shared
        self._fitted: dict[int, Artifact] = {}  # by number of values

    @cached_property
    def pretrained(self) -> Artifact:
        """The shipped one. Raises ArtifactError."""
        return artifacts.load(shipped())

    def for_table(self, file: InputFile, table: Table) -> Artifact:
        """The one for a file.

        Raises:
            InputFileError: its train part is too short to fit a model.
        """
        features = table.value.shape[1]
        if features == 1:
            return self.pretrained
        if not self._fit or table.train is None:
            return self.pretrained.for_features(features)
        if not self._shared:
            return _fitted([_long_enough(file, table.train)], self._seed)
        if features not in self._fitted:
            self._fitted[features] = _fitted(self._histories(features), self._seed)
        return self._fitted[features]

    def _histories(self, features: int) -> list[NDArray[np.float64]]:
        tables = ((file, read_table(file)) for file in self._files if file.kind == "npz")
        return [_long_enough(file, t.train) for file, t in tables if t.train is not None and t.value.shape[1] == features]


def _long_enough(file: InputFile, train: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(train) < LEAST_TRAIN:
        raise InputFileError(f"{file.path}: train has {len(train)} rows, a model needs {LEAST_TRAIN}; use --no-fit")
    return train


def _fitted(histories: list[NDArray[np.float64]], seed: int) -> Artifact:
    from anomalyd.training.joint import fit_joint  # noqa: PLC0415  torch takes seconds to import and most files need no training

    return fit_joint(histories, seed)
