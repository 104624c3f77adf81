"""Which row a series has, from its first sight to its eviction."""

import random
import sys
import tracemalloc

import numpy as np
import pytest

from anomalyd.formats import make_decoder
from anomalyd.series import EXCLUDED, FULL, MAX_KEY_CHARACTERS, KeyTooLongError, Selection, SeriesIndex


def test_a_series_keeps_its_row_and_its_key() -> None:
    index = SeriesIndex(10)

    assert index.row("cpu.idle", {"host": "a", "empty": ""}) == 0
    assert index.row("cpu.idle", {"host": "b"}) == 1
    assert index.row("cpu.idle", {"host": "a"}) == 0
    assert index.keys == ['cpu.idle{host="a"}', 'cpu.idle{host="b"}']
    assert index.identity(1) == ("cpu.idle", {"host": "b"})
    assert len(index) == 2


def test_series_that_differ_in_dropped_labels_are_one() -> None:
    index = SeriesIndex(10, Selection(drop_labels=["pod_uid"]))

    assert {index.row("m", {"pod_uid": str(uid)}) for uid in range(100)} == {0}


def test_a_series_that_is_not_selected_gets_no_row() -> None:
    index = SeriesIndex(10, Selection(include=["cpu.*"]))

    assert index.row("mem.used", {}) == EXCLUDED
    assert (len(index), index.keys) == (0, [])


def test_a_full_index_says_so_and_still_knows_its_series() -> None:
    index = SeriesIndex(2)
    index.row("a", {})
    index.row("b", {})

    assert index.row("c", {}) == FULL
    assert index.row("a", {}) == 0


def test_the_longest_idle_are_evicted_first() -> None:
    index = SeriesIndex(1024)
    rows = np.array([index.row(f"s{i}", {}) for i in range(1024)], np.int32)
    index.touch(rows, 0)
    index.touch(rows[[5, 1, 2]], 1024)
    index.touch(rows[[5]], 1027)

    assert index.evict().tolist() == [0, 3, 4, 6]
    assert len(index) == 1020
    assert index.keys[0] is None
    with pytest.raises(KeyError, match="row 0 holds no series"):
        index.identity(0)
    assert {index.row(f"new{i}", {}) for i in range(4)} == {0, 3, 4, 6}
    assert index.row("another", {}) == FULL


def test_evicting_from_an_empty_index_frees_nothing() -> None:
    assert SeriesIndex(5).evict().tolist() == []


def test_what_is_evicted_does_not_depend_on_how_use_was_cut() -> None:
    """One touch for each sample, or one for all of them, with rows several times in it."""
    rng = np.random.default_rng(3)
    use = rng.integers(0, 700, 5000).astype(np.int32)
    whole, pieces = SeriesIndex(700), SeriesIndex(700)
    for i in range(700):
        assert whole.row(f"s{i}", {}) == pieces.row(f"s{i}", {})
    whole.touch(use, 0)
    for start in range(0, 5000, 7):
        pieces.touch(use[start : start + 7], start)

    assert [whole.evict().tolist() for _ in range(350)] == [pieces.evict().tolist() for _ in range(350)]


def test_given_back_rows_are_handed_out_in_the_same_order() -> None:
    index = SeriesIndex(4)
    kept = index.row("kept", {})
    fresh = [index.row(name, {}) for name in "abc"]
    index.give_back(fresh)

    assert len(index) == 1
    assert [index.row(name, {}) for name in "xyz"] == fresh
    assert index.row("kept", {}) == kept


def test_a_key_beyond_bounds_is_refused() -> None:
    index = SeriesIndex(4)

    assert index.row("x" * MAX_KEY_CHARACTERS, {}) == 0
    with pytest.raises(KeyTooLongError):
        index.row("x" * (MAX_KEY_CHARACTERS + 1), {})
    assert len(index) == 1


def test_a_label_that_is_no_text_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        SeriesIndex(4).row("m", {"a": "\ud800"})


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        SeriesIndex(0)


def test_an_evicted_series_is_new_when_it_comes_again() -> None:
    """Its spelling was forgotten with its row, so the row's next owner is not mistaken for it."""
    index, decoder = SeriesIndex(2), make_decoder("influx")
    one, two, three = (b"m,h=%d v=1 1766000000000000000" % i for i in range(3))
    index.touch(decoder.decode([one, two], lambda _: 0, index).batch.row, 0)
    assert decoder.decode([three], lambda _: 0, index).consumed == 0
    assert index.evict().tolist() == [0]

    assert decoder.decode([three], lambda _: 0, index).batch.row.tolist() == [0]
    assert decoder.decode([one], lambda _: 0, index).consumed == 0
    assert index.keys == ['m.v{h="2"}', 'm.v{h="1"}']


def test_memory_a_series_is_bounded() -> None:
    """Key text, dictionary, spelling and bookkeeping, as the daemon has them for Telegraf's hosts."""
    n = 50_000
    index, decoder = SeriesIndex(1_000_000), make_decoder("telegraf-json")
    values = [b'{"fields":{"value":1.5},"name":"cpu","tags":{"host":"host-%07d.example.net"},"timestamp":1766000000}' % i for i in range(n)]
    decoder.decode(values[:1], lambda _: 0, SeriesIndex(1))
    tracemalloc.start()
    for i in range(0, n, 5000):
        decoder.decode(values[i : i + 5000], lambda _: 0, index)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert len(index) == n
    assert grown / n < 400


@pytest.mark.parametrize("select", [Selection(exclude=["*"]), Selection(drop_labels=["pod_uid"])])
def test_memory_does_not_grow_with_spellings_that_never_end(select: Selection) -> None:
    """Churning labels, dropped or of excluded series, cost a table of bounded size."""
    index, decoder, sizes = SeriesIndex(100, select), make_decoder("influx"), set()
    for i in range(0, 20_000, 500):
        values = [b"m,pod_uid=%d v=1 1766000000000000000" % uid for uid in range(i, i + 500)]
        decoded = decoder.decode(values, lambda _: 0, index)
        assert (decoded.consumed, decoded.rejected) == (500, [])
        sizes.add(index.aliases.slots.nbytes)

    assert len(index) <= 1
    assert max(sizes) < 200_000
    assert sys.getsizeof(index.keys) < 1000


def test_thousands_of_series_come_and_go() -> None:
    """The index stays what a plain dictionary with the same rule would be."""
    rng, index, decoder = random.Random(5), SeriesIndex(300), make_decoder("influx")
    last_use: dict[str, int] = {}
    sequence = 0
    for _ in range(60):
        values = [b"m,h=%d v=1 1766000000000000000" % min(int(rng.expovariate(1 / 200)), 2000) for _ in range(100)]
        while values:
            decoded = decoder.decode(values, lambda _: 0, index)
            rows = decoded.batch.row
            keys = [index.keys[row] for row in rows]
            assert keys == [f'm.v{{h="{value.split(b"=")[1].split()[0].decode()}"}}' for value in values[: decoded.consumed]]
            last_use.update((str(key), sequence + i) for i, key in enumerate(keys))
            index.touch(rows, sequence)
            sequence += len(rows)
            values = values[decoded.consumed :]
            if values:
                oldest = min(last_use, key=last_use.__getitem__)
                (row,) = index.evict()
                assert index.keys[row] is None
                del last_use[oldest]
        assert {key for key in index.keys if key} == set(last_use)
        assert len(index) == len(last_use) <= 300
