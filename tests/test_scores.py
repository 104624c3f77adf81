"""Scores that somebody asked for: a message for each sample, the same whatever happens, and columns for remote write."""

import json
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest

from anomalyd.alerts.scores import load_schema
from anomalyd.batch import SampleBatch, Source, Verdicts
from anomalyd.detector import Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.formats import make_decoder
from anomalyd.selection import Selection
from anomalyd.series import Entities
from anomalyd.shard import Outcome, Shard, StreamPlan
from anomalyd.shard_scores import ScorePlan
from tests.test_shard import Record, incident, records, sample

ALL = Selection()


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector.load(device="cpu")


def shard(detector: Detector, scores: ScorePlan | None, capacity: int = 100, **more: Any) -> Shard:  # noqa: ANN401  options of a shard
    return Shard(StreamPlan("hosts"), Source("metrics", 3), detector, make_decoder("plain-json"), capacity, scores=scores, **more)


def fleet(samples: int, names: Sequence[str] = ("web", "db", "cache")) -> list[Record]:
    noise = np.random.default_rng(2).standard_normal(samples)
    return records([sample(names[i % len(names)], i, 50 + noise[i]) for i in range(samples)])


def messages(outcome: Outcome) -> list[dict[str, Any]]:
    return [json.loads(value) for _, value in outcome.scores]


def test_nothing_is_handed_out_that_nobody_asked_for(detector: Detector) -> None:
    outcome = shard(detector, ScorePlan()).process(fleet(30))

    assert (outcome.scores, outcome.points) == ([], [])


def test_a_message_says_what_the_detector_said_bit_for_bit(detector: Detector) -> None:
    seen: list[tuple[SampleBatch, Verdicts]] = []
    observed = shard(detector, ScorePlan(ALL), observer=lambda _shard, batch, verdicts, _alerts: seen.append((batch, verdicts)))
    outcome = observed.process(records(incident(), first=1000))
    score, low, high = (np.concatenate([getattr(verdicts, name) for _, verdicts in seen]) for name in ("score", "low", "high"))

    written = messages(outcome)
    assert len(written) == 600
    assert [one["score"] for one in written] == score.tolist()
    assert [one["expected_range"] for one in written[1:]] == np.stack([low[1:, 0], high[1:, 0]], axis=1).tolist()
    assert [one["source"]["offset"] for one in written] == list(range(1000, 1600))
    assert [one["state"] for one in written[:3]] == ["warmup"] * 3
    assert written[500]["state"] == "scored"
    assert written[500]["event_time"] == "2025-10-09T10:16:40.000Z"
    assert written[500]["score"] > 1 > written[499]["score"]
    firing = json.loads(outcome.alerts[0].message.value)
    assert {key: written[500][key] for key in ("score", "value", "expected", "expected_range", "source", "model", "series")} == {
        key: firing[key] for key in ("score", "value", "expected", "expected_range", "source", "model", "series")
    }
    for one in written:
        jsonschema.validate(one, load_schema())


def test_only_chosen_series_are_written_each_under_its_key(detector: Detector) -> None:
    outcome = shard(detector, ScorePlan(Selection(["*"], ["db"]), Selection(["db"]))).process(fleet(30))

    assert [key for key, _ in outcome.scores] == [b"web", b"cache"] * 10
    assert [key for points in outcome.points for key in points.key] == ["db"] * 10


@pytest.mark.parametrize("cut", [1, 7, 64])
def test_what_is_written_does_not_depend_on_how_records_are_cut(detector: Detector, cut: int) -> None:
    everything, whole, parts = fleet(200), shard(detector, ScorePlan(ALL, ALL)), shard(detector, ScorePlan(ALL, ALL))
    together = whole.process(everything)
    singly = [parts.process(everything[start : start + cut]) for start in range(0, len(everything), cut)]

    assert [one for outcome in singly for one in outcome.scores] == together.scores
    scores = [np.concatenate([points.score for points in outcome.points]) for outcome in (*singly, together)]
    assert np.array_equal(np.concatenate(scores[:-1]), scores[-1])


def test_a_row_that_changes_hands_is_chosen_by_its_new_series(detector: Detector) -> None:
    """Two rows for four series that take turns: each has to make room for others."""
    outcome = shard(detector, ScorePlan(Selection(["a", "c"])), capacity=2).process(fleet(40, ("a", "b", "c", "d")))

    assert outcome.evicted > 30
    assert [key for key, _ in outcome.scores] == [b"a", b"c"] * 10


def test_late_and_repeated_samples_are_marked_and_not_for_prometheus(detector: Detector) -> None:
    values = [sample("load", i, 5.0 + i) for i in range(200)]
    outcome = shard(detector, ScorePlan(ALL, ALL)).process(
        records([*values, values[150], sample("load", 200, 9.0), sample("load", 200, 9.0)])
    )

    assert [one["state"] for one in messages(outcome)[-4:]] == ["scored", "late", "scored", "repeated"]
    times = np.concatenate([points.time_ms for points in outcome.points])
    assert len(times) == 201
    assert (np.diff(times) > 0).all()


def test_features_of_an_entity_are_told_in_their_order() -> None:
    names = ["m.f", "m.e", "m.d", "m.c", "m.b", "m.a"]
    six = Detector(artifacts.load(shipped()).for_features(6), "cpu")
    lines = [f"m,h=x a={i},b=2,c=3,d=4,e=5 {1_760_000_000_000 + 60_000 * i}000000" for i in range(3)]
    lines += [f"m,h=x f=1 {1_760_000_000_000 + 60_000 * 3}000000"]
    plan = StreamPlan("hosts", entities=Entities(names, ["h"], "e"))
    outcome = Shard(plan, Source("m", 0), six, make_decoder("influx"), 4, scores=ScorePlan(ALL, ALL)).process(
        records([text.encode() for text in lines])
    )

    written = messages(outcome)
    # The first sample waits for all features, the later ones for those that came.
    assert [one["source"]["offset"] for one in written] == [1, 1, 2]
    for one in written:
        jsonschema.validate(one, load_schema())
        assert one["series"]["key"] == 'e{h="x"}'
        assert [feature["name"] for feature in one["features"]] == names
    assert written[0]["features"][0]["value"] is None
    assert written[0]["features"][5]["value"] == 0
    assert outcome.points[0].feature_names == tuple(names)
    assert outcome.points[0].expected.shape[1] == 6
