"""`anomalyd train`: one joint model for entities with the same features, from files of their history."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anomalyd.detector import artifact as artifacts
from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.readers import InputFile, find, read_table
from anomalyd.training import joint
from anomalyd.training.bar import training_bar
from anomalyd.training.history import LEAST_TRAIN, filled
from anomalyd.training.trainer import Plan


def run(paths: Sequence[Path], out: Path, seed: int = 0, plan: Plan | None = None) -> int:
    """Fits and saves; progress on stderr, the artifact's hash on stdout. Returns the exit code.

    Of files with `train` and `test` only train is read. Labels are not looked at: histories are taken as normal.

    Args:
        paths: files and directories of CSV and npz.
        out: folder of the artifact, made if need be.
        seed: equal seeds and files, equal weights.
        plan: how to train; None: as measured.

    Raises:
        ConfigError: `out` cannot be written.
        InputFileError: a file cannot be read, has a single value or too few rows, or two have different columns.
    """
    plan = plan or joint.PLAN
    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    histories, names = _histories(find(paths, lines=False))
    with training_bar(plan.steps) as progress:
        artifact = joint.fit_joint(histories, seed, plan, progress)
    try:
        saved = artifacts.save(replace(artifact, feature_names=names), out)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    entities = "1 entity" if len(histories) == 1 else f"{len(histories)} entities"
    rows = sum(map(len, histories))
    print(  # noqa: T201  the command's result
        f"{out}: {saved.name} {saved.version} {saved.hash}",
        f"{entities} of {saved.shape.features} values, {rows:,} rows, loss {saved.training['loss']:.3f}, {time.monotonic() - began:.0f} s",
        sep="\n",
    )
    return 0


def _histories(files: Sequence[InputFile]) -> tuple[list[NDArray[np.float64]], tuple[str, ...] | None]:
    """What to fit on, (T, F) each, and the names of the columns if the files have any."""
    histories: list[NDArray[np.float64]] = []
    named: tuple[InputFile, tuple[str, ...]] | None = None
    for file in files:
        table = read_table(file)
        history = table.value if table.train is None else table.train
        if history.shape[1] == 1:
            raise InputFileError(
                f"{file.path}: has one value column; a single metric needs no training, the model that ships is for it "
                f"(anomalyd backtest {file.path}). Metrics that belong together go into one file, a column each"
            )
        if len(history) < LEAST_TRAIN:
            raise InputFileError(
                f"{file.path}: has {len(history)} rows{' of train' * (table.train is not None)}, a model needs {LEAST_TRAIN}"
            )
        if histories and history.shape[1] != histories[0].shape[1]:
            raise InputFileError(
                f"{file.path}: has {history.shape[1]} values, {files[0].path} has {histories[0].shape[1]}; one model is for entities with "
                "the same features: train one for each kind"
            )
        if file.kind == "csv":
            if named is not None and named[1] != table.names:
                raise InputFileError(
                    f"{file.path}: columns are {', '.join(table.names)}; those of {named[0].path} are {', '.join(named[1])}, "
                    "and must be the same in the same order"
                )
            named = named or (file, table.names)
        histories.append(filled(history))
    return histories, None if named is None else named[1]
