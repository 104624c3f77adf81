"""The table of raw spellings, against a dictionary."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from anomalyd.series import UNKNOWN, AliasTable

# Few different words, so that halves are shared and slots collide.
WORD = st.one_of(st.integers(0, 3), st.integers(2**64 - 3, 2**64 - 1), st.sampled_from([1024, 2048, 4096 * 1024]))
SPELLING = st.tuples(WORD, WORD)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.dictionaries(SPELLING, st.integers(-1, 20), min_size=1, max_size=8)),
        st.tuples(st.just("forget"), st.lists(st.integers(0, 20), max_size=4)),
    ),
    max_size=30,
)


def found(table: AliasTable, spellings: list[tuple[int, int]]) -> list[int]:
    rows: NDArray[np.int32] = np.empty(len(spellings), np.int32)
    table.find(np.array(spellings, np.uint64).reshape(-1, 2), rows)
    return [int(row) for row in rows]


@given(STEPS, st.lists(SPELLING, max_size=10))
@settings(max_examples=200, deadline=None)
def test_it_behaves_like_a_dictionary(steps: list[tuple[str, object]], others: list[tuple[int, int]]) -> None:
    table, known = AliasTable(10_000), dict[tuple[int, int], int]()
    for _, argument in steps:
        if isinstance(argument, dict):
            table.add(np.array(list(argument), np.uint64), np.array(list(argument.values()), np.int32))
            known |= argument
        elif isinstance(argument, list):
            table.forget(np.array(argument, np.int32), 21)
            known = {spelling: row for spelling, row in known.items() if row not in argument}
        asked = [*known, *others]
        assert found(table, asked) == [known.get(spelling, UNKNOWN) for spelling in asked]
        assert len(table) == len(known)


def test_both_halves_are_compared() -> None:
    table = AliasTable(10)
    table.add(np.array([[7, 1], [7, 2], [8, 1]], np.uint64), np.array([0, 1, 2], np.int32))

    assert found(table, [(7, 1), (7, 2), (8, 1), (8, 2)]) == [0, 1, 2, UNKNOWN]


def test_it_grows_and_shrinks_back_through_churn() -> None:
    """Forgotten slots are used again: a table that loses as much as it gains stays as large as it is."""
    rng = np.random.default_rng(1)
    table = AliasTable(1_000_000)
    known: NDArray[np.uint64] = np.empty((0, 2), np.uint64)
    for turn in range(200):
        rows = np.arange(100, dtype=np.int32) + 100 * (turn % 20)
        table.forget(rows, 2000)
        fresh = rng.integers(0, 2**63, (100, 2)).astype(np.uint64)
        table.add(fresh, rows)
        known = np.concatenate([known, fresh])[-2000:]

    assert len(table) == 2000
    assert UNKNOWN not in found(table, [(int(a), int(b)) for a, b in known])
    assert table.slots.nbytes <= 8192 * 24


def test_at_its_limit_it_is_emptied() -> None:
    table = AliasTable(1000)
    for i in range(50):
        spellings = np.array([[i * 100 + k, k] for k in range(100)], np.uint64)
        table.add(spellings, np.zeros(100, np.int32))
        assert len(table) <= 1000
        assert found(table, [(i * 100, 0)]) == [0]
