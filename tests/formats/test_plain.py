"""plain-json, record by record."""

import pytest

from anomalyd.formats import make_decoder
from anomalyd.series import SeriesIndex


def read(value: bytes, record_time_ms: int = 7) -> tuple[list[tuple[str | None, int, float]], list[str]]:
    """(key, time, value) of the samples, and the reason of the rejection if there is one."""
    index = SeriesIndex(100)
    decoded = make_decoder("plain-json").decode([value], lambda _: record_time_ms, index)
    batch = decoded.batch
    samples = [
        (index.keys[row], time, number)
        for row, time, number in zip(batch.row, batch.time_ms.tolist(), batch.value[:, 0].tolist(), strict=True)
    ]
    return samples, [reason for _, reason in decoded.rejected]


@pytest.mark.parametrize(
    ("value", "sample"),
    [
        (
            b'{"name": "queue_depth", "ts": 1766000000123, "value": 42.5, "tags": {"host": "web-01"}}',
            ('queue_depth{host="web-01"}', 1766000000123, 42.5),
        ),
        (b'{"name":"m","ts":1766000000,"value":-1}', ("m", 1766000000000, -1.0)),
        (b'{"name":"m","ts":1766000000,"value":1,"tags":null}', ("m", 1766000000000, 1.0)),
        (b'{"name":"m","ts":"2025-12-17T19:33:20Z","value":true}', ("m", 1766000000000, 1.0)),
        (b'{"name":"m","value":1}', ("m", 7, 1.0)),
        (b'{"name":"m","ts":null,"value":1}', ("m", 7, 1.0)),
        (b'{"unit":"ms","name":"m","value":1,"more":{"a":[1]},"ts":5}', ("m", 5000, 1.0)),
        (
            b'{"name":"m","ts":5,"value":1,"tags":{"port":8080,"tls":true,"ratio":1.5,"none":null,"empty":""}}',
            ('m{port="8080",ratio="1.5",tls="true"}', 5000, 1.0),
        ),
        (b'{"name":"m","ts":5,"value":1,"tags":{"a":"q\\"b\\\\n\\n"}}', ('m{a="q\\"b\\\\n\\n"}', 5000, 1.0)),
        (b'{"name":"m","ts":5,"value":1,"value":2}', ("m", 5000, 2.0)),
        (b' {\n"name" :\t"m\xc3\xa9","ts":5 ,"value": 1e2 }\r\n', ("mé", 5000, 100.0)),
    ],
)
def test_good_records(value: bytes, sample: tuple[str, int, float]) -> None:
    assert read(value) == ([sample], [])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"null", "not-an-object"),
        (b"[]", "not-an-object"),
        (b"5", "not-an-object"),
        (b'{"name":"m","ts":5,"value":1', "malformed"),
        (b'{"name":"m","ts":5,"value":01}', "malformed"),
        (b'{"name":"m","ts":5,"value":1,}', "malformed"),
        (b'{"name":"m","ts":5,"value":1} x', "malformed"),
        (b'{"name":"m","ts":5,"value":1}\x00', "malformed"),
        (b'{"name":"m","ts":5,"value":1,"tags":{"a":"\xff"}}', "malformed"),
        (b'{"name":"m","ts":5,"value":1,"tags":{"a":"\\ud800"}}', "malformed"),
        (b'{"name":"m","ts":5,"value":1,"x":"\xff"}', "malformed"),
        (b'{"name":"","ts":5,"value":1}', "no-name"),
        (b'{"name":5,"ts":5,"value":1}', "no-name"),
        (b'{"ts":5,"value":1}', "no-name"),
        (b'{"name":"m","ts":"soon","value":1}', "bad-timestamp"),
        (b'{"name":"m","ts":-5,"value":1}', "bad-timestamp"),
        (b'{"name":"m","ts":5}', "non-numeric"),
        (b'{"name":"m","ts":5,"value":"1"}', "non-numeric"),
        (b'{"name":"m","ts":5,"value":null}', "non-numeric"),
        (b'{"name":"m","ts":5,"value":[1]}', "non-numeric"),
        (b'{"name":"m","ts":5,"value":NaN}', "non-finite"),
        (b'{"name":"m","ts":5,"value":-Infinity}', "non-finite"),
        (b'{"name":"m","ts":5,"value":1e999}', "non-finite"),
        (b'{"name":"m","ts":5,"value":1' + b"0" * 400 + b"}", "non-finite"),
        (b'{"name":"m","ts":5,"value":1,"tags":[]}', "bad-labels"),
        (b'{"name":"m","ts":5,"value":1,"tags":{"a":{"b":1}}}', "bad-labels"),
        (b'{"name":"m","ts":5,"value":1,"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "too-deep"),
    ],
)
def test_bad_records(value: bytes, reason: str) -> None:
    assert read(value) == ([], [reason])


def test_a_record_without_any_time_is_refused() -> None:
    """-1 is how Kafka says that a record has no timestamp."""
    assert read(b'{"name":"m","value":1}', record_time_ms=-1) == ([], ["bad-timestamp"])
