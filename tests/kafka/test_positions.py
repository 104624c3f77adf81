"""Where a partition is read from, against a client in memory."""

from collections.abc import Iterable

from aiokafka import TopicPartition

from anomalyd.batch import Source
from anomalyd.kafka.positions import Located, StartFrom, locate

SOURCE = Source("metrics", 0)
EARLIEST: dict[str, StartFrom] = {"metrics": "earliest"}
LATEST: dict[str, StartFrom] = {"metrics": "latest"}


class Client:
    """A partition that holds offsets 100 to 199."""

    def __init__(self, committed: int | None) -> None:
        self.position = committed
        self.commits: list[dict[TopicPartition, int]] = []

    async def committed(self, _: TopicPartition) -> int | None:
        return self.position

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 100)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 200)

    async def commit(self, positions: dict[TopicPartition, int]) -> None:
        self.commits.append(positions)


async def test_the_committed_position_counts_whatever_start_from_says() -> None:
    for start_from in (EARLIEST, LATEST):
        client = Client(committed=150)

        assert await locate(client, {SOURCE: None}, start_from) == {SOURCE: Located(150, 200, 0)}
        assert client.commits == []


async def test_a_new_group_begins_where_it_is_told_and_that_is_committed_at_once() -> None:
    for start_from, position in ((EARLIEST, 100), (LATEST, 200)):
        client = Client(committed=None)

        assert await locate(client, {SOURCE: None}, start_from) == {SOURCE: Located(position, 200, 0)}
        assert client.commits == [{TopicPartition("metrics", 0): position}]


async def test_expired_records_are_counted_and_the_earliest_ones_left_are_next() -> None:
    assert await locate(Client(committed=40), {SOURCE: None}, LATEST) == {SOURCE: Located(100, 200, 60)}


async def test_a_topic_made_anew_is_read_from_its_start() -> None:
    assert await locate(Client(committed=5_000), {SOURCE: None}, LATEST) == {SOURCE: Located(100, 200, 0)}


async def test_a_position_of_our_own_needs_no_committed_one() -> None:
    client = Client(committed=None)

    assert await locate(client, {SOURCE: 120}, LATEST) == {SOURCE: Located(120, 200, 0)}
    assert client.commits == []
