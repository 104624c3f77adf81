"""Records of a changelog: what goes in comes out, and nothing else is ever taken for it."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.errors import StateError
from anomalyd.state import codec
from anomalyd.state.codec import Episode, Fence, Forgotten, Page, Position, Value
from anomalyd.state.trial import Trial

OFFSETS = st.integers(0, 2**62)
SERIES = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)

POSITIONS = st.builds(
    Position,
    OFFSETS,
    st.integers(-1, 2**62),
    OFFSETS,
    OFFSETS,
    OFFSETS,
    st.integers(1, 10_000),
    st.binary(max_size=16),
    st.none() | st.integers(-(2**62), 2**62),
    st.lists(st.tuples(OFFSETS, st.text(max_size=10)), max_size=3).map(tuple),
    st.none() | st.builds(Trial, st.integers(1, 512), st.integers(0, 3), OFFSETS),
)


@st.composite
def pages(draw: st.DrawFn) -> Page:
    keys = draw(st.lists(SERIES, max_size=5, unique=True))
    n, row_bytes = len(keys), draw(st.integers(1, 64))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def column(count: int) -> memoryview:
        return memoryview(rng.integers(0, 256, count, np.uint8).tobytes())

    layout = (("time", "i8", 0, 1), ("encoder_h", "f4", 8, 32))
    return Page(
        draw(OFFSETS),
        draw(OFFSETS),
        256,
        "hash",
        layout,
        row_bytes,
        "reading",
        keys,
        column(n),
        column(8 * n),
        column(16 * n),
        column(n * row_bytes),
    )


RECORDS: st.SearchStrategy[tuple[bytes, Value]] = st.one_of(
    st.tuples(st.just(codec.POSITION_KEY), POSITIONS),
    st.tuples(st.just(codec.FENCE_KEY), st.builds(Fence, st.binary(max_size=16), st.text(max_size=20))),
    st.tuples(st.builds(codec.page_key, st.integers(1, 256), st.integers(0, 2**31)), pages()),
    st.tuples(SERIES.map(codec.episode_key), st.builds(Episode, OFFSETS, st.binary(max_size=96))),
    st.tuples(st.builds(codec.forgotten_key, OFFSETS, st.integers(0, 9)), st.builds(Forgotten, OFFSETS, st.lists(SERIES, max_size=5))),
)


@given(RECORDS)
def test_what_goes_in_comes_out(record: tuple[bytes, Value]) -> None:
    key, value = record
    found = codec.decode(key, codec.encode(key, value))

    assert type(found) is type(value)
    assert msgspec.msgpack.encode(found) == msgspec.msgpack.encode(value)


@given(RECORDS, st.data())
def test_one_damaged_bit_anywhere_is_noticed(record: tuple[bytes, Value], data: st.DataObject) -> None:
    key, value = record
    encoded = bytearray(codec.encode(key, value))
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8

    with pytest.raises(StateError):
        codec.decode(key, bytes(encoded))


@given(RECORDS, st.data())
def test_a_cut_record_is_noticed(record: tuple[bytes, Value], data: st.DataObject) -> None:
    key, value = record
    encoded = codec.encode(key, value)

    with pytest.raises(StateError):
        codec.decode(key, encoded[: data.draw(st.integers(0, len(encoded) - 1))])


def test_a_record_under_the_key_of_another_is_noticed() -> None:
    value = codec.encode(codec.episode_key("a"), Episode(1, b""))

    with pytest.raises(StateError, match="damaged"):
        codec.decode(codec.episode_key("b"), value)


def test_a_record_of_a_newer_release_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(codec, "VERSION", codec.VERSION + 1)
        value = codec.encode(codec.FENCE_KEY, Fence(b"", "a"))

    with pytest.raises(StateError, match="version 2, this release reads up to 1: go back to the newer release"):
        codec.decode(codec.FENCE_KEY, value)


@given(st.binary(max_size=100))
def test_what_others_wrote_is_refused(value: bytes) -> None:
    with pytest.raises(StateError):
        codec.decode(codec.POSITION_KEY, value)


@pytest.mark.parametrize(
    ("fields", "fence"),
    [
        ([b"owner", "name"], Fence(b"owner", "name")),
        ([b"owner", "name", "group", "something new"], Fence(b"owner", "name", "group")),
    ],
)
def test_fields_may_be_added_behind(fields: list[object], fence: Fence) -> None:
    """A release reads what an older one wrote, and what a newer one of the same version did."""
    key = codec.FENCE_KEY
    found = codec.decode(key, codec._framed(key, b"F", msgspec.msgpack.encode(fields)))  # noqa: SLF001  there is no other way to write one

    assert found == fence
