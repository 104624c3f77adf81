"""Event times out of whatever producers write."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.formats import make_decoder
from anomalyd.formats.rejection import RejectedError
from anomalyd.formats.times import TimestampUnit, milliseconds
from anomalyd.series import SeriesIndex

NOON_MS = 1_766_000_000_123


@pytest.mark.parametrize(
    ("raw", "unit", "time_ms"),
    [
        (1_766_000_000, "auto", 1_766_000_000_000),
        (NOON_MS, "auto", NOON_MS),
        (NOON_MS * 1000 + 999, "auto", NOON_MS),
        (NOON_MS * 1_000_000 + 999_999, "auto", NOON_MS),
        (1_766_000_000.123, "auto", NOON_MS),
        (1_766_000_000_123.4, "auto", NOON_MS),
        (0, "auto", 0),
        (5, "ns", 0),
        (5, "ms", 5),
        (86_400_000, "ms", 86_400_000),
        (86_400_000, "auto", 86_400_000_000),
        ("2025-12-17T19:33:20.123Z", "auto", NOON_MS),
        ("2025-12-17T19:33:20.123999Z", "ns", NOON_MS),
        ("2025-12-17 20:33:20.123+01:00", "auto", NOON_MS),
        ("2025-12-17T19:33:20", "auto", 1_766_000_000_000),
    ],
)
def test_units_are_told_by_magnitude_or_given(raw: object, unit: TimestampUnit, time_ms: int) -> None:
    assert milliseconds(raw, unit) == time_ms


@pytest.mark.parametrize(
    "raw",
    [
        -5,
        -0.5,
        "soon",
        "",
        True,
        None,
        [1],
        {},
        1e300,
        float("nan"),
        float("inf"),
        10**30,
        4_102_444_800,
        "1969-12-31T23:59:59Z",
        "2100-01-01T00:00:00Z",
    ],
)
def test_what_is_no_time_of_our_days_is_refused(raw: object) -> None:
    with pytest.raises(RejectedError, match="bad-timestamp"):
        milliseconds(raw, "auto")


def test_a_wrong_unit_lands_outside() -> None:
    with pytest.raises(RejectedError, match="bad-timestamp"):
        milliseconds(NOON_MS, "s")


@given(st.datetimes(datetime(1974, 1, 1), datetime(2099, 12, 31)))  # noqa: DTZ001 - hypothesis wants them naive
def test_every_spelling_of_a_time_is_the_same_time(time: datetime) -> None:
    time = time.replace(tzinfo=UTC, microsecond=time.microsecond // 1000 * 1000)
    time_ms = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)

    assert milliseconds(time.isoformat(), "auto") == time_ms
    assert [milliseconds(time_ms * scale, "auto") for scale in (1, 1000, 1_000_000)] == [time_ms] * 3
    assert milliseconds(time_ms / 1000, "auto") == time_ms


def test_the_scanner_knows_the_calendar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day of 130 years, without Python."""
    midnight, values, times = datetime(1970, 1, 1, tzinfo=UTC), [], []
    for day in range(47_482):
        time = midnight + timedelta(days=day, hours=day % 24, minutes=day % 60, seconds=day % 59, milliseconds=day % 1000)
        values.append(b'{"name":"m","ts":"%s","value":1}' % time.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode())
        times.append((time - midnight) // timedelta(milliseconds=1))
    index, decoder = SeriesIndex(1), make_decoder("plain-json")
    decoder.decode(values[:1], lambda _: 0, index)
    monkeypatch.setattr(decoder, "_parse", None)

    assert decoder.decode(values, lambda _: 0, index).batch.time_ms.tolist() == times
