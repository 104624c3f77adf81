"""Names of labels that Prometheus and Alertmanager take."""

import re

from hypothesis import given
from hypothesis import strategies as st

from anomalyd.labels import fitted


def test_names_are_changed_as_little_as_can_be_and_stay_apart() -> None:
    changed = fitted({"a.b": "1", "a-b": "2", "a_b": "3", "9": "4", "__name__": "5", "ok": "6", "ä": "7", "job": "8"}, {"job"})

    assert changed == {
        "_9": "4",
        "_name__": "5",
        "a_b": "2",
        "exported_a_b": "1",
        "exported_a_b_2": "3",
        "exported_job": "8",
        "ok": "6",
        "_": "7",
    }


@given(st.dictionaries(st.text(max_size=8), st.text(max_size=4), max_size=8), st.sets(st.sampled_from(["a", "_", "exported_a", "_1"])))
def test_no_label_is_lost_and_every_name_is_valid(labels: dict[str, str], taken: set[str]) -> None:
    found = fitted(labels, taken)

    assert sorted(found.values()) == sorted(labels.values())
    assert not found.keys() & taken
    assert all(re.fullmatch("(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name) for name in found)
