"""A request is what Prometheus' own definition of it reads."""

import struct

import cramjam
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.remote.protobuf import compress, encode_labels, encode_series

Message = dict[int, list[bytes | int | float]]


def varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Message:
    """A protobuf message, by the number of the field; an independent reading of the wire format."""
    found: Message = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                value, at = varint(data, at)
                found.setdefault(tag >> 3, []).append(value - (1 << 64) if value >> 63 else value)
            case 1:
                found.setdefault(tag >> 3, []).append(struct.unpack_from("<d", data, at)[0])
                at += 8
            case 2:
                size, at = varint(data, at)
                found.setdefault(tag >> 3, []).append(data[at : at + size])
                at += size
            case other:
                raise AssertionError(f"wire type {other}")
    return found


def read(body: bytes) -> list[tuple[dict[str, str], list[tuple[int, float]]]]:
    """The series of a request: labels, and (time, value)."""
    series = []
    for one in fields(bytes(cramjam.snappy.decompress_raw(body))).get(1, []):
        assert isinstance(one, bytes)
        parts = fields(one)
        labels = [fields(label) for label in parts.get(1, []) if isinstance(label, bytes)]
        samples = [fields(sample) for sample in parts.get(2, []) if isinstance(sample, bytes)]
        names = [(name.decode(), value.decode()) for label in labels for name, value in [(label[1][0], label[2][0])]]  # type: ignore[union-attr]  # labels are text
        assert names == sorted(names)
        assert len(dict(names)) == len(names)
        series.append((dict(names), [(int(sample[2][0]), float(sample[1][0])) for sample in samples]))
    return series


@given(
    st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), st.text(min_size=1, max_size=300)),
    st.lists(st.tuples(st.integers(-(1 << 40), 1 << 50), st.floats(allow_nan=False)), min_size=1, max_size=50),
)
def test_what_is_written_is_read_back(labels: dict[str, str], samples: list[tuple[int, float]]) -> None:
    assert read(compress([encode_series(encode_labels(labels), samples)] * 2)) == [(labels, samples)] * 2


def test_labels_without_a_value_are_left_out() -> None:
    assert read(compress([encode_series(encode_labels({"a": "", "b": "1"}), [(0, 1.0)])])) == [({"b": "1"}, [(0, 1.0)])]
