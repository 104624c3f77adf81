"""Records of the models topic: what goes in comes out, nothing else is taken for it, and what nobody needs any more goes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.batch import Entry
from anomalyd.errors import ArtifactError
from anomalyd.kafka import registry
from anomalyd.kafka.registry import (
    KEPT_DECISIONS,
    KEPT_MODELS,
    PART_BYTES,
    Champion,
    Decision,
    Packed,
    Registry,
    champion_entry,
    decision_entry,
    model_entries,
)

TEXT = st.text(max_size=30)
NAMES = st.text("abcdef0123456789._-", min_size=1, max_size=20)
FIGURES = st.dictionaries(TEXT, st.recursive(st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | TEXT, st.lists))
CHAMPIONS = st.builds(Champion, NAMES, st.none() | NAMES, TEXT, TEXT, TEXT)
DECISIONS = st.builds(Decision, TEXT, TEXT, FIGURES, st.none() | NAMES, TEXT)


def entries() -> st.SearchStrategy[Entry]:
    return st.one_of(
        st.builds(champion_entry, NAMES, CHAMPIONS),
        st.builds(decision_entry, NAMES, NAMES, DECISIONS),
        st.builds(Packed, NAMES, st.binary(min_size=1, max_size=50)).map(lambda packed: model_entries(packed)[0]),
    )


def taken(*given: Entry) -> Registry:
    found = Registry()
    for entry in given:
        assert found.take(entry.key, entry.value) is None
    return found


@given(NAMES, NAMES, CHAMPIONS, DECISIONS)
def test_what_goes_in_comes_out(stream: str, model: str, champion: Champion, decision: Decision) -> None:
    found = taken(champion_entry(stream, champion), decision_entry(stream, model, decision))

    assert found.champions == {stream: champion}
    told = found.decisions[stream, model]
    assert (told.verdict, told.reason, told.parent, told.when) == (decision.verdict, decision.reason, decision.parent, decision.when)
    # JSON has no word for what is not finite.
    assert told.figures == registry._finite(decision.figures)  # noqa: SLF001  the rule itself


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 7]), st.permutations(range(3)))
def test_an_artifact_that_is_cut_comes_out_whole_in_whatever_order_its_parts_are_kept(size: int, order: list[int]) -> None:
    content = (b"0123456789" * (size // 10 + 1))[:size]
    parts = model_entries(Packed("ab" * 32, content))
    assert all(len(part.value or b"") <= PART_BYTES + 100 for part in parts)

    found = taken(*(parts[k] for k in order if k < len(parts)))
    assert (found.models(), found.content("ab" * 32)) == (["ab" * 32], content)
    if len(parts) > 1:
        with pytest.raises(ArtifactError, match=f"of the model abababababab 1 of {len(parts)} parts"):
            taken(parts[0]).content("ab" * 32)


@given(entries(), st.data())
def test_one_damaged_bit_anywhere_is_told_and_changes_nothing(entry: Entry, data: st.DataObject) -> None:
    assert entry.value is not None
    found = taken(entry)
    before = (dict(found.champions), dict(found.decisions), [found.content(model) for model in found.models()])
    damaged = bytearray(entry.value)
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8

    problem = found.take(entry.key, bytes(damaged))

    # Of JSON a bit may change nothing that means something, such as the case of a letter in an escape.
    assert problem is not None or (found.champions, found.decisions) == before[:2]
    assert (found.champions, found.decisions) == before[:2]
    assert [found.content(model) for model in found.models()] == before[2]


@given(entries(), st.data())
def test_a_cut_record_is_told(entry: Entry, data: st.DataObject) -> None:
    assert entry.value is not None
    found = Registry()

    assert found.take(entry.key, entry.value[: data.draw(st.integers(0, len(entry.value) - 1))])
    assert (found.champions, found.decisions, found.models()) == ({}, {}, [])


@given(st.binary(max_size=60) | st.sampled_from([b"champion|a", b"decision|a|b", b"model|ab", b"model|ab|1"]), st.binary(max_size=60))
def test_what_others_wrote_is_told(key: bytes, value: bytes) -> None:
    assert Registry().take(key, value)


@pytest.mark.parametrize("value", [b"{}", b"[1]", b"7", b'{"version":"1"}', b"[" * 100_000, b'{"version":1,"check":"","model":"a"}'])
def test_json_of_others_is_told(value: bytes) -> None:
    assert Registry().take(b"champion|hosts", value)


def test_a_record_under_the_key_of_another_is_told() -> None:
    value = champion_entry("a", Champion("m", None, "", "promote")).value

    assert "checksum" in str(Registry().take(b"champion|b", value))


def test_a_record_of_a_newer_release_is_told_and_the_one_before_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    found = taken(champion_entry("hosts", Champion("old", None, "", "promote")))
    with monkeypatch.context() as newer:
        newer.setattr(registry, "VERSION", 2)
        later = [champion_entry("hosts", Champion("new", "old", "", "promote")), *model_entries(Packed("ab", b"x"))]

    for entry in later:
        assert "has version 2, this release reads up to 1" in str(found.take(entry.key, entry.value))
    assert found.champions["hosts"].model == "old"


def test_fields_of_a_later_release_are_passed_over() -> None:
    key = b"champion|hosts"
    fields: dict[str, Any] = {"version": 1, "model": "m", "previous": None, "since": "", "by": "x", "later": {"more": 1}}
    value = json.dumps(fields | {"check": registry._check(key, fields)}).encode()  # noqa: SLF001  there is no other way to write one

    found = Registry()
    assert found.take(key, value) is None
    assert found.champions["hosts"].model == "m"


def test_a_tombstone_takes_back() -> None:
    champion, decision = champion_entry("s", Champion("m", None, "", "x")), decision_entry("s", "m", Decision("published"))
    parts = model_entries(Packed("m", b"1" * (PART_BYTES + 1)))
    found = taken(champion, decision, *parts, *(Entry(entry.key, None) for entry in (champion, decision, *parts)))

    assert (found.champions, found.decisions, found.models()) == ({}, {}, [])


# --- what is removed ------------------------------------------------------------------------------------------------


def test_models_that_nobody_needs_are_removed_and_champions_never() -> None:
    many = [f"{n:08x}" for n in range(KEPT_MODELS + 5)]
    found = taken(
        *(entry for model in many for entry in (decision_entry("s", model, Decision("published")), *model_entries(Packed(model, b"x")))),
        champion_entry("s", Champion(many[2], many[0], "", "rollback")),
        champion_entry("other", Champion(many[3], None, "", "promote")),
    )

    removed = {entry.key.decode() for entry in found.obsolete()}

    assert removed == {f"model|{many[1]}", f"model|{many[4]}"}
    assert all(entry.value is None for entry in found.obsolete())
    for entry in list(found.obsolete()):
        found.take(entry.key, entry.value)
    assert not list(found.obsolete())
    assert len(found.models()) == KEPT_MODELS + 3


def test_old_decisions_go_but_for_those_about_models_that_stay() -> None:
    many = [f"{n:08x}" for n in range(KEPT_DECISIONS + 10)]
    found = taken(
        *model_entries(Packed(many[0], b"x")),
        *(decision_entry("s", model, Decision("rejected")) for model in many),
        champion_entry("s", Champion(many[0], None, "", "promote")),
    )

    assert [entry.key.decode() for entry in found.obsolete()] == [f"decision|s|{model}" for model in many[1:10]]


def test_a_part_goes_before_the_one_that_says_how_many_there_are() -> None:
    """Whoever is interrupted leaves an artifact that is known to be incomplete."""
    found = taken(*model_entries(Packed("m", b"1" * (2 * PART_BYTES + 1))))

    assert [entry.key.decode() for entry in found.obsolete()] == ["model|m|2", "model|m|1", "model|m"]


@pytest.mark.parametrize("model", ["m", "ab" * 32])
def test_an_artifact_that_is_not_there_is_said_to_be_missing(model: str) -> None:
    with pytest.raises(ArtifactError, match=f"the model {model[:12]} is not in the topic"):
        Registry().content(model)
