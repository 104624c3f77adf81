r"""influx: line protocol, one or more lines a record, a sample for every numeric field, named `measurement.field`.

    cpu,cpu=cpu-total,host=web-01 usage_idle=91.2,n_cpus=8i,ok=t,state="up" 1766000000000000000

Values are floats, integers (`1i`), unsigned integers (`1u`) and booleans (counted as 0 and 1); text is no sample and no error. A backslash
escapes a comma, a space and, in tags and fields, an equals sign. Lines without a timestamp take the Kafka timestamp of the record; lines
that begin with # are comments. A malformed line costs the line, a value that is not finite costs the value.
"""

import re
from collections.abc import Callable
from typing import Final

from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import EMPTY, MALFORMED, NON_FINITE, RejectedError
from anomalyd.formats.times import TimestampUnit, in_bounds, milliseconds

_MEASUREMENT: Final = re.compile(rb"(?:[^, \r\n\\]++|\\[^\r\n])++")
_TAG: Final = re.compile(rb",((?:[^,= \r\n\\]++|\\[^\r\n])++)=((?:[^,= \r\n\\]++|\\[^\r\n])*+)")
_FIELD: Final = re.compile(rb'((?:[^,= \r\n\\]++|\\[^\r\n])++)=("(?:[^"\\]++|\\.)*+"|[^", \r\n]++)', re.DOTALL)
_SPACES: Final = re.compile(rb" ++")
_BLANK: Final = re.compile(rb"[ \t\r\n]++")
_END: Final = re.compile(rb"(?: ++(-?[0-9]{1,20}))? *+\r?(?:\n|\Z)")
_ESCAPED_IN_NAME: Final = re.compile(r"\\([, ])")
_ESCAPED: Final = re.compile(r"\\([,= ])")
_FLOAT: Final = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER: Final = re.compile(rb"(-?[0-9]{1,20})i|([0-9]{1,20})u")
_NOT_FINITE: Final = re.compile(rb"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_BOOLEANS: Final = dict.fromkeys((b"t", b"T", b"true", b"True", b"TRUE"), 1.0) | dict.fromkeys(
    (b"f", b"F", b"false", b"False", b"FALSE"), 0.0
)


def parse(value: bytes, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
    """The exact reading of one record, see `Parse`."""
    if not value:
        raise RejectedError(EMPTY)
    parsed, position = Parsed(), 0
    while True:
        blank = _BLANK.match(value, position)
        position = blank.end() if blank else position
        if position == len(value):
            return parsed
        try:
            position = _parse_line(value, position, unit, record_time_ms, parsed)
        except RejectedError as rejection:
            parsed.reject(rejection.reason)
            position = _next_line(value, position)


def _next_line(value: bytes, position: int) -> int:
    return value.find(b"\n", position) + 1 or len(value)


def _parse_line(value: bytes, position: int, unit: TimestampUnit, record_time_ms: Callable[[], int], parsed: Parsed) -> int:
    """Append the samples of the line at `position`; returns where the next one begins."""
    if value[position : position + 1] == b"#":
        return _next_line(value, position)
    measurement = _expect(_MEASUREMENT, value, position)
    position, labels = measurement.end(), {}
    while tag := _TAG.match(value, position):
        labels[_text(tag[1], _ESCAPED)] = _text(tag[2], _ESCAPED)
        position = tag.end()
    position = _expect(_SPACES, value, position).end()
    fields: dict[bytes, bytes] = {}
    while True:
        field = _expect(_FIELD, value, position)
        fields[field[1]] = field[2]
        position = field.end()
        if value[position : position + 1] != b",":
            break
        position += 1
    end = _expect(_END, value, position)
    time_ms = milliseconds(int(end[1]), unit) if end[1] else in_bounds(record_time_ms())
    name = _text(measurement[0], _ESCAPED_IN_NAME)
    samples, non_finite = [], False
    for key, raw in fields.items():
        number = _number(raw)
        if number is None:
            continue
        if number - number != 0.0:
            non_finite = True
        else:
            samples.append(ParsedSample(f"{name}.{_text(key, _ESCAPED)}", labels, time_ms, number))
    # Only a line that is whole counts: a malformed value further right rejects what stands left of it, too.
    parsed.samples += samples
    if non_finite:
        parsed.reject(NON_FINITE)
    return end.end()


def _expect(pattern: re.Pattern[bytes], value: bytes, position: int) -> re.Match[bytes]:
    match = pattern.match(value, position)
    if match is None:
        raise RejectedError(MALFORMED)
    return match


def _text(raw: bytes, escaped: re.Pattern[str]) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise RejectedError(MALFORMED) from None
    return escaped.sub(r"\1", text) if "\\" in text else text


def _number(raw: bytes) -> float | None:
    """The value, perhaps not finite; None for text."""
    if raw[:1] == b'"':
        return None
    if _FLOAT.fullmatch(raw):
        return float(raw)
    if integer := _INTEGER.fullmatch(raw):
        signed, unsigned = integer.groups()
        number = int(signed or unsigned)
        if (-(2**63) <= number < 2**63) if signed else number < 2**64:
            return float(number)
        raise RejectedError(MALFORMED)
    if raw in _BOOLEANS:
        return _BOOLEANS[raw]
    if _NOT_FINITE.fullmatch(raw):
        return float(raw)
    raise RejectedError(MALFORMED)
