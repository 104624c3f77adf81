"""Where a partition is read from, against a client in memory."""

from collections.abc import Iterable

import pytest
from aiokafka import TopicPartition
from aiokafka.structs import OffsetAndMetadata

from anomalyd.batch import Source
from anomalyd.kafka.positions import BEGUN, Located, StartFrom, locate

SOURCE = Source("metrics", 0)
POLICIES: tuple[StartFrom, ...] = ("earliest", "latest")


class Client:
    """A partition that holds offsets 100 to 199."""

    def __init__(self, committed: int | None, note: str | None = "") -> None:
        self.position = committed
        self.note = note
        self.commits: list[dict[TopicPartition, int]] = []
        self._coordinator = self

    async def fetch_committed_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, OffsetAndMetadata]:
        return {} if self.position is None else dict.fromkeys(partitions, OffsetAndMetadata(self.position, self.note))

    async def beginning_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 100)

    async def end_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, 200)

    async def commit(self, positions: dict[TopicPartition, int]) -> None:
        self.commits.append(positions)


@pytest.mark.parametrize("start_from", POLICIES)
async def test_the_groups_position_counts_where_we_have_no_state_whatever_start_from_says(start_from: StartFrom) -> None:
    """A group that ran an older release goes on where that one stopped."""
    client = Client(committed=150)

    assert await locate(client, SOURCE, None, start_from) == Located(150, 100, 200)
    assert client.commits == []


@pytest.mark.parametrize(("note", "begun"), [(BEGUN, True), ("", False), (None, False), ("of another program", False)])
async def test_an_offset_of_ours_tells_that_there_was_state(note: str | None, *, begun: bool) -> None:
    assert await locate(Client(150, note), SOURCE, None, "latest") == Located(150, 100, 200, begun)
    assert await locate(Client(50, note), SOURCE, None, "latest") == Located(100, 100, 200, begun)
    assert await locate(Client(150, note), SOURCE, 120, "latest") == Located(120, 100, 200, begun=False)


@pytest.mark.parametrize(("start_from", "position"), [("earliest", 100), ("latest", 200)])
async def test_a_new_group_begins_where_it_is_told_and_that_is_committed_at_once(start_from: StartFrom, position: int) -> None:
    client = Client(committed=None)

    assert await locate(client, SOURCE, None, start_from) == Located(position, 100, 200)
    assert client.commits == [{TopicPartition("metrics", 0): position}]


@pytest.mark.parametrize("committed", [None, 150, 199])
async def test_where_our_state_goes_on_counts_whatever_the_group_has(committed: int | None) -> None:
    """What was published for the group's lag may lag behind itself."""
    client = Client(committed)

    assert await locate(client, SOURCE, 120, "latest") == Located(120, 100, 200)
    assert client.commits == []


@pytest.mark.parametrize("wanted", [100, 200])
async def test_both_ends_of_the_log_are_in_it(wanted: int) -> None:
    assert await locate(Client(committed=None), SOURCE, wanted, "latest") == Located(wanted, 100, 200)


@pytest.mark.parametrize("wanted", [40, 201, 5_000])
async def test_a_position_outside_of_the_log_becomes_the_earliest_that_is_there(wanted: int) -> None:
    """Records have expired, or the topic was made anew: which of the two the caller knows by what it wanted."""
    for client, ours in ((Client(committed=None), wanted), (Client(committed=wanted), None)):
        assert await locate(client, SOURCE, ours, "latest") == Located(100, 100, 200)
        assert client.commits == []
