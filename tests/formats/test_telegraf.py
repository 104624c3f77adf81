"""telegraf-json, record by record."""

import pytest

from anomalyd.formats import make_decoder
from anomalyd.series import SeriesIndex

AT = 1_766_000_000_000


def read(value: bytes) -> tuple[list[tuple[str | None, int, float]], list[str]]:
    """(key, time, value) of the samples, and the reason of the rejection if there is one."""
    index = SeriesIndex(1000)
    decoded = make_decoder("telegraf-json").decode([value], lambda _: 7, index)
    batch = decoded.batch
    samples = [
        (index.keys[row], time, number)
        for row, time, number in zip(batch.row, batch.time_ms.tolist(), batch.value[:, 0].tolist(), strict=True)
    ]
    return samples, [reason for _, reason in decoded.rejected]


def metric(fields: bytes, rest: bytes = b'"name":"cpu","tags":{"host":"a"},"timestamp":1766000000') -> bytes:
    return b'{"fields":{' + fields + b"}," + rest + b"}\n"


def test_a_sample_for_every_numeric_field_in_their_order() -> None:
    samples = [('cpu.user{host="a"}', AT, 3.0), ('cpu.idle{host="a"}', AT, 91.2), ('cpu.n{host="a"}', AT, -8.0)]

    assert read(metric(b'"user":3,"idle":91.2,"n":-8')) == (samples, [])


def test_booleans_count_and_text_and_null_are_passed_over() -> None:
    samples = [('cpu.up{host="a"}', AT, 1.0), ('cpu.down{host="a"}', AT, 0.0)]

    assert read(metric(b'"state":"fine","up":true,"none":null,"down":false,"nan":"NaN"')) == (samples, [])


@pytest.mark.parametrize("fields", [b"", b'"uptime_format":"5 days"', b'"a":null,"b":"\xc3\xa9"'])
def test_a_metric_without_numeric_fields_is_passed_over(fields: bytes) -> None:
    assert read(metric(fields)) == ([], [])


def test_the_last_of_two_fields_of_one_name_counts() -> None:
    assert read(metric(b'"a":1,"b":2,"a":3')) == ([('cpu.a{host="a"}', AT, 3.0), ('cpu.b{host="a"}', AT, 2.0)], [])
    assert read(metric(b'"a":1,"a":"x"')) == ([], [])
    assert read(metric(b'"a":"x","a":1')) == ([('cpu.a{host="a"}', AT, 1.0)], [])


@pytest.mark.parametrize(
    ("bad", "reason"), [(b"1e999", "non-finite"), (b"NaN", "non-finite"), (b"[1]", "non-numeric"), (b'{"x":1}', "non-numeric")]
)
def test_a_bad_field_costs_itself_only(bad: bytes, reason: str) -> None:
    assert read(metric(b'"good":1,"bad":' + bad + b',"fine":2')) == (
        [('cpu.good{host="a"}', AT, 1.0), ('cpu.fine{host="a"}', AT, 2.0)],
        [reason],
    )


def test_a_batch_of_metrics() -> None:
    one, other = metric(b'"a":1').strip(), metric(b'"a":2', b'"name":"mem","timestamp":1766000000')
    samples = [('cpu.a{host="a"}', AT, 1.0), ("mem.a", AT, 2.0)]

    assert read(b'{"metrics":[' + one + b"," + other + b"]}") == (samples, [])
    assert read(b'{"metrics":[' + one + b",{}," + other + b",5]}") == (samples, ["no-name"])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"name":5,"fields":7}', "no-name"),
        (b'{"name":"x","fields":7}', "no-fields"),
        (b'{"name":"x"}', "no-fields"),
        (b'{"fields":{}}', "no-name"),
        (b'{"metrics":5}', "no-name"),
        (metric(b'"a":1', b'"name":"x","timestamp":"soon"'), "bad-timestamp"),
        (metric(b'"a":1', b'"name":"x","timestamp":-5'), "bad-timestamp"),
        (metric(b'"a":1', b'"name":"x","tags":5'), "bad-labels"),
        (metric(b'"a":1', b'"name":"x","tags":{"a":"\xff"}'), "malformed"),
        (metric(b'"a":' + b"[" * 5000 + b"]" * 5000), "too-deep"),
    ],
)
def test_bad_records(value: bytes, reason: str) -> None:
    assert read(value) == ([], [reason])


def test_without_a_timestamp_that_of_the_record_counts() -> None:
    assert read(metric(b'"a":1', b'"name":"x"')) == ([("x.a", 7, 1.0)], [])


def test_hundreds_of_fields() -> None:
    fields = b",".join(b'"f%d":%d,"s%d":"text"' % (i, i, i) for i in range(300))
    samples, reasons = read(metric(fields))

    assert ([number for _, _, number in samples], reasons) == (list(map(float, range(300))), [])
