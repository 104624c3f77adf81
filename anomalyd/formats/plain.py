"""plain-json: one sample a record.

    {"name": "queue_depth", "ts": 1766000000123, "value": 42.5, "tags": {"host": "web-01"}}

`tags` may be left out; without `ts` the Kafka timestamp of the record counts; other members are ignored.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from anomalyd.formats.decoder import ABSENT, Scanned
from anomalyd.formats.jsontext import labels_of, load, name_of, number_of
from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import NOT_AN_OBJECT, RejectedError
from anomalyd.formats.scan import (
    CLOSE,
    COMMA,
    DECLINED,
    LETTER_F,
    OPEN,
    QUOTE,
    Address,
    Columns,
    base_of,
    join,
    read_literal,
    read_number,
    read_string,
    read_tags,
    read_time,
    skip_colon,
    skip_member,
    skip_space,
    unit_code,
    word_of,
)
from anomalyd.formats.times import TimestampUnit, in_bounds, milliseconds
from anomalyd.intrinsics import address_of, byte_at, load_word
from anomalyd.jit import njit


def parse(value: bytes, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
    """The exact reading of one record, see `Parse`."""
    metric = load(value)
    if not isinstance(metric, dict):
        raise RejectedError(NOT_AN_OBJECT)
    name, labels, raw_time = name_of(metric.get("name")), labels_of(metric.get("tags")), metric.get("ts")
    time_ms = in_bounds(record_time_ms()) if raw_time is None else milliseconds(raw_time, unit)
    return Parsed([ParsedSample(name, labels, time_ms, number_of(metric.get("value")))])


_NAME, _MASK_NAME = word_of('name"')
_TAGS, _MASK_TAGS = word_of('tags"')
_VALUE, _MASK_VALUE = word_of('value"')
_TS, _MASK_TS = word_of('ts"')


def scan(values: Sequence[bytes | None], unit: TimestampUnit) -> Scanned:
    """Read what is plain: see `Scan`."""
    data, starts = join(values)
    found = Columns(len(values), len(values))
    _scan(data, starts, unit_code(unit), found.done, found.first, found.record, found.time_ms, found.value, found.hashes)
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
) -> None:
    n, text = 0, address_of(data)
    for i in range(len(done)):
        first[i] = n
        end, time_ms[n], value[n], hashes[n, 0], hashes[n, 1] = _scan_metric(text, starts[i], unit)
        if end == starts[i + 1] - 1:
            done[i] = True
            record[n] = i
            n += 1
    first[len(done)] = n


@njit(forceinline=True)
def _scan_metric(data: Address, p: int, unit: int) -> tuple[int, int, float, np.uint64, np.uint64]:
    """One record: (where it ends or DECLINED, event time in ms or ABSENT, value, hash, second hash)."""
    time, number, truth = ABSENT, 0.0, 0
    name_a = name_b = tags_a = tags_b = nothing = np.uint64(0)
    named = tagged = timed = valued = False
    p = skip_space(data, p)
    if byte_at(data, p) != OPEN:
        return DECLINED, 0, 0.0, nothing, nothing
    while byte_at(data, p) != CLOSE:
        # Here p is at the opening brace or at a comma.
        p = skip_space(data, p + 1)
        if byte_at(data, p) != QUOTE:
            return DECLINED, 0, 0.0, nothing, nothing
        p += 1
        word = load_word(data, p)
        if word & _MASK_NAME == _NAME:
            p = skip_colon(data, p + 5)
            if named or p < 0 or byte_at(data, p) != QUOTE:
                return DECLINED, 0, 0.0, nothing, nothing
            named = True
            p, name_a, name_b, _ = read_string(data, p + 1)
        elif word & _MASK_TS == _TS:
            p = skip_colon(data, p + 3)
            if timed or p < 0:
                return DECLINED, 0, 0.0, nothing, nothing
            timed = True
            p, time = read_time(data, p, unit)
        elif word & _MASK_VALUE == _VALUE:
            p = skip_colon(data, p + 6)
            if valued or p < 0:
                return DECLINED, 0, 0.0, nothing, nothing
            valued = True
            if byte_at(data, p) >= LETTER_F:
                p, truth = read_literal(data, p)
                if truth < 0:
                    return DECLINED, 0, 0.0, nothing, nothing
                number = float(truth)
            else:
                p, number, _, _ = read_number(data, p)
        elif word & _MASK_TAGS == _TAGS:
            p = skip_colon(data, p + 5)
            if tagged or p < 0 or byte_at(data, p) != OPEN:
                return DECLINED, 0, 0.0, nothing, nothing
            tagged = True
            p, tags_a, tags_b = read_tags(data, p)
        else:
            p = skip_member(data, p)
        if p < 0:
            return DECLINED, 0, 0.0, nothing, nothing
        p = skip_space(data, p)
        if byte_at(data, p) != COMMA and byte_at(data, p) != CLOSE:
            return DECLINED, 0, 0.0, nothing, nothing
    if not (named and valued):
        return DECLINED, 0, 0.0, nothing, nothing
    return skip_space(data, p + 1), time, number, base_of(name_a, tags_a), base_of(name_b, tags_b)
