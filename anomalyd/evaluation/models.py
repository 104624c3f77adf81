"""Which weights score a file: those asked for; else, of several values with a train, a joint model fitted on that; else those that ship."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import Artifact
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError, ConfigError, InputFileError
from anomalyd.evaluation.readers import InputFile, Table, read_table
from anomalyd.training.history import LEAST_TRAIN, filled


class Models:
    """The artifacts of one backtest.

    Args:
        files: all inputs.
        fit: fit joint models; otherwise the shipped network looks at each value by itself.
        shared: fit one model for all files with equally many values instead of one for each.
        seed: of the training.
        folder: of an artifact that scores all files; nothing is fitted then.
        given: such an artifact, instead of its folder.

    Raises:
        ArtifactError: there is none, or it cannot be used.
        ConfigError: fitting was asked for besides.
    """

    def __init__(
        self,
        files: Sequence[InputFile],
        *,
        fit: bool,
        shared: bool,
        seed: int = 0,
        folder: Path | None = None,
        given: Artifact | None = None,
    ) -> None:
        if folder is not None and (shared or not fit):
            raise ConfigError("--model: fits nothing on train, so --shared and --no-fit do not go with it")
        self._given = artifacts.load(folder) if folder is not None else given
        self._called = folder if folder is not None or given is None else f"{given.name} {given.hash[:12]}"
        self._files = files
        self._seed = seed
        self.fit = fit
        self._shared = shared
        self._fitted: dict[int, Artifact] = {}  # by number of values

    @cached_property
    def pretrained(self) -> Artifact:
        """The shipped one. Raises ArtifactError."""
        return artifacts.load(shipped())

    def fits(self, table: Table) -> bool:
        """Whether a model is fitted for the table."""
        return self._given is None and self.fit and table.train is not None and table.value.shape[1] > 1

    def for_records(self, file: InputFile, configured: Artifact) -> Artifact:
        """The one for a file of records, by default the `configured` one. Raises InputFileError: the one asked for has other features."""
        return configured if self._given is None else self._suited(file, self._given, configured.shape.features)

    def for_table(self, file: InputFile, table: Table) -> Artifact:
        """The one for a file.

        Raises:
            InputFileError: its train part is too short to fit a model, or the model asked for is for other values.
        """
        features = table.value.shape[1]
        if self._given is not None:
            wanted = self._given.feature_names
            if file.kind == "csv" and wanted is not None and sorted(wanted) == sorted(table.names) and wanted != table.names:
                raise InputFileError(f"{file.path}: columns must be in the order of the model {self._called}: {', '.join(wanted)}")
            return self._suited(file, self._given, features)
        if features == 1:
            return self.pretrained
        if not self.fits(table):
            return self.pretrained.for_features(features)
        if not self._shared:
            return _fitted([_long_enough(file, table)], self._seed)
        if features not in self._fitted:
            self._fitted[features] = _fitted(self._histories(features), self._seed)
        return self._fitted[features]

    def _suited(self, file: InputFile, given: Artifact, features: int) -> Artifact:
        try:
            return given.for_features(features)
        except ArtifactError:
            of = "" if given.feature_names is None else f" ({', '.join(given.feature_names)})"
            have = "single values" if features == 1 else f"{features} values a row"
            raise InputFileError(f"{file.path}: has {have}; the model {self._called} is for {given.shape.features}{of}") from None

    def _histories(self, features: int) -> list[NDArray[np.float64]]:
        tables = ((file, read_table(file)) for file in self._files if file.kind == "npz")
        return [_long_enough(file, table) for file, table in tables if table.train is not None and table.value.shape[1] == features]


def _long_enough(file: InputFile, table: Table) -> NDArray[np.float64]:
    rows = 0 if table.train is None else len(table.train)
    if table.train is None or rows < LEAST_TRAIN:
        raise InputFileError(f"{file.path}: train has {rows} rows, a model needs {LEAST_TRAIN}; use --no-fit")
    return filled(table.train)


def _fitted(histories: list[NDArray[np.float64]], seed: int) -> Artifact:
    from anomalyd.training.joint import fit_joint  # noqa: PLC0415  torch takes seconds to import and most files need no training

    return fit_joint(histories, seed)
