"""The body of a remote write request, version 1: `prometheus.WriteRequest` of prompb/remote.proto, in snappy's block format.

    message WriteRequest { repeated TimeSeries timeseries = 1; }
    message TimeSeries   { repeated Label labels = 1; repeated Sample samples = 2; }
    message Label        { string name = 1; string value = 2; }
    message Sample       { double value = 1; int64 timestamp = 2; }

Four messages do not warrant a protobuf runtime. Labels are sorted by name, each name once, none empty; samples of a series by time.
Source: the specification "Prometheus Remote-Write 1.0", prometheus.io/docs/specs/prw.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Final

import cramjam

HEADERS: Final = {
    "Content-Encoding": "snappy",
    "Content-Type": "application/x-protobuf",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}

_SERIES: Final = b"\x0a"  # field 1, length-delimited; the same in a label for its name, and in a series for a label
_VALUE: Final = b"\x12"  # field 2, length-delimited
_DOUBLE: Final = struct.Struct("<d").pack


def encode_labels(labels: Mapping[str, str]) -> bytes:
    """The labels of a series, `__name__` among them, as they stand in a TimeSeries. Labels without a value are left out."""
    parts = []
    for name in sorted(name for name, value in labels.items() if value):
        label = _field(_SERIES, name.encode()) + _field(_VALUE, labels[name].encode())
        parts.append(_field(_SERIES, label))
    return b"".join(parts)


def encode_series(labels: bytes, samples: Iterable[tuple[int, float]]) -> bytes:
    """A series in a request.

    Args:
        labels: as `encode_labels` made them.
        samples: (time in milliseconds since the epoch, value), times ascending.
    """
    parts = [labels]
    for time_ms, value in samples:
        time = _time(time_ms)
        # Field 1 of 64 bits; with the time a sample is far below 128 bytes, so its length is one.
        parts.append(b"\x12%c\x09%b%b" % (9 + len(time), _DOUBLE(value), time))
    return _field(_SERIES, b"".join(parts))


@lru_cache(4096)  # the four values of a sample have one time, and so have many series
def _time(time_ms: int) -> bytes:
    return b"\x10" + _varint(time_ms & 0xFFFF_FFFF_FFFF_FFFF)


def compress(series: Sequence[bytes]) -> bytes:
    """The body of a request with these series."""
    return bytes(cramjam.snappy.compress_raw(b"".join(series)))


def _field(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
