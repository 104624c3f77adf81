"""The watcher of a daemon: which model it hands to the pipeline, and that no model ever stops it."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.typing import EventDict

from anomalyd import champions
from anomalyd.batch import Entry, LogRecord
from anomalyd.champions import Bench, Champions, read_timeline
from anomalyd.detector import Artifact, Detector
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.errors import ArtifactError, ConfigError, KafkaUnavailableError
from anomalyd.kafka.registry import Champion, Decision, champion_entry, decision_entry, model_entries
from anomalyd.settings import Settings, StreamSettings
from anomalyd.stream_model import suited
from anomalyd.telemetry.metrics import Metrics
from tests.support.poll import until

BASE = artifacts.load(shipped())
GOOD, BETTER = (artifacts.sealed(replace(BASE, version=version, created_at="2026-01-01T00:00:00+00:00")) for version in ("good", "better"))
FOREIGN = artifacts.sealed(replace(BASE, several=None, feature_names=("other",)))


class Topic:
    """The models topic in memory."""

    def __init__(self) -> None:
        self.records: list[LogRecord] = []
        self.error: Exception | None = None
        self._read = 0

    def write(self, *entries: Entry) -> None:
        self.records += [LogRecord(len(self.records) + n, entry.key, entry.value) for n, entry in enumerate(entries)]

    def promote(self, artifact: Artifact, previous: Artifact | None = None, *, by: str = "promote", damaged: bool = False) -> None:
        parts = model_entries(artifact)
        if damaged:
            parts = [Entry(part.key, (part.value or b"")[:-1]) for part in parts]
        champion = Champion(artifact.hash, None if previous is None else previous.hash, "", by)
        self.write(*parts, decision_entry("hosts", artifact.hash, Decision("promoted")), champion_entry("hosts", champion))

    async def news(self) -> list[LogRecord]:
        if self.error is not None:
            raise self.error
        found, self._read = self.records[self._read :], len(self.records)
        return found

    async def close(self) -> None:
        self.error = None


class Pipeline:
    """Whoever swaps."""

    def __init__(self) -> None:
        self.swaps: list[Detector] = []
        self.on_trial: list[bool] = []
        self.shadows: list[Detector | None] = []

    def shade(self, stream: str, challenger: Detector | None) -> None:
        assert stream == "hosts"
        self.shadows.append(challenger)

    def swap(self, stream: str, detector: Detector, *, on_trial: bool = False) -> None:
        assert stream == "hosts"
        self.swaps.append(detector)
        self.on_trial.append(on_trial)

    @property
    def versions(self) -> list[str]:
        return [detector.model.version for detector in self.swaps]


def quickly(_: StreamSettings, like: Detector, artifact: Artifact) -> Detector:
    return Detector(artifact, "cpu", like.options)


class Rig:
    """A watcher over a topic in memory."""

    def __init__(
        self, build: Callable[[StreamSettings, Detector, Artifact], Detector] = quickly, *, base: Artifact = BASE, **models: object
    ) -> None:
        self.settings = Settings.model_validate(
            {
                "kafka": {"bootstrap_servers": "a:1"},
                "streams": [{"name": "hosts", "topics": ["metrics"], "format": "plain-json"}],
                "models": models,
            }
        )
        self.topic, self.pipeline, self.metrics = Topic(), Pipeline(), Metrics()
        self.base = Detector(base, "cpu")
        self.watcher = Champions(self.settings, {"hosts": self.base}, self.metrics, log=self.topic, build=build)
        self.log: list[EventDict] = []

    @asynccontextmanager
    async def following(self) -> AsyncIterator[str]:
        """Yields the version that scores at the start."""
        with structlog.testing.capture_logs() as self.log:
            at_work = await self.watcher.begin()
            task = asyncio.create_task(self.watcher.follow(self.pipeline))
            try:
                yield at_work["hosts"].model.version
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await self.watcher.close()

    def events(self, name: str) -> list[EventDict]:
        return [line for line in self.log if line["event"] == name]

    def metric(self, name: str, /, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"anomalyd_{name}", {"stream": "hosts", **labels})

    async def scores(self, version: str) -> None:
        await until(lambda: self.pipeline.versions[-1:] == [version], f"{version} to score")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champions, "FOLLOW_S", 0.005)


async def test_a_promotion_is_swapped_in_and_a_rollback_returns_to_the_very_same() -> None:
    rig = Rig()
    async with rig.following() as first:
        assert first == BASE.version
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
        rig.topic.write(champion_entry("hosts", Champion(BASE.hash, GOOD.hash, "", "rollback")))
        await rig.scores(BASE.version)

        # Shards compare them by identity, and what a restore looks for is the same again.
        assert rig.pipeline.swaps[-1] is rig.base
        assert await asyncio.to_thread(rig.watcher.find, "hosts", GOOD.hash) is rig.pipeline.swaps[-2]
    assert [(line["reason"], line["model"], line["before"]) for line in rig.events("model_swapped")] == [
        ("promote", GOOD.hash, BASE.hash),
        ("rollback", BASE.hash, GOOD.hash),
    ]
    assert (rig.metric("model_swaps_total", reason="promote"), rig.metric("model_swaps_total", reason="rollback")) == (1, 1)
    assert rig.metric("model_decisions_total", verdict="promoted") == 1
    assert rig.metric("model_info", name=BASE.name, version=BASE.version, hash=BASE.hash) == 1


async def test_the_champion_scores_from_the_start_and_what_was_decided_before_is_not_counted() -> None:
    rig = Rig()
    rig.topic.promote(GOOD, BASE)
    async with rig.following() as first:
        assert first == "good"
        await rig.scores("good")  # partitions that were written down with another one are told
    assert (rig.metric("model_swaps_total", reason="promote"), rig.metric("model_decisions_total", verdict="promoted")) == (0, 0)
    assert (rig.metric("model_age_seconds") or 0) > 0


@pytest.mark.parametrize("previous", [GOOD, None])
async def test_a_champion_that_is_damaged_at_the_start_leaves_the_last_good_one(previous: Artifact | None) -> None:
    rig = Rig()
    if previous is not None:
        rig.topic.promote(previous, BASE)
    rig.topic.promote(BETTER, previous, damaged=True)
    async with rig.following() as first:
        assert first == ("good" if previous else BASE.version)
    (told,) = rig.events("model_unusable")
    assert (told["model"], told["stream"]) == (BETTER.hash, "hosts")
    assert "is not in the topic" in told["reason"]
    assert rig.metric("model_swap_failures_total") == 1


@pytest.mark.parametrize("bad", ["damaged", "foreign", "missing", "another's content", "crashes"])
async def test_a_bad_model_leaves_the_present_one_and_the_next_good_one_is_taken(bad: str) -> None:
    def build(stream: StreamSettings, like: Detector, artifact: Artifact) -> Detector:
        if artifact.version == "better" and bad == "crashes":
            raise ZeroDivisionError("a fault of our own")
        return quickly(stream, like, suited(artifact, stream))

    rig = Rig(build)
    async with rig.following():
        match bad:
            case "damaged" | "crashes":
                rig.topic.promote(BETTER, BASE, damaged=bad == "damaged")
            case "foreign":
                rig.topic.promote(FOREIGN, BASE)
            case "missing":
                rig.topic.write(champion_entry("hosts", Champion("ab" * 32, None, "", "promote")))
            case _:
                rig.topic.write(
                    *model_entries(_Posing("cd" * 32, BASE)),
                    champion_entry("hosts", Champion("cd" * 32, None, "", "promote")),
                )
        await until(lambda: rig.events("model_unusable"), "the bad model to be told of")
        assert rig.pipeline.versions == [BASE.version]
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
    (told,) = rig.events("model_unusable")
    assert told["at_work"] == BASE.hash
    assert rig.metric("model_swap_failures_total") == 1


class _Posing:
    """An artifact under the hash of another one."""

    def __init__(self, hash_: str, artifact: Artifact) -> None:
        self.hash = hash_
        self._artifact = artifact

    def to_bytes(self) -> bytes:
        return self._artifact.to_bytes()


async def test_a_pinned_stream_stays() -> None:
    rig = Rig(pin="shipped")
    rig.topic.promote(GOOD, BASE)
    async with rig.following() as first:
        assert first == BASE.version
        rig.topic.promote(BETTER, GOOD)
        await until(lambda: rig.metric("model_decisions_total", verdict="promoted"), "the promotion to be seen")
        assert rig.pipeline.versions == [BASE.version]


async def test_a_pin_is_the_beginning_of_a_hash_and_may_come_later_than_the_daemon() -> None:
    rig = Rig(pin=BETTER.hash[:8])
    rig.topic.promote(GOOD, BASE)
    async with rig.following() as first:
        assert first == "good"  # the last good one
        (told,) = rig.events("model_unusable")
        assert told["model"] == BETTER.hash[:8]
        rig.topic.write(*model_entries(BETTER))
        await rig.scores("better")
    assert rig.metric("model_swaps_total", reason="pin") == 1


@pytest.mark.parametrize("pin", [FOREIGN.hash[:8], "shipped"])
async def test_a_pin_on_a_model_that_does_not_suit_is_tried_once_for_each_news(pin: str) -> None:
    tried = 0

    def build(*_: object) -> Detector:
        nonlocal tried
        tried += 1
        if tried > 20:  # or this would go on until somebody ends it
            return quickly(*_)  # type: ignore[arg-type]
        raise ArtifactError("it is for samples of 2 values")

    rig = Rig(build, base=GOOD, pin=pin)
    async with rig.following():
        rig.topic.write(*model_entries(FOREIGN), decision_entry("hosts", FOREIGN.hash, Decision("promoted")))
        await until(lambda: rig.metric("model_decisions_total", verdict="promoted"), "the news to be seen")
        rig.topic.write(decision_entry("hosts", GOOD.hash, Decision("rejected")))
        await until(lambda: rig.metric("model_decisions_total", verdict="rejected"), "more news")
        await until(lambda: not rig.watcher._posts["hosts"].preparing, "the last attempt")  # noqa: SLF001
    assert len(rig.events("model_unusable")) <= 3
    assert rig.pipeline.versions == ["good"]


async def test_a_timeline_leaves_the_topic_aside(tmp_path: Path) -> None:
    path = tmp_path / "timeline.jsonl"
    path.write_text("")
    rig = Rig(timeline=str(path))
    rig.topic.promote(GOOD, BASE)
    async with rig.following() as first:
        assert first == BASE.version
        assert rig.pipeline.swaps == []
        # What it names is found all the same.
        found = await asyncio.to_thread(rig.watcher.find, "hosts", GOOD.hash)
        assert found.model.hash == GOOD.hash


async def test_while_one_is_made_ready_a_rollback_is_done_and_not_overtaken() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def build(stream: StreamSettings, like: Detector, artifact: Artifact) -> Detector:
        if artifact.version == "better":
            begun.set()
            assert go_on.wait(30)
        return quickly(stream, like, artifact)

    rig = Rig(build)
    async with rig.following():
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
        rig.topic.promote(BETTER, GOOD)
        await until(begun.is_set, "the model to be prepared")
        rig.topic.write(champion_entry("hosts", Champion(BASE.hash, BETTER.hash, "", "rollback")))
        await rig.scores(BASE.version)
        go_on.set()
        rig.topic.promote(BETTER, GOOD)
        await rig.scores("better")
    assert rig.pipeline.versions == [BASE.version, "good", BASE.version, "better"]


async def test_what_went_by_rule_is_said_to_all_and_does_not_come_back_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str, str]] = []

    async def roll_back(_: Settings, stream: str, reason: str, *, by: str, of: str) -> None:
        said.append((stream, by, of))
        if len(said) == 1:
            raise KafkaUnavailableError("no answer")

    monkeypatch.setattr(champions, "roll_back", roll_back)
    rig = Rig()
    async with rig.following():
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
        rig.watcher.unfit("hosts", rig.pipeline.swaps[-1], "20 alerts fired")
        await until(lambda: len(said) == 2, "the topic to be told, which did not answer at first")
        assert len(rig.events("rollback_not_published")) == 1
        assert rig.metric("model_info", name=BASE.name, version=BASE.version, hash=BASE.hash) == 1
        rig.topic.write(decision_entry("hosts", GOOD.hash, Decision("rejected")))
        await until(lambda: rig.metric("model_decisions_total", verdict="rejected"), "the news to be seen")
        assert rig.pipeline.versions[-1] == "good"  # the pipeline itself went back
        rig.topic.promote(GOOD, BASE, by="retrain")
        await until(lambda: rig.pipeline.versions.count("good") == 2, "it to be given another chance")
    assert said == [("hosts", "rule", GOOD.hash)] * 2
    assert rig.metric("model_swaps_total", reason="rule") == 1


@pytest.mark.parametrize(("by", "on_trial"), [("promote", True), ("retrain", True), ("rollback", False), ("rule", False)])
async def test_only_a_model_that_is_new_is_on_trial(by: str, *, on_trial: bool) -> None:
    rig = Rig()
    async with rig.following():
        rig.topic.promote(GOOD, BASE, by=by)
        await rig.scores("good")
    assert rig.pipeline.on_trial == [False, on_trial]


async def test_the_rule_of_another_instance_brings_nothing_back_that_went_by_rule_here(monkeypatch: pytest.MonkeyPatch) -> None:
    async def roll_back(*_: object, **__: object) -> None: ...

    monkeypatch.setattr(champions, "roll_back", roll_back)
    rig = Rig()
    async with rig.following():
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
        rig.watcher.unfit("hosts", rig.pipeline.swaps[-1], "20 alerts fired")
        rig.topic.promote(GOOD, BETTER, by="rule")
        rig.topic.write(decision_entry("hosts", BETTER.hash, Decision("rejected")))
        await until(lambda: rig.metric("model_decisions_total", verdict="rejected"), "the news to be seen")
        assert rig.pipeline.versions.count("good") == 1
        rig.topic.write(champion_entry("hosts", Champion(GOOD.hash, BASE.hash, "", "rollback")))
        await until(lambda: rig.pipeline.versions.count("good") == 2, "the operator to be obeyed")


async def test_a_topic_that_cannot_be_read_changes_nothing_and_is_told_once() -> None:
    rig = Rig()
    async with rig.following():
        rig.topic.error = KafkaUnavailableError("no answer")
        await until(lambda: rig.events("models_not_followed"), "it to be told")
        rig.topic.error = None
        rig.topic.promote(GOOD, BASE)
        await rig.scores("good")
        await until(lambda: rig.events("models_followed"), "the end to be told")
    assert len(rig.events("models_not_followed")) == 1


async def test_brokers_are_waited_for_at_the_start() -> None:
    rig = Rig()
    rig.topic.error = KafkaUnavailableError("no answer")
    reasons: list[str] = []

    def waiting(reason: str) -> None:
        reasons.append(reason)
        rig.topic.error = None

    assert (await rig.watcher.begin(waiting))["hosts"] is rig.base
    assert reasons == ["no answer"]
    await rig.watcher.close()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: Input data was truncated"),
        ('{"topic": "metrics", "partition": 0, "offset": 7}', "line 2: Object missing required field `model`"),
        ('{"topic": "metrics", "partition": -1, "offset": 7, "model": "shipped"}', "line 2: Expected `int` >= 0 - at `$.partition`"),
        ('{"topic": "metrics", "partition": 0, "offset": 7, "model": "newest"}', "line 2: Expected `str` matching regex"),
        ('{"topic": "other", "partition": 0, "offset": 7, "model": "shipped"}', 'line 2: got topic "other", valid are metrics'),
        ('{"topic": "metrics", "partition": 0, "offset": 5, "model": "shipped"}', "line 2: got offset 5, must be greater than 5"),
    ],
)
def test_a_timeline_that_is_wrong_says_where(line: str, told: str, tmp_path: Path, stream: StreamSettings) -> None:
    path = tmp_path / "timeline.jsonl"
    path.write_text('{"topic": "metrics", "partition": 0, "offset": 5, "model": "shipped"}\n' + line + "\n")

    with pytest.raises(ConfigError, match=re.escape(f"models.timeline: {path}, {told}")):
        read_timeline(path, [stream])


def test_a_timeline_is_read_by_partition(tmp_path: Path, stream: StreamSettings) -> None:
    path = tmp_path / "timeline.jsonl"
    changes = [(0, 5, "shipped"), (1, 2, "ab" * 32), (0, 9, "0123abcd")]
    path.write_text("\n\n".join(json.dumps({"topic": "metrics", "partition": p, "offset": o, "model": m, "x": 1}) for p, o, m in changes))

    assert read_timeline(path, [stream]) == {("metrics", 0): [(5, "shipped"), (9, "0123abcd")], ("metrics", 1): [(2, "ab" * 32)]}


# --- made ready -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stream() -> StreamSettings:
    return StreamSettings.model_validate({"name": "hosts", "topics": ["metrics"], "format": "plain-json"})


def test_a_shape_that_is_new_is_compiled_by_another_process(stream: StreamSettings) -> None:
    """Here it only loads what is in the cache."""
    bench, like = Bench(), Detector(BASE, "cpu")
    with structlog.testing.capture_logs() as logs:
        made = bench.detector(stream, like, GOOD)
        bench.detector(stream, like, BETTER)

    assert (made.model.hash, made.device) == (GOOD.hash, "cpu")
    assert [line["event"] for line in logs] == ["model_compiled"]  # the second one has the same shape


def test_a_compiler_that_fails_is_no_more_than_a_model_that_cannot_be_used(stream: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champions, "filler", lambda *_, **__: ["sh", "-c", "echo no room >&2; exit 3"])

    with pytest.raises(ArtifactError, match=r"could not be made \(exit code 3\): no room"):
        Bench().detector(stream, Detector(BASE, "cpu"), GOOD)


def test_where_no_machine_code_can_be_kept_a_new_shape_is_refused_and_the_known_one_is_not(
    stream: StreamSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champions, "keeps_code", lambda: False)
    bench, like = Bench(), Detector(BASE, "cpu")

    with pytest.raises(ArtifactError, match="NUMBA_CACHE_DIR"):
        bench.detector(stream, like, GOOD)
    bench.known(like)
    assert bench.detector(stream, like, GOOD).model.hash == GOOD.hash


def test_a_compiler_is_ended_with_the_daemon(stream: StreamSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(champions, "filler", lambda *_, **__: ["sleep", "100"])
    bench, ended = Bench(), threading.Event()

    def compile_() -> None:
        with pytest.raises(ArtifactError, match="could not be made"):
            bench.detector(stream, Detector(BASE, "cpu"), GOOD)
        ended.set()

    thread = threading.Thread(target=compile_)
    thread.start()
    while bench._compiler is None:  # noqa: SLF001  nobody else says that it has begun
        thread.join(0.01)
    bench.close()
    thread.join(30)
    assert ended.is_set()


async def test_a_challenger_shadows_as_soon_as_it_can_be_had() -> None:
    rig = Rig(shadow={"hosts": BETTER.hash[:8]})
    async with rig.following() as version:
        assert version == BASE.version
        await until(lambda: rig.events("model_unusable"), "word that it is missing")

        rig.topic.write(*model_entries(BETTER), decision_entry("hosts", BETTER.hash, Decision("better")))
        await until(lambda: rig.events("model_shadowing"), "the challenger to shadow")
        rig.topic.promote(GOOD)
        await rig.scores("good")

    (challenger,) = rig.pipeline.shadows
    assert challenger is not None
    assert challenger.model.version == "better"
    assert "better" not in rig.pipeline.versions
