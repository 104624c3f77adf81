"""plain-json: one sample a record.

    {"name": "queue_depth", "ts": 1766000000123, "value": 42.5, "tags": {"host": "web-01"}}

`tags` may be left out; without `ts` the Kafka timestamp of the record counts; other members are ignored.
"""

from collections.abc import Callable

from anomalyd.formats.jsontext import labels_of, load, name_of, number_of
from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import NOT_AN_OBJECT, RejectedError
from anomalyd.formats.times import TimestampUnit, in_bounds, milliseconds


def parse(value: bytes, unit: TimestampUnit, record_time_ms: Callable[[], int]) -> Parsed:
    """The exact reading of one record, see `Parse`."""
    metric = load(value)
    if not isinstance(metric, dict):
        raise RejectedError(NOT_AN_OBJECT)
    name, labels, raw_time = name_of(metric.get("name")), labels_of(metric.get("tags")), metric.get("ts")
    time_ms = in_bounds(record_time_ms()) if raw_time is None else milliseconds(raw_time, unit)
    return Parsed([ParsedSample(name, labels, time_ms, number_of(metric.get("value")))])
