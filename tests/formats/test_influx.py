"""Line protocol, line by line."""

import pytest

from anomalyd.formats import make_decoder
from anomalyd.series import SeriesIndex

AT = 1_766_000_000_000


def read(value: bytes) -> tuple[list[tuple[str | None, int, float]], list[str]]:
    """(key, time, value) of the samples, and the reason of the rejection if there is one."""
    index = SeriesIndex(100)
    decoded = make_decoder("influx").decode([value], lambda _: 7, index)
    batch = decoded.batch
    samples = [
        (index.keys[row], time, number)
        for row, time, number in zip(batch.row, batch.time_ms.tolist(), batch.value[:, 0].tolist(), strict=True)
    ]
    return samples, [reason for _, reason in decoded.rejected]


@pytest.mark.parametrize(
    ("raw", "number"),
    [
        *(
            (b"91.2", 91.2),
            (b"1", 1.0),
            (b"-1.5e3", -1500.0),
            (b"1.", 1.0),
            (b".5", 0.5),
            (b"+2", 2.0),
            (b"8i", 8.0),
            (b"-8i", -8.0),
            (b"7u", 7.0),
        ),
        *((word, 1.0) for word in (b"t", b"T", b"true", b"True", b"TRUE")),
        *((word, 0.0) for word in (b"f", b"F", b"false", b"False", b"FALSE")),
        *((b"9223372036854775807i", 2.0**63), (b"18446744073709551615u", 2.0**64), (b"007i", 7.0)),
    ],
)
def test_every_type_of_number(raw: bytes, number: float) -> None:
    assert read(b"m v=" + raw + b" 1766000000000000000") == ([("m.v", AT, number)], [])


def test_lines_comments_and_blanks() -> None:
    value = (
        b'# comment\n\ncpu,host=a idle=1,state="up, \\"x\\" y=1" 1766000000000000000\r\n'
        b'  mem used=5i,text="two\nlines",free=6i 1766000001000000000 \n'
    )
    samples = [('cpu.idle{host="a"}', AT, 1.0), ("mem.used", AT + 1000, 5.0), ("mem.free", AT + 1000, 6.0)]

    assert read(value) == (samples, [])


def test_escapes() -> None:
    value = b"disk\\ io\\,x,mount\\ point=C:\\,\\ \\=\\x,e= free\\ space=1 1766000000000000000"

    assert read(value) == ([('disk io,x.free space{mount point="C:, =\\\\x"}', AT, 1.0)], [])


def test_without_a_timestamp_that_of_the_record_counts() -> None:
    assert read(b"m v=1\nm v=2 \nm v=3 1766000000000000000") == ([("m.v", 7, 1.0), ("m.v", 7, 2.0), ("m.v", AT, 3.0)], [])


def test_text_only_and_comments_only_are_passed_over() -> None:
    assert read(b'm state="up" 1766000000000000000') == ([], [])
    assert read(b"# nothing\n\n") == ([], [])


@pytest.mark.parametrize(
    "bad",
    [
        *(
            b"m",
            b"m ",
            b"m v",
            b"m v=",
            b"m v= 5",
            b"m =1 5",
            b"m v=x 5",
            b"m v=1 x",
            b"m v=1 5 6",
            b"m v=1,,w=2 5",
            b"m v=1, 5",
            b"m v=1i5 5",
            b"m v=1e5i 5",
        ),
        *(
            b"m v=9223372036854775808i 5",
            b"m v=-1u 5",
            b"m v=1_0 5",
            b"m v=0x10 5",
            b'm v="open 5',
            b"m,tag v=1 5",
            b"m,=x v=1 5",
            b"m,a=b=c v=1 5",
            b"m,a v=1 5",
        ),
        *(b",a=b v=1 5", b"m\\", b"m v=1.5.5 5", b"m\xff v=1 5", b"m,a=\xff v=1 5", b"m v\xff=1 5", b"m v=1\t5", b'm v="a"b 5'),
    ],
)
def test_a_malformed_line_costs_the_line(bad: bytes) -> None:
    samples, reasons = read(b"good v=1 1766000000000000000\n" + bad)

    assert (samples, reasons) == ([("good.v", AT, 1.0)], ["malformed"])


def test_a_value_that_is_not_finite_costs_the_value() -> None:
    assert read(b"m a=1,b=NaN,c=2,d=1e999,e=-inf 1766000000000000000") == ([("m.a", AT, 1.0), ("m.c", AT, 2.0)], ["non-finite"])


@pytest.mark.parametrize("time", [b"-5", b"99999999999999999999"])
def test_a_bad_time_costs_the_line(time: bytes) -> None:
    assert read(b"m v=1 " + time + b"\nm v=2 1766000000000000000") == ([("m.v", AT, 2.0)], ["bad-timestamp"])


def test_the_last_of_two_fields_of_one_name_counts() -> None:
    assert read(b"m a=1,b=2,a=3 1766000000000000000") == ([("m.a", AT, 3.0), ("m.b", AT, 2.0)], [])
