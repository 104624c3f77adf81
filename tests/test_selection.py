"""Which series are chosen, and what makes a series."""

import pytest

from anomalyd.errors import ConfigError
from anomalyd.selection import Selection

WEB = {"host": "web-01", "env": "prod"}


@pytest.mark.parametrize(
    ("selector", "name", "labels", "chosen"),
    [
        ("cpu.*", "cpu.usage", {}, True),
        ("cpu.*", "gpu.cpu.x", {}, False),
        ("CPU.*", "cpu.usage", {}, False),
        ("c[ab]?", "cax", {}, True),
        ("c[!ab]?", "cax", {}, False),
        ('net.*{host=~"web-.*"}', "net.in", WEB, True),
        ('net.*{host=~"web"}', "net.in", WEB, False),
        ('net.*{host!~"web-.*"}', "net.in", WEB, False),
        ('{host="web-01", env!="test",}', "any", WEB, True),
        ("{host='web-01'}", "any", WEB, True),
        ('{missing=""}', "any", WEB, True),
        ('{missing!=""}', "any", WEB, False),
        ('{path="C:\\\\x\\"y\\n"}', "any", {"path": 'C:\\x"y\n'}, True),
        ('{host=~"web-\\\\d+"}', "any", WEB, False),
        ('{host=~"web-\\d+"}', "any", WEB, True),
        ('{host="web.01"}', "any", WEB, False),
    ],
)
def test_selectors(selector: str, name: str, labels: dict[str, str], chosen: bool) -> None:
    assert Selection(include=[selector]).admits(name, labels) is chosen
    assert Selection(exclude=[selector]).admits(name, labels) is not chosen


def test_everything_is_chosen_unless_something_is_named() -> None:
    assert Selection().admits("any", WEB)


def test_what_is_excluded_is_excluded_from_what_is_included() -> None:
    selection = Selection(include=["cpu.*", "mem.*"], exclude=['*{env="test"}'])

    assert selection.admits("mem.used", WEB)
    assert not selection.admits("mem.used", {"env": "test"})
    assert not selection.admits("disk.used", WEB)


def test_dropped_and_empty_labels_are_no_part_of_a_series() -> None:
    labels = {"host": "a", "pod": "x", "pod_uid": "1", "uid": "2", "empty": ""}

    assert Selection(drop_labels=["pod*", "uid"]).keep(labels) == {"host": "a"}
    assert Selection().keep(labels) == {"host": "a", "pod": "x", "pod_uid": "1", "uid": "2"}


def test_selectors_see_labels_that_are_dropped() -> None:
    assert Selection(exclude=['*{pod=~"canary-.*"}'], drop_labels=["pod"]).admits("m", {"pod": "x"})
    assert not Selection(exclude=['*{pod=~"canary-.*"}'], drop_labels=["pod"]).admits("m", {"pod": "canary-1"})


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("", "include: got an empty text: valid are a name glob and label matchers"),
        ("cpu{host", "is no selector"),
        ("cpu{host=web}", r"has no valid matcher at 'host=web'"),
        ('cpu{host="a" env="b"}', "has no valid matcher"),
        ('cpu{host=~"("}', "has an invalid expression"),
        ('cpu{host=="a"}', "has no valid matcher"),
    ],
)
def test_what_is_wrong_is_named(selector: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Selection(include=[selector])


def test_an_empty_label_to_drop_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_labels: got an empty text: valid are label names and globs"):
        Selection(drop_labels=[" "])
