"""The registry of formats, and what holds for every one of them."""

from pathlib import Path
from typing import cast

import pytest

from anomalyd.errors import ConfigError
from anomalyd.formats import FORMATS, REASONS, FormatOptions, make_decoder
from anomalyd.formats.times import TimestampUnit
from anomalyd.series import Selection, SeriesIndex

GOOD = {
    "plain-json": [
        b'{"name": "depth", "ts": 1766000000123, "value": 42.5, "tags": {"host": "a"}}',
        b'{"name":"load","ts":1766000001,"value":1}',
    ],
    "telegraf-json": [
        b'{"fields":{"idle":91.2,"user":3},"name":"cpu","tags":{"host":"a"},"timestamp":1766000000}\n',
        b'{"fields":{"idle":90},"name":"cpu","tags":{"host":"b"},"timestamp":1766000001}\n',
    ],
    "influx": [b"cpu,host=a idle=91.2,user=3i 1766000000000000000\n", b"cpu,host=b idle=90 1766000001000000000"],
}


def test_an_unknown_format_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="got 'avro', valid are plain-json, telegraf-json, influx"):
        make_decoder("avro")


def test_an_unknown_unit_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match="got 'minutes', valid are auto, s, ms, us, ns"):
        make_decoder("influx", FormatOptions(cast("TimestampUnit", "minutes")))


@pytest.mark.parametrize("name", FORMATS)
def test_columns_have_their_types_and_shapes(name: str) -> None:
    for _ in range(2):  # read exactly, then by the scanner
        index = SeriesIndex(10)
        batch = make_decoder(name).decode(GOOD[name], lambda _: 0, index).batch

        n = len(batch)
        assert [column.dtype.str for column in (batch.row, batch.time_ms, batch.value, batch.record)] == ["<i4", "<i8", "<f8", "<i4"]
        assert (batch.row.shape, batch.time_ms.shape, batch.value.shape, batch.record.shape) == ((n,), (n,), (n, 1), (n,))
        assert n == len(index)


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_in_nothing_out(name: str) -> None:
    decoded = make_decoder(name).decode([], lambda _: 0, SeriesIndex(10))

    assert (len(decoded.batch), decoded.rejected, decoded.consumed) == (0, [], 0)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_no_record_at_all_is_rejected_and_the_rest_decoded(name: str) -> None:
    deep = b"[" * 5000 + b"]" * 5000
    values = [None, b"", b"{", b"\xff\xfe\x00", b"A" * 900_000, deep, b'{"name":' + deep + b"}", *GOOD[name], b"\x00", b'"' * 100_000]
    index = SeriesIndex(10)

    decoded = make_decoder(name).decode(values, lambda _: 0, index)

    assert [record for record, _ in decoded.rejected] == [i for i, value in enumerate(values) if value not in GOOD[name]]
    assert {reason for _, reason in decoded.rejected} <= set(REASONS)
    assert dict(decoded.rejected)[0] == dict(decoded.rejected)[1] == "empty"
    assert set(decoded.batch.record.tolist()) == {7, 8}


@pytest.mark.parametrize("name", FORMATS)
def test_a_known_series_needs_no_python(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    index, decoder = SeriesIndex(10), make_decoder(name)
    first = decoder.decode(GOOD[name], lambda _: 0, index).batch

    monkeypatch.setattr(decoder, "_parse", None)
    again = decoder.decode(GOOD[name], lambda _: 0, index).batch

    assert again.row.tolist() == first.row.tolist()
    assert again.value.tolist() == first.value.tolist()


@pytest.mark.parametrize("name", FORMATS)
def test_series_that_are_not_selected_give_no_samples_and_no_rejection(name: str) -> None:
    index = SeriesIndex(10, Selection(exclude=['*{host="a"}']))
    for _ in range(2):
        decoded = make_decoder(name).decode(GOOD[name], lambda _: 0, index)

        assert decoded.rejected == []
        assert decoded.batch.record.tolist() == [1]
        assert len(index) == 1


def test_a_full_index_stops_before_the_record_that_needs_a_row() -> None:
    """Samples of that record that have a row already are not in the batch: it is decoded again, as a whole, after the eviction."""
    record = b'{"fields":{%b},"name":"m","timestamp":1766000000}'
    values = [record % b'"a":1', record % b'"a":2,"b":2', b"junk", record % b'"b":3,"c":3', record % b'"a":4']
    index, decoder = SeriesIndex(2), make_decoder("telegraf-json")

    decoded = decoder.decode(values, lambda _: 0, index)

    assert decoded.consumed == 3
    assert decoded.batch.value[:, 0].tolist() == [1, 2, 2]
    assert decoded.rejected == [(2, "malformed")]
    assert index.keys == ["m.a", "m.b"]


def test_a_record_with_more_series_than_rows_is_rejected_as_a_whole() -> None:
    """No eviction could ever make room for it."""
    values = [b'{"fields":{"a":1,"b":2,"c":3},"name":"m","timestamp":1766000000}', b'{"fields":{"a":4},"name":"m","timestamp":1766000000}']
    index = SeriesIndex(2)

    decoded = make_decoder("telegraf-json").decode(values, lambda _: 0, index)

    assert (decoded.rejected, decoded.consumed) == ([(0, "too-large")], 2)
    assert decoded.batch.record.tolist() == [1]
    assert len(index) == 1


def test_a_key_beyond_bounds_costs_its_sample_only() -> None:
    value = b'{"fields":{"a":1,"%b":2},"name":"m","timestamp":1766000000}' % (b"x" * 5000)

    decoded = make_decoder("telegraf-json").decode([value], lambda _: 0, SeriesIndex(5))

    assert decoded.rejected == [(0, "too-large")]
    assert decoded.batch.value[:, 0].tolist() == [1]


def test_spellings_of_one_series_share_its_row() -> None:
    """Order and spacing of labels, and labels without a value, are no difference."""
    index, decoder = SeriesIndex(10), make_decoder("plain-json")
    values = [
        b'{"name":"m","ts":1766000000,"value":1,"tags":{"a":"1","b":"2"}}',
        b'{"name":"m","ts":1766000000,"value":1,"tags":{"b":"2","a":"1"}}',
        b'{"name":"m","ts":1766000000,"value":1,"tags": { "a" : "1", "b":"2","c":""}}',
        b'{"name":"m","ts":1766000000,"value":1,"tags":{"a":"\\u0031","b":"2","c":null}}',
    ]
    for _ in range(2):
        assert decoder.decode(values, lambda _: 0, index).batch.row.tolist() == [0, 0, 0, 0]
    assert index.keys == ['m{a="1",b="2"}']


@pytest.mark.parametrize("name", FORMATS)
def test_samples_without_a_time_take_that_of_their_own_record(name: str) -> None:
    """In the second round from the scanner; a record without any time, -1 in Kafka, is refused and costs nobody else."""
    value = {
        "plain-json": b'{"name":"m","value":1}',
        "telegraf-json": b'{"fields":{"a":1,"b":2},"name":"m"}',
        "influx": b"m a=1\nm b=2 5000",
    }[name]
    index, decoder = SeriesIndex(10), make_decoder(name, FormatOptions("ms"))
    for _ in range(2):
        decoded = decoder.decode([value, value, value], [10, -1, 30].__getitem__, index)

        assert decoded.rejected == [(1, "bad-timestamp")]
        times = {"plain-json": [10, 30], "telegraf-json": [10, 10, 30, 30], "influx": [10, 5000, 5000, 30, 5000]}[name]
        assert decoded.batch.time_ms.tolist() == times


def test_every_reason_and_format_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()

    assert [reason for reason in REASONS if f"| `{reason}` |" not in text] == []
    assert [name for name in FORMATS if f"| `{name}` |" not in text] == []
