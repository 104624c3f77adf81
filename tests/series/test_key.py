"""Canonical keys: one text for a series, one series for a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.series import parse_key, series_key

TEXT = st.text(st.one_of(st.sampled_from('{}",=\\\n ab'), st.characters(exclude_categories=["Cs"])), max_size=6)
NAMES = TEXT.filter(bool)
LABELS = st.dictionaries(TEXT, TEXT, max_size=4)


@pytest.mark.parametrize(
    ("name", "labels", "key"),
    [
        ("cpu.usage", {"host": "web-01", "cpu": "cpu0"}, 'cpu.usage{cpu="cpu0",host="web-01"}'),
        ("cpu.usage", {}, "cpu.usage"),
        ("disk free/é", {"path": 'C:\\"x"\n'}, 'disk free/é{path="C:\\\\\\"x\\"\\n"}'),
        ('a{b="c"}', {}, '{"a{b=\\"c\\"}"}'),
        ('a"b', {"x": "1"}, '{"a\\"b",x="1"}'),
        ("a", {"b=c": "1", "": "2"}, 'a{""="2","b=c"="1"}'),
    ],
)
def test_keys_are_written_as_prometheus_writes_them(name: str, labels: dict[str, str], key: str) -> None:
    assert series_key(name, labels) == key
    assert parse_key(key) == (name, labels)


@given(NAMES, LABELS)
def test_a_key_can_be_taken_apart(name: str, labels: dict[str, str]) -> None:
    assert parse_key(series_key(name, labels)) == (name, labels)


@given(NAMES, LABELS, NAMES, LABELS)
def test_different_series_have_different_keys(name: str, labels: dict[str, str], other: str, others: dict[str, str]) -> None:
    assert (series_key(name, labels) == series_key(other, others)) == ((name, labels) == (other, others))


def test_what_is_no_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not a series key"):
        parse_key("{oops")
