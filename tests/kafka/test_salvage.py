"""Finding the way past a stretch of a partition that can't be read."""

import math

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from anomalyd.kafka.salvage import UNREADABLE, first_good

CODECS = {"gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
HEADER, CRC, ATTRIBUTES = 61, 17, 21


@given(start=st.integers(0, 10**12), bad=st.integers(0, 50_000), behind=st.integers(0, 50_000))
async def test_the_first_good_offset_is_found_in_logarithmic_time(start: int, bad: int, behind: int) -> None:
    asked: list[int] = []

    async def good(offset: int) -> bool:
        asked.append(offset)
        return offset >= start + bad

    found = await first_good(start, start + bad + behind, good)

    assert found == start + bad
    assert len(asked) <= 2 * math.log2(bad + 2) + 2


async def test_an_empty_rest_asks_nothing() -> None:
    async def good(_: int) -> bool:
        raise AssertionError("nothing to ask")

    assert await first_good(5, 5, good) == 5


def _batch(codec: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=False, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20
    )
    for i in range(50):
        builder.append(i, 1_700_000_000_000, b"key", b"value " * 20, [])
    return bytes(builder.build())


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@given(data=st.data())
def test_a_damaged_compressed_batch_under_a_right_checksum_is_unreadable(codec: int, data: st.DataObject) -> None:
    """A producer that computes the checksum after the damage: the checksum says nothing, decompression fails in the codec's own way."""
    whole = _batch(codec)
    payload = whole[HEADER:]
    damage = st.one_of(
        st.binary(max_size=80),
        st.integers(0, len(payload) - 1).map(lambda end: payload[:end]),
        st.tuples(st.integers(0, len(payload) - 1), st.integers(1, 255)).map(
            lambda at: payload[: at[0]] + bytes([payload[at[0]] ^ at[1]]) + payload[at[0] + 1 :]
        ),
    )
    body = whole[ATTRIBUTES:HEADER] + data.draw(damage)
    batch = DefaultRecordBatch(whole[:8] + (len(body) + 9).to_bytes(4, "big") + whole[12:CRC] + calc_crc32c(body).to_bytes(4, "big") + body)
    assert batch.validate_crc()

    try:
        list(batch)
    except UNREADABLE:
        return
