"""The fingerprint of state rows."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.state.digest import Digest, digest

ROWS = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=8)), max_size=20)


@given(ROWS, st.randoms())
def test_order_does_not_matter(rows: list[tuple[str, bytes]], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert digest(rows) == digest(shuffled)


@given(ROWS, ROWS)
def test_whatever_differs_shows(one: list[tuple[str, bytes]], other: list[tuple[str, bytes]]) -> None:
    assert (digest(one) == digest(other)) == (sorted(one) == sorted(other))


@given(ROWS, ROWS)
def test_a_row_can_be_taken_out_again(kept: list[tuple[str, bytes]], gone: list[tuple[str, bytes]]) -> None:
    found = Digest()
    for key, row in kept + gone:
        found.add(key, row)
    for key, row in gone:
        found.remove(key, row)
    assert (found.hex, found.count) == (digest(kept), len(kept))


def test_a_view_of_a_table_counts_like_its_bytes() -> None:
    table = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert digest([("a", table[1])]) == digest([("a", table[1].tobytes())]) == digest([("a", memoryview(table[1].tobytes()))])
    assert digest([]) == "0" * 32


def test_a_key_does_not_run_into_its_row() -> None:
    assert digest([("ab", b"c")]) != digest([("a", b"bc")])
