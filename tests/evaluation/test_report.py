"""Reports: one HTML file that anybody can open and nothing can break out of."""

import json
import re
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.evaluation.chart import POINTS, thin, ticks, time_ticks
from anomalyd.evaluation.report import Chart, Episode, Figure, Report, Section, Table, Window, render

NOON_MS = 1_767_268_800_000
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"' & ]]> <!--"


class Page(HTMLParser):
    """Refuses what a browser would have to repair, and remembers what a test asks for."""

    VOID: ClassVar[set[str]] = {"meta", "br", "hr", "img", "input", "link"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.stack.append(tag)
            self.text.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.text[self.stack[-1]][-1] += data

    def points(self) -> list[dict[str, list[float]]]:
        """The numbers of each chart."""
        return [json.loads(t, parse_constant=pytest.fail) for t in self.text.get("script", [])[:-1]]


def chart(n: int = 1500, series: str = 'cpu.usage{host="web-01"}', **changes: object) -> Chart:
    """A wave with one spike that alerted."""
    rng = np.random.default_rng(n)
    wave = 50 + 20 * np.sin(np.arange(n) / 40)
    value, score = wave + rng.normal(size=n), np.abs(rng.normal(size=n)) / 8
    times = NOON_MS + 60_000 * np.arange(n, dtype=np.int64)
    episodes: tuple[Episode, ...] = ()
    if n:
        value[n // 2] += 500
        score[n // 2] = 4
        episodes = (Episode(int(times[n // 2]), int(times[-1]), "critical", 4.0),)
    columns = {"times_ms": times, "value": value, "low": wave - 3, "high": wave + 3, "expected": wave, "score": score, "episodes": episodes}
    return Chart(series, **columns | changes)  # type: ignore[arg-type]  # a keyword table of mixed types


def page(*charts: Chart, max_charts: int = 100) -> tuple[str, Page]:
    """A report with one section."""
    html = render(Report("demo", sections=[Section("incidents", charts)]), max_charts)
    return html, Page(html)


def test_a_report_shows_its_figures_sections_tables_and_charts() -> None:
    report = Report(
        "anomalyd demo",
        [Figure("incidents detected", "9 of 10")],
        [
            Section("Fleet", [chart(), chart(series="b")], "200 series"),
            Section("Files", table=Table(["file", "alerts"], [["nab/a.csv", "3"]])),
        ],
        "45 s on an embedded broker",
    )

    html = render(report)
    seen = Page(html)

    assert seen.text["title"][0] == "anomalyd demo"
    assert seen.text["dd"] == ["9 of 10"]
    assert seen.text["h2"] == ["Fleet", "Files"]
    assert seen.text["figcaption"] == ["", ""]
    assert seen.text["td"][-2:] == ["nab/a.csv", "3"]
    assert len(seen.points()) == 2
    assert "45 s on an embedded broker" in html
    assert "200 series" in html


def test_equal_reports_give_equal_pages() -> None:
    assert page(chart())[0] == page(chart())[0]


def test_names_and_texts_cannot_break_out_of_their_place() -> None:
    """Series keys come from whoever can write to the input topic."""
    harmless, hostile = (
        render(
            Report(
                text,
                [Figure(text, text)],
                [
                    Section(
                        text,
                        [
                            chart(
                                20,
                                text,
                                caption=text,
                                episodes=[Episode(NOON_MS, None, text, 2.0)],
                                windows=[Window(NOON_MS, NOON_MS, text)],
                            )
                        ],
                        text,
                        Table([text], [[text]]),
                    )
                ],
                text,
            )
        )
        for text in ("plain", NASTY)
    )

    assert Page(hostile).tags == Page(harmless).tags
    assert len(Page(hostile).attributes) == len(Page(harmless).attributes)
    assert Page(hostile).text["h1"] == [NASTY]


def test_nothing_is_loaded_from_anywhere() -> None:
    html, seen = page(chart(windows=[Window(NOON_MS, NOON_MS + 60_000, "spike")]))

    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html.replace("// Reads", ""))
    assert {"link", "img", "iframe", "object", "base"}.isdisjoint(seen.tags)
    assert all(value.startswith("#") for _, name, value in seen.attributes if name in {"href", "src"})


def test_the_page_may_run_its_own_script_only() -> None:
    html, seen = page(chart())

    (policy,) = (value for tag, name, value in seen.attributes if (tag, name) == ("meta", "content") and "default-src" in value)
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/]{43}='$", policy)
    assert not any(name.startswith("on") for _, name, _ in seen.attributes)
    assert html.count("<script>") == 1


def test_every_chart_says_in_words_what_it_shows() -> None:
    _, seen = page(chart(100, windows=[Window(NOON_MS, NOON_MS, "spike")]))

    (words,) = seen.text["desc"]
    assert words.startswith("100 samples from 2026-01-01T12:00:00.000Z to 2026-01-01T13:39:00.000Z; values ")
    assert words.endswith("; highest score 4; alerts: 1; known incidents: 1")
    ids = [value for _, name, value in seen.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for _, name, value in seen.attributes:
        if name == "aria-labelledby":
            assert set(value.split()) <= set(ids)


def test_alerts_are_listed_under_their_chart() -> None:
    episodes = [Episode(NOON_MS, NOON_MS + 720_000, "warning", 1.25), Episode(NOON_MS + 900_000, None, "critical", 4.0)]

    _, seen = page(chart(episodes=episodes))

    assert seen.text["summary"] == ["2 alerts"]
    assert seen.text["td"] == [
        *("2026-01-01T12:00:00.000Z", "2026-01-01T12:12:00.000Z", "12 min", "warning", "1.25"),
        *("2026-01-01T12:15:00.000Z", "still open", "", "critical", "4"),
    ]


def test_too_many_charts_are_left_out_and_counted() -> None:
    report = Report("big", sections=[Section("a", [chart(5)] * 3), Section("b", [chart(5)] * 3), Section("c", [chart(5)])])

    html = render(report, max_charts=4)

    assert len(Page(html).points()) == 4
    assert html.count("2 more charts are left out.") == 1
    assert html.count("1 more chart is left out.") == 1


def test_long_tables_are_cut_and_say_so() -> None:
    html = render(Report("t", sections=[Section("s", table=Table(["n"], [[str(i)] for i in range(1003)]))]))

    assert len(Page(html).text["td"]) == 1000
    assert "3 more rows are left out." in html


@pytest.mark.parametrize("report", [Report("empty"), Report("empty", sections=[Section("nothing", [chart(0)])])])
def test_no_data_is_no_reason_to_fail(report: Report) -> None:
    html = render(report)

    assert Page(html).text["h1"] == ["empty"]
    assert ("No samples." in html) == bool(report.sections)


def test_one_sample_is_drawn() -> None:
    assert page(chart(1))[1].points()[0]["value"] == [pytest.approx(550, abs=5)]


def test_late_samples_are_drawn_where_they_belong() -> None:
    ordered = chart(50, episodes=())
    order = np.random.default_rng(0).permutation(50)
    columns = {name: getattr(ordered, name)[order] for name in ("times_ms", "value", "low", "high", "expected", "score")}

    assert page(chart(50, **columns, episodes=()))[1].points() == page(ordered)[1].points()


def test_rows_that_are_not_finite_are_left_out() -> None:
    value = np.array([1.0, np.nan, 3.0, np.inf, 5.0])

    html, seen = page(chart(5, value=value, episodes=()))

    assert seen.points()[0]["value"] == [1.0, 3.0, 5.0]
    assert not re.search(r"\b(nan|inf)\b", html.split("</style>")[1], re.IGNORECASE)


@given(
    st.lists(
        st.tuples(
            st.integers(-(10**15), 10**15),
            *[st.one_of(st.sampled_from([0.0, 1.0, -1e308, 1e308, 1e-308, float("nan"), float("-inf")]), st.floats())] * 4,
            st.one_of(st.floats(0, 1e9), st.just(1e308)),
        ),
        max_size=12,
    )
)
def test_no_numbers_make_a_broken_drawing(rows: list[tuple[int, float, float, float, float, float]]) -> None:
    times = np.array([r[0] for r in rows], np.int64)
    value, low, high, expected, score = (np.array([r[k] for r in rows], np.float64) for k in range(1, 6))
    ends = [(int(t), int(t) + 5) for t in times]

    html, seen = page(
        Chart("x", times, value, low, high, expected, score, [Episode(*e, "warning", 1.0) for e in ends], [Window(*e, "w") for e in ends])
    )

    for tag, name, text in seen.attributes:
        if tag in {"path", "rect", "text", "svg"} and name in {"d", "x", "y", "width", "height", "viewbox"}:
            assert not re.search(r"nan|inf|e[+-]?\d", text), (tag, name, text)
    assert html


# --- the parts


@given(st.integers(0, 5000), st.integers(3, 700), st.integers(0, 2**32 - 1))
def test_thinning_keeps_the_ends_and_the_extremes(n: int, points: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    value, score = rng.normal(size=n), rng.exponential(size=n)

    chosen = thin(value, score, points)

    assert np.all(np.diff(chosen) > 0)
    assert len(chosen) <= min(n, points + 2)
    if n:
        assert (chosen[0], chosen[-1]) == (0, n - 1)
        assert {int(value.argmin()), int(value.argmax()), int(score.argmax())} <= set(chosen.tolist())


def test_a_million_samples_make_a_small_page() -> None:
    html, seen = page(chart(1_000_000))

    assert len(seen.points()[0]["x"]) <= POINTS + 2
    assert max(seen.points()[0]["value"]) > 500
    assert len(html) < 150_000


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e12))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span) if low + span > low else [low]

    assert len(found) <= 8
    assert all(low - 1e-300 <= t <= low + span for t in found)  # nobody draws the smallest number that there is


@pytest.mark.parametrize(
    ("span_ms", "texts"),
    [
        (4_000, ["01-01 12:00:00", "12:00:01", "12:00:02", "12:00:03", "12:00:04"]),
        (3 * 3_600_000, ["01-01 12:00", "12:30", "13:00", "13:30", "14:00", "14:30", "15:00"]),
        (86_400_000, ["01-01 12:00", "15:00", "18:00", "21:00", "01-02 00:00", "03:00", "06:00", "09:00", "12:00"]),
        (5 * 86_400_000, ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-06"]),
    ],
)
def test_time_ticks_are_round_and_name_the_day_where_it_changes(span_ms: int, texts: list[str]) -> None:
    assert [text for _, text in time_ticks(NOON_MS, NOON_MS + span_ms)] == texts


@given(st.integers(-(10**16), 10**16), st.integers(0, 10**16))
def test_time_ticks_are_never_many(first: int, span: int) -> None:
    found = [moment for moment, _ in time_ticks(first, first + span)]

    assert len(found) <= 9
    assert all(first <= moment <= first + span for moment in found)
