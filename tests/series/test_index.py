"""Which row a series has, from its first sight to its eviction."""

import random
import sys
import tracemalloc

import numpy as np
import pytest

from anomalyd.formats import make_decoder
from anomalyd.series import EXCLUDED, FULL, MAX_KEY_CHARACTERS, UNKNOWN, KeyTooLongError, Selection, SeriesIndex


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
    rows = np.array([index.row(f"s{i:04}", {}) for i in range(1024)], np.int32)
    index.touch(rows, np.arange(1024))
    index.touch(rows[[5, 1, 2]], np.arange(1024, 1027))
    index.touch(rows[[5]], np.array([1027]))

    evicted = index.evict()

    assert (evicted.rows.tolist(), evicted.keys) == ([0, 3, 4, 6], ["s0000", "s0003", "s0004", "s0006"])
    assert len(index) == 1020
    assert index.keys[0] is None
    with pytest.raises(KeyError, match="row 0 holds no series"):
        index.identity(0)
    assert {index.row(f"new{i}", {}) for i in range(4)} == {0, 3, 4, 6}
    assert index.row("another", {}) == FULL


def test_evicting_from_an_empty_index_frees_nothing() -> None:
    evicted = SeriesIndex(5).evict()

    assert (evicted.rows.tolist(), evicted.keys) == ([], [])


def test_what_is_evicted_depends_neither_on_how_use_was_cut_nor_on_rows() -> None:
    """One touch for each record or one for all of them; records of several samples; other rows for the same series."""
    rng = np.random.default_rng(3)
    use = rng.integers(0, 700, 5000)
    offsets = np.arange(5000) // 40
    whole, pieces = SeriesIndex(700), SeriesIndex(700)
    names = [f"s{i}" for i in range(700)]
    rows = np.array([whole.row(name, {}) for name in names], np.int32)
    others = np.array([pieces.row(name, {}) for name in reversed(names)], np.int32)[::-1].copy()
    whole.touch(rows[use], offsets)
    for start in range(0, 5000, 7):
        pieces.touch(others[use[start : start + 7]], offsets[start : start + 7])

    assert [whole.evict().keys for _ in range(350)] == [pieces.evict().keys for _ in range(350)]


def test_of_series_that_are_idle_for_equally_long_the_first_by_name_goes() -> None:
    index = SeriesIndex(3)
    index.touch(np.array([index.row(name, {}) for name in ("b", "c", "a")], np.int32), np.array([7, 7, 7]))

    assert [index.evict().keys for _ in range(3)] == [["a"], ["b"], ["c"]]


def test_series_without_a_sample_are_abandoned_with_their_spellings() -> None:
    index, decoder = SeriesIndex(2), make_decoder("influx")
    kept, dropped, other = (b"m,h=%d v=1 1766000000000000000" % i for i in range(3))
    index.touch(decoder.decode([kept], lambda _: 0, index).batch.row, np.array([0]))
    decoder.decode([dropped], lambda _: 0, index)

    index.abandon()

    assert index.keys == ['m.v{h="0"}', None]
    assert decoder.decode([other, kept], lambda _: 0, index).batch.row.tolist() == [1, 0]


def test_a_hidden_series_gets_no_row_until_it_is_revealed() -> None:
    index, decoder = SeriesIndex(4), make_decoder("influx")
    value = b"m,h=1 v=1 1766000000000000000"
    index.hide(['m.v{h="1"}'])

    assert [len(decoder.decode([value], lambda _: 0, index).batch) for _ in range(2)] == [0, 0]
    index.reveal(['m.v{h="1"}'])
    assert len(decoder.decode([value], lambda _: 0, index).batch) == 1


def test_a_restored_index_knows_series_spellings_and_idleness() -> None:
    before, decoder = SeriesIndex(8), make_decoder("influx")
    values = [b"m,h=%d v=1 1766000000000000000" % i for i in range(6)]
    rows = decoder.decode(values, lambda _: 0, before).batch.row
    before.touch(rows, np.arange(6))
    kept = rows[[5, 1, 3]]
    after = SeriesIndex(8)

    after.restore([str(before.keys[row]) for row in kept], kept, before.last_use[kept], before.aliases.newest(kept))

    found = np.empty(6, np.int32)
    hashes = before.aliases.newest(rows)
    after.aliases.find(hashes, found)
    assert found.tolist() == [UNKNOWN, rows[1], UNKNOWN, rows[3], UNKNOWN, rows[5]]
    assert len(after) == 3
    assert [after.evict().keys for _ in range(2)] == [['m.v{h="1"}'], ['m.v{h="3"}']]
    assert sorted(after.row(name, {}) for name in "abcdefg") == [0, 1, 2, 3, 4, 6, 7]


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
    index.touch(decoder.decode([one, two], lambda _: 0, index).batch.row, np.array([0, 1]))
    assert decoder.decode([three], lambda _: 0, index).consumed == 0
    assert index.evict().rows.tolist() == [0]

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
            index.touch(rows, np.arange(sequence, sequence + len(rows)))
            sequence += len(rows)
            values = values[decoded.consumed :]
            if values:
                oldest = min(last_use, key=last_use.__getitem__)
                assert index.evict().keys == [oldest]
                del last_use[oldest]
        assert {key for key in index.keys if key} == set(last_use)
        assert len(index) == len(last_use) <= 300
