"""Drawings of numbers without time: whatever the numbers and names are, a browser can show them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.evaluation.report import Report, Section, render
from anomalyd.evaluation.sketch import Line, Sketch, bars, courses, places
from tests.evaluation.test_report import NASTY, Page

VALUES = st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=8)


def page(*sketches: Sketch) -> Page:
    return Page(render(Report("why", sections=[Section("evidence", sketches=sketches)])))


def test_a_section_shows_its_sketches_with_their_titles_and_what_they_say() -> None:
    seen = page(bars("Evidence", [("A", 3.0), ("jump", 0.0)], ("threshold", 5.0)), courses("Window", [Line("u", "value", [1.0, 2.0])]))

    assert seen.text["figcaption"] == ["Evidence", "Window"]
    labels = [value for tag, name, value in seen.attributes if (tag, name) == ("svg", "aria-label")]
    assert labels == ["Evidence. A 3, jump 0", "Window. u: 1, 2"]


def test_bars_are_as_long_as_their_numbers_and_the_mark_beside_them() -> None:
    drawn = bars("", [("a", 1.0), ("b", 2.0)], ("threshold", 4.0))

    short, long = (float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn.svg))
    assert long == pytest.approx(2 * short, rel=1e-3)
    assert "threshold 4" in drawn.svg


def test_a_unit_outside_of_its_usual_range_stands_out() -> None:
    drawn = places("", [0.0, 5.0, -1.0], [-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]).svg

    assert drawn.count('class="critical"') == 1
    assert "unit 1: 5, usually -1 to 1" in drawn
    assert "outside of their usual range: 1" in drawn


def test_names_cannot_break_out_of_their_place() -> None:
    seen = page(
        bars(NASTY, [(NASTY, 1.0)], (NASTY, 2.0)),
        courses(NASTY, [Line(NASTY, "value", [0.0])]),
        places(NASTY, [0.0], [0.0], [0.0]),
    )

    assert seen.tags.count("script") == 1
    assert "img" not in seen.tags


@given(values=VALUES)
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    drawn = [
        bars("", [("a", abs(value)) for value in values]),
        courses("", [Line("a", "value", values)]),
        places("", values, values, values),
    ]

    for sketch in drawn:
        assert not re.search(r"nan|inf", sketch.svg.replace("infinite", ""))
