from typing import Any

import numpy as np

from anomalyd.batch import SampleBatch, Source
from anomalyd.demo.board import REMEMBERED, Board
from anomalyd.detector import Detector
from anomalyd.formats import make_decoder
from anomalyd.shard import Shard, StreamPlan


def watched(topic: str, board: Board) -> Shard:
    return Shard(StreamPlan("fleet"), Source(topic, 0), Detector.load(device="cpu"), make_decoder("plain-json"), 10, observer=board.observe)


def feed(shard: Shard, names: list[str], first: int, ticks: int) -> None:
    rows = np.array([shard.index.row(name, {}) for name in names], np.int32)
    n = ticks * len(names)
    times = np.repeat(np.arange(first, first + ticks, dtype=np.int64), len(names)) * 1000
    values = np.arange(n, dtype=np.float64)[:, None] + 1000 * first
    shard.advance(SampleBatch(np.tile(rows, ticks), times, values, np.arange(n, dtype=np.int32)), np.arange(n))


def message(name: str, status: str, key: str = "a", stream: str = "fleet") -> dict[str, Any]:
    return {
        "alert_id": name, "status": status, "stream": stream, "series": {"key": key}, "event_time": "2026-01-05T00:00:00.000Z",
        "severity": "warning", "peak_score": 1.5, "ends_at": None,
    }  # fmt: skip


def test_the_board_remembers_the_latest_samples_of_each_series() -> None:
    board = Board("fleet", "fleet")
    shard = watched("fleet", board)
    for first in range(0, 2 * REMEMBERED, 30):
        feed(shard, ["a", "b"], first, 30)

    assert board.samples == board.fleet_samples == 4 * REMEMBERED
    assert board.series == 2
    end = 2 * REMEMBERED
    stretch = board.cut("b", (end - 100) * 1000, (end - 51) * 1000)
    assert stretch.time_ms.tolist() == [1000 * tick for tick in range(end - 100, end - 50)]
    assert {len(column) for column in stretch} == {50}
    assert len(board.cut("a", 0, 1 << 60).time_ms) in range(REMEMBERED, REMEMBERED + 31)
    around = board.around("a", (end - 200) * 1000, 24, 16)
    assert around == board.cut("a", (end - 224) * 1000, (end - 185) * 1000).value.tolist()
    assert len(around) == 40
    assert len(board.around("a", (end - 3) * 1000, 24, 16)) == 27
    assert board.around("a", 5000, 24, 16) == board.around("unknown", 0, 24, 16) == []
    assert len(board.cut("unknown", 0, 1 << 60).time_ms) == 0


def test_samples_of_other_topics_are_not_the_fleets() -> None:
    board = Board("fleet", "fleet")
    feed(watched("host", board), ["a"], 0, 5)

    assert (board.samples, board.fleet_samples) == (5, 0)


def test_alerts_fire_once_and_leave_when_resolved() -> None:
    board = Board("fleet", "fleet")
    for name, status in (("1", "firing"), ("2", "firing"), ("1", "updated"), ("1", "resolved")):
        board.read(message(name, status))
    board.read(message("3", "firing", "cpu", stream="host"))

    assert (board.fired, board.resolved, board.messages_read) == (3, 1, 5)
    assert board.firing == 2
    assert [(alert["alert_id"], alert["status"]) for alert in board.newest(9)] == [("3", "firing"), ("2", "firing"), ("1", "resolved")]
    assert [alert["alert_id"] for alert in board.newest(1)] == ["3"]
    assert board.newest(0) == []
    assert [episode.key for episode in board.episodes()] == ["a", "a"]
    assert board.keys_alerted(fleet=False) == ["cpu"]
    assert [alert["status"] for alert in board.alerts("a")] == ["resolved", "firing"]
