"""The scanners read exactly what the exact reading reads, or leave it to it."""

import json
import os
import random
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anomalyd.batch import SampleBatch
from anomalyd.formats import FORMATS, REASONS, FormatOptions, make_decoder
from anomalyd.formats.decoder import BulkDecoder, Decoder, scan_nothing
from anomalyd.formats.times import END_MS, UNITS
from anomalyd.series import Selection, SeriesIndex
from tests.support.records import RECORDS, damaged, damaged_in_bulk

FUZZ_INPUTS = int(os.environ.get("ANOMALYD_FUZZ_INPUTS", "1000000"))


class Consumer:
    """What a shard does with a decoder: batches in, evictions when the index is full; collects everything that could be noticed."""

    def __init__(self, decoder: Decoder, index: SeriesIndex) -> None:
        self.decoder = decoder
        self.index = index
        self.samples: list[tuple[int, str | None, int, int, bytes]] = []
        self.rejected: list[tuple[int, str]] = []
        self.evicted: list[list[str]] = []
        self.seen = 0

    def take(self, values: Sequence[bytes | None]) -> None:
        while values:
            decoded = self.decoder.decode(values, lambda record: 1000 * (self.seen + record) - 1000, self.index)
            self._note(decoded.batch)
            self.rejected += [(self.seen + record, reason) for record, reason in decoded.rejected]
            self.index.touch(decoded.batch.row, self.seen + decoded.batch.record.astype(np.int64))
            self.seen += decoded.consumed
            values = values[decoded.consumed :]
            if values:
                self.evicted.append(self.index.evict().keys)

    def _note(self, batch: SampleBatch) -> None:
        for record, row, time_ms, value in zip(batch.record, batch.row, batch.time_ms, batch.value, strict=True):
            self.samples.append((self.seen + int(record), self.index.keys[row], int(row), int(time_ms), value.tobytes()))

    def outcome(self) -> tuple[object, ...]:
        return self.samples, self.rejected, self.evicted, self.index.keys


SELECTIONS = [None, Selection(exclude=['cpu*{host="web-1"}'], drop_labels=["c*"])]


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    unit=st.sampled_from(UNITS),
    capacity=st.sampled_from([2, 5, 1000]),
    select=st.sampled_from(SELECTIONS),
    cuts=st.lists(st.integers(0, 60), max_size=4),
)
def test_scanner_and_exact_reading_agree_however_batches_are_cut(
    name: str, seed: int, unit: str, capacity: int, select: Selection | None, cuts: list[int]
) -> None:
    """Samples bit by bit, times, series, rows, rejections, evictions: as if each record were read alone, exactly."""
    rng = random.Random(seed)
    parse, _ = FORMATS[name]
    undamaged = [RECORDS[name](rng) for _ in range(12)]
    values = [damaged(rng, rng.choice(undamaged)) for _ in range(60)]
    options = FormatOptions(next(known for known in UNITS if known == unit))
    scanning = Consumer(make_decoder(name, options), SeriesIndex(capacity, select))
    exact = Consumer(BulkDecoder(parse, scan_nothing, options.timestamp_unit), SeriesIndex(capacity, select))

    bounds = [0, *sorted(cuts), len(values)]
    for start, end in pairwise(bounds):
        scanning.take(values[start:end])
    for value in values:
        exact.take([value])

    assert scanning.outcome() == exact.outcome()


def test_the_generator_makes_what_scanners_accept_and_what_they_decline() -> None:
    """Otherwise the property above would prove nothing."""
    rng = random.Random(1)
    for name, (_, scan) in FORMATS.items():
        accepted = scan([damaged(rng, RECORDS[name](rng)) for _ in range(2000)], "auto").done.mean()
        assert 0.1 < accepted < 0.9, name


NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.integers(-(10**20), 10**20).map(str),
    st.from_regex(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    # Half way between two floats, where rounding is decided by the last digit.
    st.builds(lambda m, e: f"{2 * m + 1}e{e}", st.integers(2**52, 2**53), st.integers(-27, 30)),
)


@given(st.lists(NUMBERS, min_size=20, max_size=100))
@settings(max_examples=200, deadline=None)
def test_numbers_are_those_of_the_json_module_bit_by_bit(numbers: list[str]) -> None:
    values = [f'{{"name":"m","ts":5,"value":{number}}}'.encode() for number in numbers]
    index, decoder = SeriesIndex(1), make_decoder("plain-json")
    decoder.decode([b'{"name":"m","ts":5,"value":1}'], lambda _: 0, index)

    batch = decoder.decode(values, lambda _: 0, index).batch
    expected = [float(json.loads(number)) for number in numbers]

    finite = [number for number in expected if abs(number) != float("inf")]
    assert batch.value.tobytes() == np.array(finite).tobytes()


def fuzz(inputs: int, seed: int) -> None:
    """Damaged records through both readings, whole batches compared."""
    rng, samples = np.random.default_rng(seed), 0
    for name, (parse, _) in FORMATS.items():
        undamaged = [RECORDS[name](random.Random(i)) for i in range(500)]
        indexes = SeriesIndex(100_000), SeriesIndex(100_000)
        scanning, exact = make_decoder(name), BulkDecoder(parse, scan_nothing, "auto")
        for _ in range(inputs // 3 // 2000 + 1):
            values = damaged_in_bulk(rng, undamaged, 2000)
            one = scanning.decode(values, lambda record: record, indexes[0])
            other = exact.decode(values, lambda record: record, indexes[1])

            assert (one.consumed, one.rejected) == (2000, other.rejected)
            for column in ("record", "row", "time_ms", "value"):
                assert getattr(one.batch, column).tobytes() == getattr(other.batch, column).tobytes()
            assert {reason for _, reason in one.rejected} <= set(REASONS)
            assert np.isfinite(one.batch.value).all()
            assert ((one.batch.time_ms >= 0) & (one.batch.time_ms < END_MS)).all()
            samples += len(one.batch)
        assert indexes[0].keys == indexes[1].keys
    assert samples > inputs // 20


def test_damaged_records_never_escape() -> None:
    fuzz(30_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_million_damaged_records_never_escape() -> None:
    fuzz(FUZZ_INPUTS, seed=2)
