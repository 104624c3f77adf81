"""The input of a chaos run."""

import json
from itertools import islice

from anomalyd.formats import make_decoder
from anomalyd.series import SeriesIndex
from tests.chaos.load import Fleet


def test_equal_seeds_make_equal_input() -> None:
    records = [list(islice(Fleet(40, 8, seed).records(), 5_000)) for seed in (1, 1, 2)]

    assert records[0] == records[1] != records[2]


def test_a_series_stays_in_its_partition_and_only_what_is_bad_is_rejected() -> None:
    records = list(islice(Fleet(40, 8, seed=1).records(), 30_000))
    homes: dict[str, set[int]] = {}
    for record in records:
        if not record.bad:
            homes.setdefault(json.loads(record.value)["tags"]["host"], set()).add(record.partition)
    decoded = make_decoder("plain-json").decode([record.value for record in records], lambda _: 0, SeriesIndex(10_000, None))

    assert all(len(partitions) == 1 for partitions in homes.values())
    assert [i for i, _ in decoded.rejected] == [i for i, record in enumerate(records) if record.bad]
    assert 10 <= sum(record.bad for record in records) <= 60
