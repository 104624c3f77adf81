"""The daemon's promises on a real Kafka, with a process that is stopped, killed, rebalanced and left without brokers."""

import asyncio
import json
import random
import signal
import threading
from collections.abc import Awaitable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import confluent_kafka
import jsonschema
import numpy as np
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from anomalyd.alerts.messages import load_schema
from anomalyd.app import App
from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.errors import TopicError
from anomalyd.kafka.message import Message
from anomalyd.kafka.producer import Producer
from anomalyd.settings import Settings
from anomalyd.shard import Shard
from tests.integration.daemon import Daemon, poison, sample
from tests.support.kafka import Cluster
from tests.support.poll import poll_until, until
from tests.support.topics import create_topic, produce, read_committed, read_until, unique

pytestmark = pytest.mark.timeout(240)


def incident(host: str, samples: int = 600, at: int = 500) -> list[bytes]:
    noise = np.random.default_rng(1).standard_normal(samples)
    return [sample(host, i, 100 + noise[i] + (60 if at <= i < at + 6 else 0)) for i in range(samples)]


@pytest.mark.real_kafka
class TestMainJob:
    def test_incidents_come_out_as_valid_alerts_and_a_stop_is_clean(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path, partitions=2) as daemon:
            produce(kafka, daemon.source, incident("web-1"), partition=0)
            produce(kafka, daemon.source, incident("web-2"), partition=1)
            records = read_until(kafka, daemon.alerts, lambda found: len(found) >= 4, "two episodes", 60)
            daemon.until_read(1200)

            assert daemon.stop() == 0

        alerts = [json.loads(record.value or b"") for record in records]
        for record, alert in zip(records, alerts, strict=True):
            jsonschema.validate(alert, load_schema())
            assert record.key == alert["alert_id"].encode()
            assert record.partition == alert["source"]["partition"]
        firing = [alert for alert in alerts if alert["status"] == "firing"]
        assert {(a["series"]["key"], a["source"]["offset"]) for a in firing} == {('load{host="web-1"}', 500), ('load{host="web-2"}', 500)}
        assert [daemon.committed(0), daemon.committed(1)] == [600, 600]

    def test_a_new_process_goes_on_where_the_last_one_stopped(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(100)])
            daemon.until_read(100)
            daemon.stop()
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(100, 130)])
            daemon.start()
            daemon.until_read(30)

            assert daemon.metric("anomalyd_records_consumed_total") == 30

    def test_bad_records_come_back_unchanged_with_their_origin(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", 0, 1.0), b"\xff\xfe", b"A" * 900_000, sample("a", 1, 1.0)], key=b"k")
            letters = read_until(kafka, daemon.dead, lambda found: len(found) >= 2, "two dead letters", 60)
            daemon.until_read(4)

            assert daemon.metric("anomalyd_samples_scored_total") == 2
            assert daemon.metric("anomalyd_records_rejected_total") == 2

        assert [(letter.key, letter.value) for letter in letters] == [(b"k", b"\xff\xfe"), (b"k", b"A" * 900_000)]
        assert letters[0].headers == {
            "anomalyd-reason": b"malformed",
            "anomalyd-topic": daemon.source.encode(),
            "anomalyd-partition": b"0",
            "anomalyd-offset": b"1",
        }


def every_poison(found: Sequence[Any], count: int) -> bool:
    return {record.value for record in found} >= {poison(n) for n in range(count)}


class Feeder:
    """Bad records into both partitions of a topic, from `with` until `stop`."""

    def __init__(self, kafka: str, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self._count = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> int:
        """Returns how many there are."""
        self._enough.set()
        self._thread.join()
        return self._count

    def _feed(self) -> None:
        while not self._enough.is_set():
            batch = [poison(n) for n in range(self._count, self._count + 50)]
            produce(self._kafka, self._topic, batch, partition=self._count // 50 % 2)
            self._count += 50


@pytest.mark.real_kafka
class TestAtLeastOnce:
    """Each bad record comes back as a dead letter: what is missing there was lost on the way."""

    def test_kills_lose_nothing(self, kafka: str, tmp_path: Path) -> None:
        draw = random.Random(1)
        with Daemon(kafka, tmp_path, partitions=2) as daemon, Feeder(kafka, daemon.source) as feeder:
            for _ in range(4):
                poll_until(lambda: (daemon.metric("anomalyd_records_consumed_total") or 0) > 0, "some records", 60)
                poll_until(lambda: draw.random() < 0.02, "a random moment")
                daemon.kill()
                daemon.start()
            count = feeder.stop()

            read_until(kafka, daemon.dead, lambda found: every_poison(found, count), "every dead letter", 90)

    def test_instances_that_come_and_go_lose_nothing(self, kafka: str, tmp_path: Path) -> None:
        with (
            Daemon(kafka, tmp_path, partitions=2) as first,
            Daemon(kafka, tmp_path, source=first.source, group=first.group) as second,
            Feeder(kafka, first.source) as feeder,
        ):
            for instance in (first, second):
                poll_until(lambda i=instance: i.metric("anomalyd_assigned_partitions") == 1, "one partition each", 60)  # type: ignore[misc]
            assert first.stop() == 0
            poll_until(lambda: second.metric("anomalyd_assigned_partitions") == 2, "both partitions", 60)
            first.start()
            poll_until(lambda: first.metric("anomalyd_assigned_partitions") == 1, "one partition again", 60)
            count = feeder.stop()

            read_until(kafka, first.dead, lambda found: every_poison(found, count), "every dead letter", 90)
            assert "Traceback" not in first.log() + second.log()

    async def test_positions_wait_for_the_acknowledgement_of_what_they_vouch_for(
        self, kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig = await asyncio.to_thread(Daemon, kafka, tmp_path)
        deliver, asked, answer = Producer.deliver, asyncio.Event(), asyncio.Event()

        async def slow(self: Producer, messages: Sequence[Message]) -> None:
            asked.set()
            await answer.wait()
            await deliver(self, messages)

        monkeypatch.setattr(Producer, "deliver", slow)
        async with App(in_process(rig)) as app:
            await app.until_ready()
            await asyncio.to_thread(produce, kafka, rig.source, [poison(0)])
            await asyncio.wait_for(asked.wait(), 30)
            await asyncio.sleep(0.5)  # two checkpoints' time in which nothing must happen
            before = await asyncio.to_thread(rig.committed)
            answer.set()

            def committed() -> Awaitable[int]:
                return asyncio.to_thread(rig.committed)

            after: int = await until(committed, "the position", 30)

        assert (before, after) == (0, 1)
        assert [letter.value for letter in await asyncio.to_thread(read_committed, kafka, rig.dead)] == [poison(0)]


def in_process(rig: Daemon) -> Settings:
    return Settings.model_validate(
        {
            "kafka": {"bootstrap_servers": rig.bootstrap, "group_id": rig.group},
            "streams": [{"name": "hosts", "topics": [rig.source], "format": "plain-json", "start_from": "earliest"}],
            "alerts": {"topic": rig.alerts},
            "checkpoint": {"interval_s": 0.1},
            "http": {"host": "127.0.0.1", "port": 0},
            "device": "cpu",
        }
    )


@pytest.mark.real_kafka
class TestInAnotherProgram:
    async def test_an_observer_sees_scores_and_the_daemon_stops_with_the_block(self, kafka: str, tmp_path: Path) -> None:
        rig = await asyncio.to_thread(Daemon, kafka, tmp_path)
        seen: list[int] = []

        def look(_: Shard, batch: SampleBatch, __: Verdicts, ___: list[dict[str, Any]]) -> None:
            seen.append(len(batch))

        async with App(in_process(rig), observer=look) as app:
            await app.until_ready()
            await asyncio.to_thread(produce, kafka, rig.source, [sample("a", i, 1.0) for i in range(50)])
            await until(lambda: sum(seen) == 50, "every sample")

        assert await asyncio.to_thread(rig.committed) == 50

    async def test_its_failure_is_raised_where_it_is_awaited(self, kafka: str, tmp_path: Path) -> None:
        rig = await asyncio.to_thread(Daemon, kafka, tmp_path, make_topics=False)

        with pytest.raises(TopicError, match="anomalyd topics create"):
            async with App(in_process(rig)) as app:
                await app.until_ready()


@pytest.mark.real_kafka
class TestOperatorsMistakes:
    def test_a_missing_alerts_topic_ends_with_one_line_that_says_what_to_do(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path, make_topics=False) as daemon:
            assert daemon.process.wait(60) == 1

        last = daemon.log().splitlines()[-1]
        assert daemon.alerts in last
        assert "anomalyd topics create" in last
        assert "Traceback" not in daemon.log()

    def test_a_missing_input_topic_is_waited_for(self, kafka: str, tmp_path: Path) -> None:
        daemon = Daemon(kafka, tmp_path, source=unique("later"))
        with daemon:
            poll_until(lambda: daemon.events("input_topics_missing"), "a warning", 60)
            assert daemon.get("/readyz")[0] == 503
            create_topic(kafka, daemon.source)
            produce(kafka, daemon.source, [sample("a", 0, 1.0)])
            daemon.until_read(1)
            daemon.until_ready()

    def test_two_instances_with_one_instance_id_are_told_so_or_take_turns_but_never_crash(self, kafka: str, tmp_path: Path) -> None:
        with (
            Daemon(kafka, tmp_path, kafka={"group_instance_id": "one"}) as first,
            Daemon(kafka, tmp_path, source=first.source, group=first.group, kafka={"group_instance_id": "one"}) as second,
        ):
            produce(kafka, first.source, [poison(n) for n in range(10)])
            read_until(kafka, first.dead, lambda found: every_poison(found, 10), "every dead letter", 60)

            assert "Traceback" not in first.log() + second.log()


@pytest.mark.real_kafka
class TestGroup:
    def test_a_member_that_stops_leaves_the_group_but_a_static_one_stays(self, kafka: str, tmp_path: Path) -> None:
        admin = AdminClient({"bootstrap.servers": kafka})

        def members(group: str) -> int:
            return len(admin.describe_consumer_groups([group])[group].result(10).members)

        left = {}
        for kind, settings in {"dynamic": {}, "static": {"group_instance_id": "one", "session_timeout_ms": 20_000}}.items():
            with Daemon(kafka, tmp_path, kafka=settings) as daemon:
                daemon.until_ready()
                assert members(daemon.group) == 1
                assert daemon.stop() == 0
                left[kind] = members(daemon.group)

        assert left == {"dynamic": 0, "static": 1}

    def test_aborted_records_never_happened_and_leave_no_lag(self, kafka: str, tmp_path: Path) -> None:
        """Control records bring nothing, but take offsets; the position has to get past them."""
        with Daemon(kafka, tmp_path) as daemon:
            producer = confluent_kafka.Producer({"bootstrap.servers": kafka, "transactional.id": unique("tx")})
            producer.init_transactions(30)
            for commit in (True, False):
                producer.begin_transaction()
                producer.produce(daemon.source, poison(int(commit)), partition=0)
                producer.flush(30)  # an abort would drop what has not been sent
                producer.commit_transaction(30) if commit else producer.abort_transaction(30)
            daemon.until_read(1)
            poll_until(lambda: daemon.committed() == 4, "the position behind two records and two markers")

            assert daemon.metric("anomalyd_records_consumed_total") == 1
            assert daemon.stop() == 0
        assert [letter.value for letter in read_committed(kafka, daemon.dead)] == [poison(1)]

    def test_expired_records_are_passed_over_loudly(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10)])
            daemon.until_read(10)
            daemon.stop()
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10, 40)])
            admin = AdminClient({"bootstrap.servers": kafka})
            (deleted,) = admin.delete_records([TopicPartition(daemon.source, 0, 25)]).values()
            deleted.result(20)
            daemon.start()
            daemon.until_read(15)

            assert daemon.metric("anomalyd_records_lost_total") == 15
            assert daemon.events("position_out_of_range")[0]["position"] == 10


class TestOutages:
    def test_brokers_that_are_away_at_the_start_are_waited_for(self, breakable_kafka: Cluster, tmp_path: Path) -> None:
        daemon = Daemon(breakable_kafka.bootstrap_servers, tmp_path)
        breakable_kafka.brokers[0].stop()
        with daemon:
            poll_until(lambda: daemon.events("kafka_unreachable"), "a warning", 30)
            assert (daemon.get("/healthz")[0], daemon.get("/readyz")[0]) == (200, 503)
            breakable_kafka.ensure_up()
            daemon.until_ready()

            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()
        assert len(daemon.events("kafka_unreachable")) < 30

    def test_brokers_that_go_away_and_come_back_cost_nothing(self, breakable_kafka: Cluster, tmp_path: Path) -> None:
        kafka = breakable_kafka.bootstrap_servers
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [poison(n) for n in range(100)])
            daemon.until_read(100)
            breakable_kafka.brokers[0].kill()
            poll_until(lambda: daemon.get("/readyz")[0] == 503, "not ready", 60)
            assert daemon.get("/healthz")[0] == 200
            busy = daemon.metric("process_cpu_seconds_total") or 0.0
            threading.Event().wait(3)  # long enough to tell a busy loop from a waiting one
            assert (daemon.metric("process_cpu_seconds_total") or 0.0) - busy < 1.5
            breakable_kafka.ensure_up()
            produce(kafka, daemon.source, [poison(n) for n in range(100, 200)])

            read_until(kafka, daemon.dead, lambda found: every_poison(found, 200), "every dead letter", 90)
            daemon.until_ready()
            assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()

    def test_a_second_signal_does_not_wait(self, breakable_kafka: Cluster, tmp_path: Path) -> None:
        kafka = breakable_kafka.bootstrap_servers
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [poison(n) for n in range(10)])
            daemon.until_read(10)
            breakable_kafka.brokers[0].kill()
            daemon.process.send_signal(signal.SIGTERM)
            poll_until(lambda: daemon.events("stopping"), "the first signal", 10)
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)

            assert daemon.process.wait(10) in {0, 1}

    def test_a_damaged_batch_is_passed_over_and_what_lies_around_it_is_read(self, breakable_kafka: Cluster, tmp_path: Path) -> None:
        kafka = breakable_kafka.bootstrap_servers
        daemon = Daemon(kafka, tmp_path)
        for start in (0, 100, 200):
            produce(kafka, daemon.source, [poison(n) for n in range(start, start + 100)])
        breakable_kafka.brokers[0].stop()
        (log,) = breakable_kafka.brokers[0].data.glob(f"{daemon.source}-0/*.log")
        content = bytearray(log.read_bytes())
        at = content.index(poison(150))
        content[at + 2] ^= 0xFF
        log.write_bytes(content)
        breakable_kafka.ensure_up()
        with daemon:
            wanted = {poison(n) for n in range(300) if not 100 <= n < 200}
            found = read_until(kafka, daemon.dead, lambda records: {r.value for r in records} >= wanted, "what can be read", 60)

            assert {record.value for record in found} == wanted
            assert daemon.metric("anomalyd_records_lost_total") == 100
