"""Files of history → columns or records.

- `.csv`, `.csv.gz`: a header; a column `timestamp` (ISO 8601, without a zone taken as UTC, or epoch seconds to nanoseconds by magnitude); a
  column `label`, if there is one, is the truth and not a value; every other column is a value.
- `.npz`: `timestamp,value[,label]`, `timestamp,values[,label]` or `train,test[,label]`; the last has no times and gets steps of one minute.
- any other file: one record a line, in a stream format, gzipped or not.

What is not finite is missing. A row without any value is no sample; the others keep their row numbers. Of several values some may be
missing (NaN), of a single one none is.
"""

import csv
import gzip
import io
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from anomalyd.errors import ConfigError, InputFileError

if TYPE_CHECKING:
    from _csv import Reader

STEP_MS: Final = 60_000
"""Step of files that hold no times."""
FIRST_MS: Final = 946_684_800_000
"""Event time of the first row of files that hold no times: 2000-01-01."""
TIMESTAMP: Final = "timestamp"
LABEL: Final = "label"
_TABLES: Final = (".csv", ".csv.gz", ".npz")
_LINES: Final = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SEPARATORS: Final = {";": ";", "\t": "tabs", "|": "|"}
"""Those of other dialects, with their names."""
_EMPTY: Final = "holds a header and no rows"
_MISSING: Final = frozenset({"", "nan", "na", "n/a", "null", "none"})

Kind = Literal["csv", "npz", "lines"]


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to read."""

    path: Path
    name: str
    """Path below the common parent of all inputs, without its ending: names the series and the output."""
    kind: Kind


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one file in columns. Letters: n rows that are samples, F values of a row, m rows of train."""

    row: NDArray[np.int64]
    """Number of each row in the file, from 0 (header and blank lines not counted), shape (n,)."""
    time_ms: NDArray[np.int64]
    """Event time, shape (n,)."""
    value: NDArray[np.float64]
    """Finite values, or NaN where one of several is missing, shape (n, F)."""
    names: tuple[str, ...]
    """Of the values, F of them."""
    label: NDArray[np.uint8] | None
    """1 where the row is known to be anomalous, shape (n,)."""
    train: NDArray[np.float64] | None
    """Rows of history that come directly before the first, like `value`, shape (m, F); their times end one step before it."""
    skipped: int
    """Rows (train not counted) without any value."""

    def __len__(self) -> int:
        return len(self.row)


def find(paths: Sequence[Path], *, lines: bool) -> list[InputFile]:
    """The files to read, in the order given, directories searched in alphabetical order; every file once.

    Args:
        paths: files and directories.
        lines: a stream format is known, so files that are neither CSV nor npz hold one record a line.

    Raises:
        ConfigError: there is no such path.
        InputFileError: a file is of no known kind, a directory holds none that is, or two files would have the same output.
    """
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ConfigError(f"{missing[0]}: no such file or directory")
    parent = Path(os.path.commonpath([_folder(path) for path in paths])) if paths else Path()
    found: dict[Path, InputFile] = {}
    for path in paths:
        for file in _below(path, lines=lines) if path.is_dir() else [path]:
            absolute = file.resolve()
            if absolute not in found:
                found[absolute] = InputFile(file, _name(file, parent), _kind(file, lines=lines))
    owner: dict[str, Path] = {}
    for input_file in found.values():
        other = owner.setdefault(input_file.name, input_file.path)
        if other is not input_file.path:
            raise InputFileError(f"{input_file.path}: its output would be {input_file.name}.npz, and so would that of {other}")
    return list(found.values())


def glance(paths: Sequence[Path], *, lines: bool, least: int = 1) -> None:
    """Looks at the beginning of each file, so that what cannot be used is told at once; the rest is found out by reading.

    Args:
        paths: as for `find`.
        lines: likewise.
        least: rows that a CSV must have.

    Raises:
        ConfigError, InputFileError: as `find`; a CSV has no usable header or fewer rows.
    """
    for file in find(paths, lines=lines):
        if file.kind == "csv":
            with _translated(file.path), _rows_of(file.path) as (_, _, rows):
                count = sum(1 for row in islice(rows, least) if row)
                if count < least and next(rows, None) is None:
                    raise InputFileError(too_short(file.path, count, least) if count else f"{file.path}: {_EMPTY}")


def too_short(path: Path, rows: int, least: int, kind: str = "") -> str:
    """What is said of a file with too few rows, of some kind, to train on a model."""
    return f"{path}: has {rows} rows{kind}, a model needs {least}"


def read_table(file: InputFile) -> Table:
    """Read a CSV or npz file.

    Raises:
        InputFileError: it cannot be read or is not what the module's docstring says; names file, line and what was expected.
    """
    with _translated(file.path):
        return _read_npz(file.path) if file.kind == "npz" else _read_csv(file.path)


def read_lines(file: InputFile) -> Iterator[bytes]:
    """The lines of a file, without their ends; a record each. Blank lines come too, so that row numbers are line numbers.

    Raises:
        InputFileError: it cannot be read.
    """
    with _translated(file.path), _open(file.path) as opened:
        for line in opened:
            yield line.rstrip(b"\r\n")


def parse_time(text: str) -> int:
    """A moment in milliseconds since the epoch: ISO 8601, without a zone UTC, or an epoch in seconds or milliseconds by magnitude.

    Raises:
        ConfigError: it is neither.
    """
    try:
        epoch = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip().removesuffix(" UTC"))
        except ValueError:
            raise ConfigError(f"--at: got {text!r}, must be ISO 8601 such as 2026-01-01T12:00:00Z, or an epoch") from None
        return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if not abs(epoch) < 1e15:
        raise ConfigError(f"--at: got {text!r}, must be ISO 8601 such as 2026-01-01T12:00:00Z, or an epoch in seconds or milliseconds")
    return round(epoch if abs(epoch) >= 1e11 else epoch * 1000)


# --- finding ------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Path:
    return path.resolve() if path.is_dir() else path.resolve().parent


def _below(folder: Path, *, lines: bool) -> list[Path]:
    endings = (*_TABLES, *_LINES) if lines else _TABLES
    files = sorted(path for path in folder.rglob("*") if path.name.endswith(endings) and path.is_file())
    if not files:
        raise InputFileError(f"{folder}: holds no file that ends in {', '.join(endings)}")
    return files


def _kind(path: Path, *, lines: bool) -> Kind:
    if path.name.endswith(".npz"):
        return "npz"
    if path.name.endswith((".csv", ".csv.gz")):
        return "csv"
    if lines:
        return "lines"
    raise InputFileError(
        f"{path}: neither CSV nor npz; for a file of one record a line name its format with --format (backtest, explain, train)"
    )


def _name(path: Path, parent: Path) -> str:
    relative = path.resolve().relative_to(parent).as_posix().removesuffix(".gz")
    stem, dot, ending = relative.rpartition(".")
    return stem if dot and stem and "/" not in ending else relative


# --- reading ------------------------------------------------------------------------------------------------------


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputFileError(f"{path}: damaged: {error}") from None
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror or error}") from None


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


@contextmanager
def _rows_of(path: Path) -> "Iterator[tuple[list[str], list[int], Reader]]":
    """The header of a CSV, which of its columns hold values, and a reader of what follows. Raises InputFileError, in the block too."""
    with _open(path) as opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
        reader = csv.reader(text)
        try:
            header = [name.strip() for name in next(reader, [])]
            yield header, _value_columns(path, header), reader
        except UnicodeDecodeError as error:
            raise InputFileError(f"{path}: not UTF-8 text: {error.reason}") from None
        except csv.Error as error:
            raise InputFileError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _read_csv(path: Path) -> Table:
    rows, lines = [], []
    with _rows_of(path) as (header, values, reader):
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise InputFileError(f"{path}, line {reader.line_num}: {len(row)} fields, the header has {len(header)}")
            rows.append(row)
            lines.append(reader.line_num)
    if not rows:
        raise InputFileError(f"{path}: {_EMPTY}")
    columns = list(zip(*rows, strict=True))
    value = np.column_stack([_numbers(path, header[c], columns[c], lines) for c in values])  # (n, F)
    label = None
    if LABEL in header:
        label = np.nan_to_num(_numbers(path, LABEL, columns[header.index(LABEL)], lines))
    return _table(path, _times(path, columns[header.index(TIMESTAMP)], lines), value, tuple(header[c] for c in values), label)


def _value_columns(path: Path, header: list[str]) -> list[int]:
    if TIMESTAMP not in header:
        if len(header) == 1 and (other := next((mark for mark in _SEPARATORS if mark in header[0]), None)):
            raise InputFileError(f"{path}, line 1: fields must be separated by commas, not by {_SEPARATORS[other]}")
        raise InputFileError(f"{path}, line 1: the header must have a column {TIMESTAMP}, got {', '.join(header) or 'nothing'}")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise InputFileError(f"{path}, line 1: two columns are called {twice!r}")
    values = [c for c, name in enumerate(header) if name not in (TIMESTAMP, LABEL)]
    if not values:
        raise InputFileError(f"{path}, line 1: the header must have a value column beside {TIMESTAMP}")
    return values


def _numbers(path: Path, name: str, column: Sequence[str], lines: Sequence[int]) -> NDArray[np.float64]:
    """A column as float64, NaN where a value is missing."""
    try:
        return np.array(column, dtype=np.float64)
    except ValueError:
        numbers = np.full(len(column), np.nan)
    for i, text in enumerate(column):
        if text.strip().lower() not in _MISSING:
            try:
                numbers[i] = float(text)
            except ValueError:
                raise InputFileError(f"{path}, line {lines[i]}: column {name}: got {text!r}, must be a number") from None
    return numbers


def _times(path: Path, column: Sequence[str], lines: Sequence[int] | None = None) -> NDArray[np.int64]:
    """A column of texts as milliseconds since the epoch: all of them ISO 8601, or all of them numbers."""
    try:
        numbers = np.array(column, dtype=np.float64)
    except ValueError:
        times = np.empty(len(column), dtype=np.int64)
        for i, text in enumerate(column):
            try:
                moment = datetime.fromisoformat(text.strip())
            except ValueError:
                where = f"line {lines[i]}" if lines else f"row {i}"
                raise InputFileError(f"{path}, {where}: timestamp: got {text!r}, must be ISO 8601 or an epoch") from None
            times[i] = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        return times
    return _epochs(path, numbers, lines)


def _epochs(path: Path, numbers: NDArray[np.number[Any]], lines: Sequence[int] | None = None) -> NDArray[np.int64]:
    """Epochs in s, ms, µs or ns, told apart by the largest of them, as milliseconds."""
    bad = np.flatnonzero(~np.isfinite(numbers) | (np.abs(numbers.astype(np.float64)) > 9.3e18))
    if len(bad):
        where = f"line {lines[bad[0]]}" if lines else f"row {bad[0]}"
        raise InputFileError(f"{path}, {where}: timestamp: got {numbers[bad[0]]}, must be ISO 8601 or an epoch")
    largest = float(np.abs(numbers).max(initial=0))
    factor = next((factor for limit, factor in ((1e11, 1e3), (1e14, 1.0), (1e17, 1e-3)) if largest < limit), 1e-6)
    if np.issubdtype(numbers.dtype, np.integer):  # whole numbers stay exact
        exact: NDArray[np.int64] = numbers.astype(np.int64)
        return exact * np.int64(factor) if factor >= 1 else exact // np.int64(round(1 / factor))
    milliseconds: NDArray[np.int64] = np.rint(numbers * factor).astype(np.int64)
    return milliseconds


def _read_npz(path: Path) -> Table:
    with path.open("rb") as opened:  # numpy leaves a damaged file open
        try:
            archive = np.load(opened, allow_pickle=False)
        except ValueError:  # numpy takes what it does not know for pickled objects, and says so
            raise InputFileError(f"{path}: not an npz file") from None
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputFileError(f"{path}: not an npz file: holds a single array")
        try:
            arrays = {name: archive[name] for name in archive.files}
        except ValueError:
            raise InputFileError(f"{path}: an array in it is damaged or holds no plain numbers or text") from None
    label = _label(path, arrays)
    if {"train", "test"} <= arrays.keys():
        train, test = _matrix(path, arrays, "train"), _matrix(path, arrays, "test")
        if train.shape[1] != test.shape[1]:
            raise InputFileError(f"{path}: train has {train.shape[1]} columns, test has {test.shape[1]}")
        usable = _known(train)[1]
        time_ms = FIRST_MS + STEP_MS * (len(usable) + np.arange(len(test), dtype=np.int64))
        return _table(path, time_ms, test, _feature_names(test), label, usable)
    name = next((name for name in ("value", "values") if name in arrays), None)
    if name is None or TIMESTAMP not in arrays:
        raise InputFileError(f"{path}: holds {', '.join(arrays) or 'nothing'}; must hold timestamp,value or timestamp,values or train,test")
    value = _matrix(path, arrays, name)
    return _table(path, _npz_times(path, arrays[TIMESTAMP]), value, _feature_names(value), label)


def _npz_times(path: Path, times: NDArray[Any]) -> NDArray[np.int64]:
    if times.ndim != 1:
        raise InputFileError(f"{path}: timestamp has {times.ndim} dimensions, must have one")
    if times.dtype.kind == "M":
        if np.isnat(times).any():
            raise InputFileError(f"{path}, row {int(np.isnat(times).argmax())}: timestamp: got NaT, must be a time")
        milliseconds: NDArray[np.int64] = times.astype("datetime64[ms]").astype(np.int64)
        return milliseconds
    if times.dtype.kind == "U":
        return _times(path, times.tolist())
    if times.dtype.kind in "iuf":
        return _epochs(path, times)
    raise InputFileError(f"{path}: timestamp is of type {times.dtype}, must be numbers, datetime64 or ISO 8601 text")


def _matrix(path: Path, arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float64]:
    array = arrays[name]
    if array.dtype.kind not in "iufb":
        raise InputFileError(f"{path}: {name} is of type {array.dtype}, must be numbers")
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise InputFileError(f"{path}: {name} has shape {array.shape}, must be (n,) or (n, F)")
    return array.astype(np.float64).reshape(len(array), -1)


def _label(path: Path, arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.float64] | None:
    return _matrix(path, arrays, LABEL)[:, 0] if LABEL in arrays else None


def _feature_names(value: NDArray[np.float64]) -> tuple[str, ...]:
    return ("value",) if value.shape[1] == 1 else tuple(f"feature_{f}" for f in range(value.shape[1]))


def _table(
    path: Path,
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    names: tuple[str, ...],
    label: NDArray[np.float64] | None,
    train: NDArray[np.float64] | None = None,
) -> Table:
    """Keeps the rows that have a value."""
    lengths = {TIMESTAMP: len(time_ms), "values": len(value), LABEL: len(value if label is None else label)}
    if len(set(lengths.values())) > 1:
        raise InputFileError(f"{path}: columns of unequal length: {', '.join(f'{name} {length}' for name, length in lengths.items())}")
    if label is not None and (label < 0).any():
        # Some mark anomalies by -1 and what is ordinary by 1, which would be read the wrong way round.
        raise InputFileError(f"{path}: {LABEL} has values below 0; 0 marks an ordinary row, 1 an anomalous one")
    row, known = _known(value)
    truth = None if label is None else (label[row] > 0).astype(np.uint8)
    return Table(row, time_ms[row], known, names, truth, train, len(value) - len(row))


def _known(value: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The rows of (n, F) that have a finite value: their numbers, and their values with NaN for every other one."""
    finite = np.isfinite(value)
    row: NDArray[np.int64] = np.flatnonzero(finite.any(axis=1)).astype(np.int64)
    return row, np.where(finite[row], value[row], np.nan)
