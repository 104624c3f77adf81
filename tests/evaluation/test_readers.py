import gzip
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from anomalyd.errors import ConfigError, InputFileError
from anomalyd.evaluation.readers import FIRST_MS, STEP_MS, InputFile, Table, find, read_lines, read_table

DATA = Path(os.environ.get("ANOMALYD_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
NOON_MS = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000)


def csv_table(folder: Path, text: str, name: str = "a.csv") -> Table:
    path = folder / name
    path.write_text(text)
    return read_table(InputFile(path, "a", "csv"))


def npz_table(folder: Path, **arrays: object) -> Table:
    path = folder / "a.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]  # whatever a user may have saved
    return read_table(InputFile(path, "a", "npz"))


@pytest.mark.parametrize(
    "stamp",
    [
        "2026-01-01 12:00:00",
        "2026-01-01T12:00:00Z",
        "2026-01-01T13:00:00.000+01:00",
        str(NOON_MS // 1000),
        str(NOON_MS / 1000),
        str(NOON_MS),
        str(NOON_MS * 1000),
        str(NOON_MS * 10**6),
    ],
)
def test_a_moment_may_be_written_in_many_ways(tmp_path: Path, stamp: str) -> None:
    table = csv_table(tmp_path, f"timestamp,value\n{stamp},1.5\n{stamp},2\n")

    assert table.time_ms.tolist() == [NOON_MS, NOON_MS]
    assert table.value.tolist() == [[1.5], [2.0]]
    assert table.names == ("value",)


def test_rows_without_a_finite_value_are_left_out_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "timestamp,cpu\n1,1\n2,\n\n3,nan\n4,inf\n5,NULL\n6,6\n")

    assert table.row.tolist() == [0, 5]
    assert table.time_ms.tolist() == [1000, 6000]
    assert table.value.tolist() == [[1], [6]]
    assert table.skipped == 4


def test_of_several_values_some_may_be_missing(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "timestamp,cpu,mem\n1,1,2\n2,,3\n3,nan,NULL\n4,4,-inf\n5,6,7\n")

    assert table.row.tolist() == [0, 1, 3, 4]
    np.testing.assert_array_equal(table.value, [[1, 2], [np.nan, 3], [4, np.nan], [6, 7]])
    assert table.skipped == 1


def test_labels_of_the_other_sign_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="label has values below 0; 0 marks an ordinary row, 1 an anomalous one"):
        csv_table(tmp_path, "value,label,timestamp\n5,1,1\n6,-1,2\n")


def test_a_label_column_is_the_truth_and_not_a_value(tmp_path: Path) -> None:
    table = csv_table(tmp_path, "value,label,timestamp\n5,0,1\n,1,2\n6,1,3\n")

    assert table.names == ("value",)
    assert table.label is not None
    assert table.label.tolist() == [0, 1]


def test_gzip_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress("\ufefftimestamp,value\r\n1,2\r\n".encode()))

    assert read_table(InputFile(path, "a", "csv")).value.tolist() == [[2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header must have a column timestamp, got nothing"),
        ("time,value\n1,2\n", "line 1: the header must have a column timestamp, got time, value"),
        ("timestamp;value\n1;2\n", "line 1: fields must be separated by commas, not by ;"),
        ("timestamp\tvalue\n1\t2\n", "line 1: fields must be separated by commas, not by tabs"),
        ("timestamp,label\n1,2\n", "line 1: the header must have a value column"),
        ("timestamp,a,a\n1,2,3\n", "line 1: two columns are called 'a'"),
        ("timestamp,value\n", "holds a header and no rows"),
        ("timestamp,value\n1,2\n\n2,3,4\n", "line 4: 3 fields, the header has 2"),
        ("timestamp,value\n1,2\n2,high\n", "line 3: column value: got 'high', must be a number"),
        ("timestamp,value\n2026-01-01,2\nyesterday,3\n", "line 3: timestamp: got 'yesterday', must be ISO 8601 or an epoch"),
        ("timestamp,value\n1,2\nnan,3\n", "line 3: timestamp: got nan, must be ISO 8601 or an epoch"),
        ("timestamp,value\n1,2\n,3\n", "line 2: timestamp: got '1', must be ISO 8601 or an epoch"),
    ],
)
def test_a_wrong_csv_says_where_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputFileError) as caught:
        csv_table(tmp_path, text)

    assert str(tmp_path / "a.csv") in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "times",
    [
        np.array([NOON_MS // 1000, NOON_MS // 1000 + 60]),
        np.array([NOON_MS * 10**6, (NOON_MS + 60_000) * 10**6]),
        np.array([NOON_MS / 1000, NOON_MS / 1000 + 60]),
        np.array(["2026-01-01T12:00", "2026-01-01T12:01"], dtype="datetime64[m]"),
        np.array(["2026-01-01T12:00", "2026-01-01T12:01Z"]),
    ],
)
def test_npz_times_may_have_any_sensible_type(tmp_path: Path, times: object) -> None:
    table = npz_table(tmp_path, timestamp=times, value=np.array([1, 2]), label=np.array([False, True]))

    assert table.time_ms.tolist() == [NOON_MS, NOON_MS + 60_000]
    assert table.label is not None
    assert table.label.tolist() == [0, 1]


def test_train_comes_directly_before_test_in_steps_of_a_minute(tmp_path: Path) -> None:
    train = np.arange(8.0).reshape(4, 2)
    train[1, 0] = train[2, 0] = train[2, 1] = np.nan

    table = npz_table(tmp_path, train=train, test=np.ones((4, 2)), label=np.array([0, 0, 1, 0]))

    assert table.train is not None
    np.testing.assert_array_equal(table.train, [[0, 1], [np.nan, 3], [6, 7]])
    assert table.time_ms.tolist() == [FIRST_MS + k * STEP_MS for k in (3, 4, 5, 6)]
    assert table.row.tolist() == [0, 1, 2, 3]
    assert table.names == ("feature_0", "feature_1")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(3)}, "holds x; must hold timestamp,value or timestamp,values or train,test"),
        ({"timestamp": np.arange(3), "value": np.ones(4)}, "columns of unequal length: timestamp 3, values 4, label 4"),
        ({"timestamp": np.arange(3), "value": np.ones(3), "label": np.ones(2)}, "label 2"),
        ({"timestamp": np.arange(3), "value": np.array(["a", "b", "c"])}, "value is of type <U1, must be numbers"),
        ({"timestamp": np.arange(3), "value": np.ones((3, 2, 2))}, "value has shape (3, 2, 2)"),
        ({"timestamp": np.array([1.0, np.nan]), "value": np.ones(2)}, "row 1: timestamp: got nan"),
        ({"timestamp": np.array([True, False]), "value": np.ones(2)}, "timestamp is of type bool"),
        ({"timestamp": np.ones((2, 1)), "value": np.ones(2)}, "timestamp has 2 dimensions"),
        ({"timestamp": np.array(["2026-01-01", "NaT"], dtype="datetime64[s]"), "value": np.ones(2)}, "row 1: timestamp: got NaT"),
        ({"train": np.ones((3, 2)), "test": np.ones((3, 4))}, "train has 2 columns, test has 4"),
        ({"timestamp": np.arange(1), "value": np.array([{}])}, "damaged or holds no plain numbers"),
    ],
)
def test_a_wrong_npz_says_what_was_expected(tmp_path: Path, arrays: dict[str, object], message: str) -> None:
    with pytest.raises(InputFileError) as caught:
        npz_table(tmp_path, **arrays)

    assert message in str(caught.value)


def test_what_is_no_npz_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_text("timestamp,value\n1,2\n")

    with pytest.raises(InputFileError) as caught:
        read_table(InputFile(path, "a", "npz"))

    assert str(caught.value) == f"{path}: not an npz file"


@pytest.mark.parametrize(("name", "kind"), [("a.npz", "npz"), ("a.csv.gz", "csv"), ("b.csv", "csv")])
def test_a_damaged_file_is_no_traceback(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"timestamp,value\n" * 9999)[:40] if name.endswith("gz") else b"PK\x03\x04\xff\xfe broken")

    with pytest.raises(InputFileError, match=r"damaged|not UTF-8"):
        read_table(InputFile(path, "a", kind))  # type: ignore[arg-type]


def test_outputs_are_named_below_the_common_parent(tmp_path: Path) -> None:
    for name in ("x/b.csv", "x/a.csv.gz", "y/deep/c.d.npz", "y/notes.txt", "z.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    assert [file.name for file in find([tmp_path], lines=False)] == ["x/a", "x/b", "y/deep/c.d"]
    assert [file.name for file in find([tmp_path], lines=True)] == ["x/a", "x/b", "y/deep/c.d", "z"]
    assert [file.name for file in find([tmp_path / "x/b.csv"], lines=False)] == ["b"]
    assert [file.name for file in find([tmp_path / "y/deep", tmp_path / "x"], lines=False)] == ["y/deep/c.d", "x/a", "x/b"]
    assert [file.name for file in find([tmp_path / "x", tmp_path / "x/b.csv"], lines=False)] == ["a", "b"]
    assert [file.kind for file in find([tmp_path / "y/notes.txt"], lines=True)] == ["lines"]


def test_what_cannot_be_read_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.csv").touch()
    (tmp_path / "b.npz").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(ConfigError, match="no such file"):
        find([tmp_path / "absent.csv"], lines=False)
    with pytest.raises(InputFileError, match="name its format with --format"):
        find([tmp_path / "a.txt"], lines=False)
    with pytest.raises(InputFileError, match=r"b\.npz: its output would be b\.npz, and so would that of .*b\.csv"):
        find([tmp_path], lines=False)
    with pytest.raises(InputFileError, match="holds no file that ends in"):
        find([tmp_path / "empty"], lines=False)


def test_lines_are_records_and_blank_ones_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n{"b": "\xc3\xa9"}')

    assert list(read_lines(InputFile(path, "a", "lines"))) == [b'{"a": 1}', b"", b'{"b": "\xc3\xa9"}']


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no labelled data at {DATA} (set ANOMALYD_TEST_DATA)")
@pytest.mark.parametrize(
    ("folder", "files", "rows", "features"), [("nab", 58, 365_558, 1), ("kpi", 10, 1_036_807, 1), ("smd", 7, None, 38)]
)
def test_public_data_sets_are_read_whole(folder: str, files: int, rows: int | None, features: int) -> None:
    tables = [read_table(file) for file in find([DATA / folder], lines=False)]

    assert len(tables) == files
    assert rows is None or sum(map(len, tables)) == rows
    assert {table.value.shape[1] for table in tables} == {features}
    assert not any(table.skipped for table in tables)
