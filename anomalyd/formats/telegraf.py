"""telegraf-json: one metric a record, a sample for every numeric field, named `measurement.field`.

    {"fields": {"usage_idle": 91.2, "usage_user": 3.1}, "name": "cpu", "tags": {"host": "web-01"}, "timestamp": 1766000000}

Also `{"metrics": […]}`. Booleans count as 0 and 1, as in Telegraf's own Prometheus output; text and null are no samples and no error: a
metric that has only such fields is passed over. Without `timestamp` the Kafka timestamp of the record counts.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from anomalyd.formats.decoder import ABSENT, Scanned
from anomalyd.formats.jsontext import labels_of, load, name_of, number_of
from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import NO_FIELDS, NOT_AN_OBJECT, RejectedError
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
    identity_of,
    is_among,
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
from anomalyd.intrinsics import address_of, byte_at, load_word, put_float, put_word, word_at
from anomalyd.jit import njit


def parse(value: bytes, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
    """The exact reading of one record, see `Parse`."""
    top = load(value)
    batch = top.get("metrics") if isinstance(top, dict) and "fields" not in top else None
    parsed = Parsed()
    for metric in batch if isinstance(batch, list) else [top]:
        try:
            _parse_metric(metric, unit, record_time_ms, parsed)
        except RejectedError as rejection:
            parsed.reject(rejection.reason)
    return parsed


def _parse_metric(metric: object, unit: TimestampUnit, record_time_ms: Callable[[], int], parsed: Parsed) -> None:
    if not isinstance(metric, dict):
        raise RejectedError(NOT_AN_OBJECT)
    name, fields = name_of(metric.get("name")), metric.get("fields")
    if not isinstance(fields, dict):
        raise RejectedError(NO_FIELDS)
    labels, raw_time = labels_of(metric.get("tags")), metric.get("timestamp")
    time_ms = in_bounds(record_time_ms()) if raw_time is None else milliseconds(raw_time, unit)
    for field, raw in fields.items():
        if raw is None or isinstance(raw, str):
            continue
        try:
            parsed.samples.append(ParsedSample(f"{name}.{field}", labels, time_ms, number_of(raw)))
        except RejectedError as rejection:
            parsed.reject(rejection.reason)


# The shortest sample, `"":1,`, takes 5 bytes.
_SHORTEST: Final = 5
# Names of fields that are no samples, remembered to notice one that comes twice.
_MOST_SKIPPED: Final = 64

_NAME, _MASK_NAME = word_of('name"')
_TAGS, _MASK_TAGS = word_of('tags"')
_FIELDS, _MASK_FIELDS = word_of('fields"')
_TIMESTAMP, _MASK_TIMESTAMP = word_of("timestam")
_TIMESTAMP_END, _MASK_TIMESTAMP_END = word_of('p"')


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
    n, text, numbers, names, others = 0, address_of(data), address_of(value), address_of(hashes), address_of(skipped)
    for i in range(len(done)):
        first[i] = n
        end, m, time = _scan_metric(text, starts[i], unit, n, numbers, names, others)
        if end == starts[i + 1] - 1 and m > n:
            done[i] = True
            for k in range(n, m):
                record[k] = i
                time_ms[k] = time
            n = m
    first[len(done)] = n


@njit(forceinline=True)
def _scan_metric(
    data: Address,
    p: int,
    unit: int,
    n: int,
    value: Address,
    hashes: Address,
    skipped: Address,
) -> tuple[int, int, int]:
    """One record: (where it ends or DECLINED, number of samples so far, event time in ms or ABSENT)."""
    m, time = n, ABSENT
    name_a = name_b = tags_a = tags_b = np.uint64(0)
    named = tagged = timed = fielded = False
    p = skip_space(data, p)
    if byte_at(data, p) != OPEN:
        return DECLINED, n, 0
    while byte_at(data, p) != CLOSE:
        # Here p is at the opening brace or at a comma.
        p = skip_space(data, p + 1)
        if byte_at(data, p) != QUOTE:
            return DECLINED, n, 0
        p += 1
        word = load_word(data, p)
        if word & _MASK_FIELDS == _FIELDS:
            p = skip_colon(data, p + 7)
            if fielded or p < 0:
                return DECLINED, n, 0
            fielded = True
            p, m = _scan_fields(data, p, n, value, hashes, skipped)
        elif word & _MASK_NAME == _NAME:
            p = skip_colon(data, p + 5)
            if named or p < 0 or byte_at(data, p) != QUOTE:
                return DECLINED, n, 0
            named = True
            p, name_a, name_b, _ = read_string(data, p + 1)
        elif word & _MASK_TAGS == _TAGS:
            p = skip_colon(data, p + 5)
            if tagged or p < 0 or byte_at(data, p) != OPEN:
                return DECLINED, n, 0
            tagged = True
            p, tags_a, tags_b = read_tags(data, p)
        elif word == _TIMESTAMP and load_word(data, p + 8) & _MASK_TIMESTAMP_END == _TIMESTAMP_END:
            p = skip_colon(data, p + 10)
            if timed or p < 0:
                return DECLINED, n, 0
            timed = True
            p, time = read_time(data, p, unit)
        else:
            p = skip_member(data, p)
        if p < 0:
            return DECLINED, n, 0
        p = skip_space(data, p)
        if byte_at(data, p) != COMMA and byte_at(data, p) != CLOSE:
            return DECLINED, n, 0
    if not (named and fielded):
        return DECLINED, n, 0
    base_a, base_b = base_of(name_a, tags_a), base_of(name_b, tags_b)
    for k in range(n, m):
        put_word(hashes, 2 * k, identity_of(base_a, word_at(hashes, 2 * k)))
        put_word(hashes, 2 * k + 1, identity_of(base_b, word_at(hashes, 2 * k + 1)))
    return skip_space(data, p + 1), m, time


@njit(forceinline=True)
def _scan_fields(data: Address, p: int, n: int, value: Address, hashes: Address, skipped: Address) -> tuple[int, int]:
    """The object of fields: (behind it, number of samples so far); hashes get those of the fields' names alone."""
    m, others, seen = n, 0, np.uint64(0)
    if byte_at(data, p) != OPEN:
        return DECLINED, n
    while byte_at(data, p) != CLOSE:
        p = skip_space(data, p + 1)
        if byte_at(data, p) != QUOTE:
            return DECLINED, n
        p, a, b, ascii_ = read_string(data, p + 1)
        if p < 0:
            return DECLINED, n
        bit = np.uint64(1) << (a & np.uint64(63))
        if seen & bit != np.uint64(0) and (is_among(a, hashes, n, m) or is_among(a, skipped, 0, others)):
            return DECLINED, n
        seen |= bit
        p = skip_colon(data, p)
        if p < 0:
            return DECLINED, n
        put_word(hashes, 2 * m, a)
        put_word(hashes, 2 * m + 1, b)
        if byte_at(data, p) == QUOTE or byte_at(data, p) >= LETTER_F:
            if byte_at(data, p) == QUOTE:
                p, _, _, all_ascii = read_string(data, p + 1)
                truth = -1
                ascii_ = ascii_ and all_ascii
            else:
                p, truth = read_literal(data, p)
            if truth < 0:
                # Neither name nor text becomes part of an identity, so nobody else would notice that one is no valid UTF-8.
                if not ascii_ or others == _MOST_SKIPPED:
                    return DECLINED, n
                put_word(skipped, 2 * others, a)
                others += 1
            else:
                put_float(value, m, float(truth))
                m += 1
        else:
            p, number, _, _ = read_number(data, p)
            put_float(value, m, number)
            m += 1
        if p < 0:
            return DECLINED, n
        p = skip_space(data, p)
        if byte_at(data, p) != COMMA and byte_at(data, p) != CLOSE:
            return DECLINED, n
    return p + 1, m
