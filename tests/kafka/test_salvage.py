"""Finding the way past a stretch of a partition that can't be read."""

import math

from hypothesis import given
from hypothesis import strategies as st

from anomalyd.kafka.salvage import first_good


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
