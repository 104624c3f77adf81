"""Mutes: which samples they are about, above all when clocks change."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.alerts.mutes import Mute, Mutes
from anomalyd.errors import ConfigError
from tests.alerts.columns import Sample, columns

MON, TUE, WED, THU, FRI, SAT, SUN = range(7)
HOUR = 3_600_000


def ms(text: str) -> int:
    """A moment in ISO 8601 with its offset."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        ("2026-03-07T21:59:59.999+01:00", False),
        ("2026-03-07T22:00:00+01:00", True),
        ("2026-03-08T00:00:00+01:00", True),
        ("2026-03-08T05:59:59.999+01:00", True),
        ("2026-03-08T06:00:00+01:00", False),
        ("2026-03-07T05:00:00+01:00", False),  # what began on Friday is none
        ("2026-03-08T22:30:00+01:00", False),  # nor what begins on Sunday
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(moment: str, inside: bool) -> None:
    assert Mute(days=(SAT,), from_min=22 * 60, to_min=6 * 60, timezone="Europe/Berlin").holds(ms(moment)) is inside


def test_times_are_those_of_the_clocks_of_the_zone_summer_and_winter() -> None:
    morning = Mute(from_min=8 * 60, to_min=9 * 60, timezone="America/New_York")

    assert morning.holds(ms("2026-01-15T13:30:00+00:00"))
    assert morning.holds(ms("2026-07-15T12:30:00+00:00"))
    assert not morning.holds(ms("2026-07-15T13:30:00+00:00"))


def test_an_hour_that_clocks_show_twice_is_muted_twice() -> None:
    night = Mute(from_min=2 * 60 + 15, to_min=3 * 60, timezone="Europe/Berlin")
    first = ms("2026-10-25T02:00:00+02:00")

    assert [night.holds(first + minutes * 60_000) for minutes in (0, 15, 59, 60, 74, 75, 119, 120)] == [
        *(False, True, True),
        *(False, False, True, True),
        False,
    ]


def test_an_hour_that_clocks_leave_out_is_not_there() -> None:
    """From 1:59:59 they go to 3:00: the window shrinks to what of it is shown."""
    night = Mute(from_min=2 * 60, to_min=3 * 60 + 10, timezone="Europe/Berlin")
    change = ms("2026-03-29T03:00:00+02:00")

    assert [night.holds(change + minutes * 60_000) for minutes in (-1, 0, 9, 10)] == [False, True, True, False]


def test_zones_that_are_no_whole_hours_away() -> None:
    noon = Mute(days=(WED,), from_min=12 * 60, to_min=12 * 60 + 1, timezone="Asia/Kathmandu")

    assert noon.holds(ms("2026-03-04T12:00:30+05:45"))
    assert not noon.holds(ms("2026-03-04T12:01:00+05:45"))


def test_a_span_begins_with_its_start_and_is_over_at_its_end() -> None:
    span = Mute(start_ms=1_000, end_ms=2_000)

    assert [span.holds(t) for t in (999, 1_000, 1_999, 2_000)] == [False, True, True, False]


@pytest.mark.parametrize("time_ms", [-(1 << 62), 1 << 62, -62_135_596_800_000, 253_402_300_799_999])
def test_times_that_no_calendar_shows_are_not_muted(time_ms: int) -> None:
    assert not Mute(timezone="Pacific/Kiritimati").holds(time_ms)
    assert not Mute(timezone="Pacific/Pago_Pago").holds(time_ms)


@given(st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)), st.integers(0, 1439), st.integers(1, 1440), st.sets(st.integers(0, 6)))  # noqa: DTZ001  becomes UTC below
def test_every_minute_of_a_week_is_in_or_out_as_the_rule_says(moment: datetime, begin: int, end: int, days: set[int]) -> None:
    """In UTC, where a window can be found by counting minutes from the day on which it begins."""
    if begin == end:
        return
    moment = moment.replace(tzinfo=UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    length = (end - begin) % 1440 if end < begin else end - begin
    begun = [midnight - timedelta(days=back) for back in (0, 1) if (midnight - timedelta(days=back)).weekday() in days]
    expected = any(timedelta(minutes=begin) <= moment - day < timedelta(minutes=begin + length) for day in begun)

    time_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert Mute(days=tuple(days), from_min=begin, to_min=end).holds(time_ms) is expected


def muted(mutes: Sequence[Mute], samples: Sequence[Sample], keys: Sequence[str | None]) -> list[bool]:
    return list(map(bool, Mutes(mutes).column(*columns(samples), keys)))


def test_selectors_choose_the_series_and_one_mute_is_enough() -> None:
    keys = ["cpu.user", 'net.rx{host="web-1"}', 'net.rx{host="db-1"}', "disk"]
    mutes = [Mute(("cpu.*", 'net.*{host=~"web-.*"}'), start_ms=0, end_ms=10), Mute(("disk",), start_ms=5, end_ms=20)]

    assert muted(mutes, [Sample(row, 5, 2.0) for row in range(4)], keys) == [True, True, False, True]
    assert muted(mutes, [Sample(row, 15, 2.0) for row in range(4)], keys) == [False, False, False, True]


def test_a_row_that_changes_hands_is_asked_about_anew() -> None:
    mutes = Mutes([Mute(("cpu",), start_ms=0, end_ms=10)])
    asked = columns([Sample(0, 5, 2.0)])

    assert mutes.column(*asked, ["cpu"]).tolist() == [True]
    assert mutes.column(*asked, ["disk"]).tolist() == [False]


def test_samples_with_which_nothing_could_fire_cost_nothing() -> None:
    assert muted([Mute()], [Sample(0, 0, 0.9), Sample(0, 1, 1.0)], ["cpu"]) == [False, True]
    assert len(Mutes([]).column(*columns([Sample(0, 0, 2.0)]), ["cpu"])) == 0


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("days", {"days": (7,)}),
        ("from, to", {"from_min": 60, "to_min": 60}),
        ("from, to", {"from_min": 1440, "to_min": 60}),
        ("start, end", {"start_ms": 5}),
        ("timezone", {"timezone": "Mars/Olympus"}),
        ("timezone", {"timezone": "../etc/passwd"}),
        ("series", {"series": ("net{host",)}),
    ],
)
def test_a_wrong_mute_is_refused_by_the_name_of_the_field(field: str, fields: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=field):
        Mute(**fields)  # type: ignore[arg-type]  # wrong on purpose
