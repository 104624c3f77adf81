"""What an alert says to a person on call."""

import pytest

from anomalyd.alerts.rarity import Recurrence
from anomalyd.alerts.text import Reading, annotate, duration, frequency, number

SERIES = 'cpu.usage{cpu="cpu0",host="web-01"}'


def reading(**changes: object) -> Reading:
    """CPU usage far above what was expected, at the opening of an alert."""
    fields: dict[str, object] = {
        "series": SERIES,
        "stream": "hosts",
        "status": "firing",
        "lapsed": False,
        "value": 97.1,
        "expected": 31.04,
        "low": 25.2,
        "high": 37.9,
        "rate": False,
        "score": 3.2,
        "peak_score": 3.2,
        "starts_at": "2026-01-01T12:00:00.000Z",
        "ends_at": None,
        "lasted_ms": 0,
        "features": (),
        "recurrence": Recurrence(40.2, at_least=False),
    }
    return Reading(**fields | changes)  # type: ignore[arg-type]  # a keyword table of mixed types


def test_the_first_sentence_says_what_was_seen_what_was_expected_since_when_and_how_unusual_it_is() -> None:
    summary, description = annotate(reading())

    assert summary == f"{SERIES} is anomalous: 97.1 is above the expected 31.04 (25.2 to 37.9)"
    assert description == (
        "Anomalous since 2026-01-01 12:00:00 UTC: 97.1 is above the expected 31.04 (25.2 to 37.9), "
        "as strange as normal data is about once in 40 days. "
        f"Score 3.2, where 1 is the threshold. Series {SERIES} of stream hosts."
    )


def test_a_counter_is_told_as_a_rate() -> None:
    summary, description = annotate(reading(rate=True))

    assert summary.endswith("97.1/s is above the expected 31.04/s (25.2 to 37.9/s)")
    assert "UTC: 97.1/s is above the expected 31.04/s (25.2 to 37.9/s), as strange" in description


def test_a_value_below() -> None:
    assert "1.5 is below the expected 31.04 (25.2 to 37.9)" in annotate(reading(value=1.5))[0]


def test_a_strange_course_through_ordinary_values_is_not_called_high_or_low() -> None:
    summary, description = annotate(reading(value=30))

    assert summary.endswith("30 lies in the expected range (25.2 to 37.9), but its course is unusual")
    assert "but its course is unusual, as strange as normal data is about once in 40 days." in description


def test_an_update_says_how_long_and_how_bad_it_was() -> None:
    summary, description = annotate(reading(status="updated", lasted_ms=5_400_000, peak_score=4.75))

    assert summary.startswith(f"{SERIES} is still anomalous")
    assert "since 2026-01-01 12:00:00 UTC, for 1 h 30 min now" in description
    assert "(25.2 to 37.9), at its peak as strange as normal data is about once in 40 days. Score 3.2, peak 4.75" in description


def test_the_end_says_from_when_to_when_and_since_when_that_is_known() -> None:
    calm = {"status": "resolved", "ends_at": "2026-01-01T12:00:45.000Z", "lasted_ms": 45_000, "told_at": "2026-01-01T12:10:45.000Z"}
    summary, description = annotate(reading(**calm, value=31, score=0.1))

    assert summary == f"{SERIES} is back to normal after 45 s, as the samples up to 2026-01-01 12:10:45 UTC confirm"
    assert description.startswith(
        "Anomalous from 2026-01-01 12:00:00 UTC to 2026-01-01 12:00:45 UTC (45 s), at its peak as strange as normal data is "
        "about once in 40 days; now 31 lies in the expected range (25.2 to 37.9). Peak score 3.2, where 1 is the threshold."
    )


def test_an_end_after_a_gap_does_not_claim_that_all_is_well() -> None:
    summary, description = annotate(reading(status="resolved", lapsed=True, ends_at="2026-01-01T12:00:45.000Z", lasted_ms=45_000))

    assert "back to normal" not in summary + description
    assert "the alert was closed when the series came back after a long gap; now 97.1 is above the expected" in description


def test_the_end_of_a_series_that_is_not_kept_tells_its_last_value_and_no_expectation() -> None:
    forgotten = reading(status="resolved", lapsed=True, forgotten=True, ends_at="2026-01-01T12:00:45.000Z", lasted_ms=45_000, score=0)

    description = annotate(forgotten)[1]

    assert description.startswith(
        "Anomalous from 2026-01-01 12:00:00 UTC, last seen so at 2026-01-01 12:00:45 UTC, at its peak as strange as normal data is "
        "about once in 40 days; the alert was closed because the series is no longer kept; its last value was 97.1."
    )
    assert "expected" not in description


def test_an_episode_of_a_release_that_kept_less_is_told_without_how_unusual_it_is() -> None:
    assert "strange" not in annotate(reading(recurrence=None))[1]


def test_several_features_name_the_worst_first() -> None:
    summary, description = annotate(reading(features=(("load1", 0.62), ("mem", 0.21), ("disk", 0.1), ("net", 0.07))))

    assert summary.endswith("is anomalous: load1 97.1 is above the expected 31.04 (25.2 to 37.9)")
    assert "Features that contribute most: load1 62%, mem 21%, disk 10%." in description


def test_a_very_long_series_key_is_cut_in_the_summary_only() -> None:
    key = "requests{" + ",".join(f'label{i}="{"x" * 20}"' for i in range(20)) + "}"

    summary, description = annotate(reading(series=key))

    assert len(summary) < 250
    assert "…" in summary
    assert key in description


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (31.0, "31"),
        (97.123456, "97.12"),
        (-0.000123456, "-0.0001235"),
        (1766.4, "1766"),
        (97_100.4, "97100"),
        (999_999.7, "1M"),
        (12_345_678_901.0, "12.35G"),
        (-2.5e15, "-2.5P"),
        (1e15, "1P"),
        (3.2e21, "3.2e+21"),
        (999.97, "1000"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (0, "0 ms"),
        (250, "250 ms"),
        (45_900, "45 s"),
        (720_000, "12 min"),
        (61_000, "1 min 1 s"),
        (12_000_000, "3 h 20 min"),
        (86_400_000, "1 d"),
        (190_800_000, "2 d 5 h"),
    ],
)
def test_durations_have_two_units(length_ms: int, text: str) -> None:
    assert duration(length_ms) == text


@pytest.mark.parametrize(
    ("days", "at_least", "text"),
    [
        (10.0, False, "about once in 10 days"),
        (40.4, False, "about once in 40 days"),
        (213.0, False, "about once in 210 days"),
        (366.0, False, "less than once in a year"),
        (1e30, True, "less than once in a year"),
        (10.9, True, "less than once in 10 days"),
        (1.5, False, "about once in 36 hours"),
        (1 / 24, False, "about once in 60 minutes"),
        (1e-9, False, "about once a minute"),
    ],
)
def test_a_frequency_has_no_more_digits_than_are_known(days: float, at_least: bool, text: str) -> None:
    assert frequency(Recurrence(days, at_least)) == text
