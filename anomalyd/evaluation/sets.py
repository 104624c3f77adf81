"""Labelled sets: streams whose truth is known, in the layouts that their publishers, or we, gave them.

| set | layout below the folder | step | ends of causes |
|---|---|---|---|
| nab | `**/<category>/<name>.csv[.gz]`, `windows.json` | from the files | |
| kpi | `**/<id>.npz` with `timestamp,value,label` | from the files | |
| smd | `<name>.npz` with `train,test,label`; `interpretation.json` | 1 min | exclusive |
| asd, jumpstarter | likewise | 5 min | inclusive |
| folder | any of these files with a label | from the files, else 1 min | exclusive |

`windows.json` is `{"<category>/<name>.csv": [[start, end], …]}`, both ends inside. An interpretation file is `{stream: [{"start", "end",
"dims"}, …]}`: rows of test, and the values, counted from 1, in which the anomaly shows.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.measures import Entry, segments
from anomalyd.evaluation.readers import STEP_MS, InputFile, Table, find, read_table

SETS: Final = ("nab", "smd", "asd", "jumpstarter", "kpi", "folder")
WINDOWS: Final = "windows.json"
CAUSES: Final = "interpretation.json"

_STEPS_MS: Final = {"asd": 300_000, "jumpstarter": 300_000}
_END_INCLUSIVE: Final = frozenset({"asd", "jumpstarter"})

Half = Literal["choose", "hold"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A stream whose truth is known."""

    file: InputFile
    table: Table
    """With `label`."""
    windows: tuple[tuple[int, int], ...]
    """First and last row (both inside) of each anomaly, in rows of the table."""
    causes: tuple[Entry, ...]
    """What is known about causes, in rows of the table."""

    @property
    def name(self) -> str:
        """Path below the set's folder, without its ending."""
        return self.file.name

    @property
    def label(self) -> NDArray[np.uint8]:
        """1 where the row is anomalous, shape (n,)."""
        return np.zeros(len(self.table), np.uint8) if self.table.label is None else self.table.label


class LabelledSet:
    """The streams of a set, read one by one.

    Args:
        name: one of SETS.
        folder: where the set lies; or its parent.

    Raises:
        ConfigError: no such set or folder.
        InputFileError: what must be in it is missing.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if name not in SETS:
            raise ConfigError(f"SET: got {name!r}, valid are {', '.join(SETS)}")
        if not folder.is_dir():
            raise ConfigError(f"{folder}: no such directory")
        self.name = name
        self.folder = folder / name if (folder / name).is_dir() else folder
        files = find([self.folder], lines=False)
        # The folder's own name for a stream, whatever lies beside: outputs must not move when a directory is added.
        common = _common([file.name for file in files])
        self.files = [replace(file, name=file.name.removeprefix(common)) for file in files]
        self._windows: dict[str, list[list[str]]] | None = self._json(WINDOWS)
        if name == "nab" and self._windows is None:
            raise InputFileError(f"{self.folder / WINDOWS}: no such file; nab keeps its labels there")
        # Some publishers keep notes beside the streams, and the streams one level deeper.
        causes = self._json(CAUSES) or {}
        self._causes: dict[str, Any] = next((value for value in causes.values() if isinstance(value, dict)), causes)

    def keep(self, half: Half) -> None:
        """Only the streams of one half; see `halves`."""
        kept = halves([file.name for file in self.files])[half]
        self.files = [file for file in self.files if file.name in kept]

    def read(self, file: InputFile) -> Labelled:
        """One of `files`. Raises InputFileError."""
        table = read_table(file)
        step_ms = _STEPS_MS.get(self.name, STEP_MS)
        if table.train is not None and step_ms != STEP_MS:
            table = replace(table, time_ms=table.time_ms[0] + (table.time_ms - table.time_ms[0]) // STEP_MS * step_ms)
        windows = self._of_windows(file, table) if self._windows is not None else _runs(table.label)
        if windows is None:
            raise InputFileError(f"{file.path}: holds no label")
        label = np.zeros(len(table), np.uint8)
        for first, last in windows:
            label[first : last + 1] = 1
        return Labelled(file, replace(table, label=label), tuple(windows), tuple(self._of_causes(file, table)))

    def _of_windows(self, file: InputFile, table: Table) -> list[tuple[int, int]] | None:
        found = next((spans for key, spans in (self._windows or {}).items() if key.removesuffix(".csv") == file.name), None)
        if found is None:
            return None
        windows = []
        for span in found:
            # As the benchmark does it: the first row with that very time, where a file has it more than once.
            start, end = (round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000) for text in span)
            inside = np.flatnonzero((table.time_ms >= start) & (table.time_ms <= end))
            if len(inside):
                last = np.flatnonzero(table.time_ms == end)
                windows.append((int(inside[0]), int(last[0]) if len(last) else int(inside[-1])))
        return windows

    def _of_causes(self, file: InputFile, table: Table) -> Iterator[Entry]:
        inclusive = int(self.name in _END_INCLUSIVE)
        for entry in self._causes.get(file.name, ()):
            try:
                span = [int(entry["start"]), int(entry["end"]) + inclusive]
                dims = tuple(int(number) - 1 for number in entry["dims"])
            except (KeyError, TypeError, ValueError):
                raise InputFileError(f"{self.folder / CAUSES}: {file.name}: got {entry!r}, must have start, end and dims") from None
            # Rows without any value are not in the table.
            start, end = np.searchsorted(table.row, span).tolist()
            if start < end:
                yield Entry(start, end, dims)

    def _json(self, name: str) -> dict[str, Any] | None:
        path = self.folder / name
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise InputFileError(f"{path}: {error}") from None
        return found


def halves(names: list[str]) -> dict[Half, frozenset[str]]:
    """A set in two halves, by the SHA-256 of the streams' names: one for choosing, one for holding what was chosen against it."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    middle = (len(ordered) + 1) // 2
    return {"choose": frozenset(ordered[:middle]), "hold": frozenset(ordered[middle:])}


def _common(names: list[str]) -> str:
    """The directories that all names begin with."""
    parts = [name.split("/")[:-1] for name in names]
    shared = [level[0] for level, same in ((level, set(level)) for level in zip(*parts, strict=False)) if len(same) == 1]
    # nab has one folder a category; with a single category left its name would belong to all.
    return "".join(f"{part}/" for part in shared if part in ("data", "final"))


def _runs(label: NDArray[np.uint8] | None) -> list[tuple[int, int]] | None:
    """First and last row of each run of ones."""
    return None if label is None else [(first, last) for first, last in segments(label).tolist()]
