r"""influx: line protocol, one or more lines a record, a sample for every numeric field, named `measurement.field`.

    cpu,cpu=cpu-total,host=web-01 usage_idle=91.2,n_cpus=8i,ok=t,state="up" 1766000000000000000

Values are floats, integers (`1i`), unsigned integers (`1u`) and booleans (counted as 0 and 1); text is no sample and no error. A backslash
escapes a comma, a space and, in tags and fields, an equals sign. Lines without a timestamp take the Kafka timestamp of the record; lines
that begin with # are comments. A malformed line costs the line, a value that is not finite costs the value.
"""

import re
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.formats.decoder import ABSENT, Scanned
from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import EMPTY, MALFORMED, NON_FINITE, RejectedError
from anomalyd.formats.scan import (
    BACKSLASH,
    BEHIND_SPACES,
    COMMA,
    COMMAS,
    DECLINED,
    EQUALS,
    MINUS,
    QUOTE,
    SPACE,
    SPACES,
    Address,
    Columns,
    base_of,
    hash_bytes,
    identity_of,
    is_among,
    join,
    read_number,
    read_token,
    time_of_integer,
    unit_code,
    word_of,
)
from anomalyd.formats.times import TimestampUnit, in_bounds, milliseconds
from anomalyd.intrinsics import address_of, byte_at, load_word, put_float, put_word, word_at
from anomalyd.jit import njit

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


# The shortest sample, `,a=1`, takes 4 bytes.
_SHORTEST: Final = 4
# Names of fields that are no samples, remembered to notice one that comes twice.
_MOST_SKIPPED: Final = 64

_CARRIAGE_RETURN: Final = ord("\r")
_LINE_END: Final = ord("\n")
_TAB: Final = ord("\t")
_COMMENT: Final = ord("#")
_LETTER_I: Final = ord("i")
_LETTER_U: Final = ord("u")
_LETTER_T: Final = ord("t")
_LETTER_F: Final = ord("f")
_TRUE, _MASK_4 = word_of("true")
_TRUE_TITLE, _ = word_of("True")
_TRUE_UPPER, _ = word_of("TRUE")
_FALSE, _MASK_5 = word_of("false")
_FALSE_TITLE, _ = word_of("False")
_FALSE_UPPER, _ = word_of("FALSE")


def scan(values: Sequence[bytes | None], unit: TimestampUnit) -> Scanned:
    """Read what is plain: see `Scan`."""
    data, starts = join(values)
    found = Columns(len(values), len(data) // _SHORTEST)
    skipped = np.empty((_MOST_SKIPPED, 2), np.uint64)
    _scan(data, starts, unit_code(unit), found.done, found.first, found.record, found.time_ms, found.value, found.hashes, skipped)
    return found.scanned()


@njit
def _scan(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    unit: int,
    done: NDArray[np.bool_],
    first: NDArray[np.int64],
    record: NDArray[np.int32],
    time_ms: NDArray[np.int64],
    value: NDArray[np.float64],
    hashes: NDArray[np.uint64],
    skipped: NDArray[np.uint64],
) -> None:
    n, text, times, numbers, names, others = (
        0,
        address_of(data),
        address_of(time_ms),
        address_of(value),
        address_of(hashes),
        address_of(skipped),
    )
    for i in range(len(done)):
        first[i] = n
        p, m, end = starts[i], n, starts[i + 1] - 1
        while True:
            p = _skip_to_line(text, p, end)
            if p == end:
                break
            p, m = _scan_line(text, p, unit, m, times, numbers, names, others)
            if p < 0:
                break
        if p == end and m > n:
            done[i] = True
            for k in range(n, m):
                record[k] = i
            n = m
    first[len(done)] = n


@njit(forceinline=True)
def _skip_to_line(data: Address, p: int, end: int) -> int:
    """Where the next line begins that is neither blank nor a comment, else the end of the record."""
    while True:
        while byte_at(data, p) <= SPACE and (
            byte_at(data, p) == SPACE or byte_at(data, p) == _LINE_END or byte_at(data, p) == _CARRIAGE_RETURN or byte_at(data, p) == _TAB
        ):
            p += 1
        if p == end or byte_at(data, p) != _COMMENT:
            return p
        while p < end and byte_at(data, p) != _LINE_END:
            p += 1


@njit(forceinline=True)
def _scan_line(
    data: Address,
    p: int,
    unit: int,
    n: int,
    time_ms: Address,
    value: Address,
    hashes: Address,
    skipped: Address,
) -> tuple[int, int]:
    """One line: (behind its end or DECLINED, number of samples so far)."""
    start = p
    p, a, b = read_token(data, p, SPACES, SPACES, SPACES)
    if p < 0:
        p, a, b = _read_escaped_series(data, start)
        if p < 0:
            return DECLINED, n
    base_a, base_b = base_of(a, a), base_of(b, b)
    while byte_at(data, p) == SPACE:
        p += 1
    p, m = _scan_fields(data, p, n, value, hashes, skipped)
    if p < 0 or m == n:
        # A line without samples is left to the exact reading: nobody else would notice tags that are no valid UTF-8.
        return DECLINED, n
    p, time = _read_line_end(data, p, unit)
    for k in range(n, m):
        put_word(time_ms, k, np.uint64(time))
        put_word(hashes, 2 * k, identity_of(base_a, word_at(hashes, 2 * k)))
        put_word(hashes, 2 * k + 1, identity_of(base_b, word_at(hashes, 2 * k + 1)))
    return p, m


@njit(forceinline=True)
def _read_line_end(data: Address, p: int, unit: int) -> tuple[int, int]:
    """From behind the fields: (behind the end of the line or at the NUL behind the record, event time in ms or ABSENT)."""
    fields_end, time = p, ABSENT
    while byte_at(data, p) == SPACE:
        p += 1
    if byte_at(data, p) > SPACE:
        if p == fields_end or byte_at(data, p) == MINUS:
            return DECLINED, 0
        p, _, integer, whole = read_number(data, p)
        time = time_of_integer(integer, unit)
        if p < 0 or not whole or time < 0:
            return DECLINED, 0
        while byte_at(data, p) == SPACE:
            p += 1
    if byte_at(data, p) == _CARRIAGE_RETURN:
        p += 1
    if byte_at(data, p) == _LINE_END:
        return p + 1, time
    return (p if byte_at(data, p) == 0 else DECLINED), time


@njit
def _read_escaped_series(data: Address, p: int) -> tuple[int, np.uint64, np.uint64]:
    """Measurement and tags with escapes, left raw: (position of the space behind them, hash, second hash)."""
    start = p
    while byte_at(data, p) != SPACE:
        p += byte_at(data, p) == BACKSLASH
        if byte_at(data, p) < SPACE:
            return DECLINED, np.uint64(0), np.uint64(0)
        p += 1
    a, b = hash_bytes(data, start, p)
    return p, a, b


@njit(forceinline=True)
def _scan_fields(data: Address, p: int, n: int, value: Address, hashes: Address, skipped: Address) -> tuple[int, int]:
    """The fields of a line: (behind them, number of samples so far); hashes get those of the fields' names alone."""
    m, others, seen = n, 0, np.uint64(0)
    while True:
        name = p
        p, a, b = read_token(data, p, EQUALS, COMMAS, BEHIND_SPACES)
        if p <= name:
            return DECLINED, n
        bit = np.uint64(1) << (a & np.uint64(63))
        if seen & bit != np.uint64(0) and (is_among(a, hashes, n, m) or is_among(a, skipped, 0, others)):
            return DECLINED, n
        seen |= bit
        p += 1
        if byte_at(data, p) == QUOTE:
            p = _skip_text(data, p + 1)
            if p < 0 or others == _MOST_SKIPPED:
                return DECLINED, n
            put_word(skipped, 2 * others, a)
            others += 1
        else:
            p, number = _read_value(data, p)
            if p < 0:
                return DECLINED, n
            put_word(hashes, 2 * m, a)
            put_word(hashes, 2 * m + 1, b)
            put_float(value, m, number)
            m += 1
        if byte_at(data, p) != COMMA:
            return p, m
        p += 1


@njit
def _skip_text(data: Address, p: int) -> int:
    """Behind the closing quote of a text, from behind its opening one."""
    while byte_at(data, p) != QUOTE:
        p += byte_at(data, p) == BACKSLASH
        if byte_at(data, p) == 0:
            return DECLINED
        p += 1
    return p + 1


@njit(forceinline=True)
def _read_value(data: Address, p: int) -> tuple[int, float]:
    """A number or a boolean: (behind it, value)."""
    letter = byte_at(data, p) | 32
    if letter in (_LETTER_T, _LETTER_F):
        return _read_boolean(data, p)
    negative = byte_at(data, p) == MINUS
    p, value, integer, whole = read_number(data, p)
    if p < 0:
        return DECLINED, 0.0
    if byte_at(data, p) == _LETTER_I and whole and integer < np.uint64(1 << 63):
        return p + 1, value
    if byte_at(data, p) == _LETTER_U and whole and not negative:
        return p + 1, value
    # Without a suffix it is a float, and -0 the negative zero that JSON's integer is not.
    return (DECLINED if negative and value == 0.0 else p), value


@njit
def _read_boolean(data: Address, p: int) -> tuple[int, float]:
    word = load_word(data, p)
    four, five = word & _MASK_4, word & _MASK_5
    if four in (_TRUE, _TRUE_TITLE, _TRUE_UPPER):
        return p + 4, 1.0
    if five in (_FALSE, _FALSE_TITLE, _FALSE_UPPER):
        return p + 5, 0.0
    return p + 1, 1.0 if byte_at(data, p) | 32 == _LETTER_T else 0.0
