"""telegraf-json: one metric a record, a sample for every numeric field, named `measurement.field`.

    {"fields": {"usage_idle": 91.2, "usage_user": 3.1}, "name": "cpu", "tags": {"host": "web-01"}, "timestamp": 1766000000}

Also `{"metrics": […]}`. Booleans count as 0 and 1, as in Telegraf's own Prometheus output; text and null are no samples and no error: a
metric that has only such fields is passed over. Without `timestamp` the Kafka timestamp of the record counts.
"""

from collections.abc import Callable

from anomalyd.formats.jsontext import labels_of, load, name_of, number_of
from anomalyd.formats.parsed import Parsed, ParsedSample
from anomalyd.formats.rejection import NO_FIELDS, NOT_AN_OBJECT, RejectedError
from anomalyd.formats.times import TimestampUnit, in_bounds, milliseconds


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
