"""The daemon's promises on a real Kafka, with a process that is stopped, killed, rebalanced and left without brokers."""

import asyncio
import json
import random
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka
import jsonschema
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions

from anomalyd.alerts.messages import load_schema
from anomalyd.app import App
from anomalyd.batch import SampleBatch, Verdicts
from anomalyd.errors import TopicError
from anomalyd.settings import Settings
from anomalyd.shard import Shard
from tests.chaos.compare import Comparison, compare
from tests.chaos.load import Feeder, Fleet
from tests.integration.daemon import Daemon, incident, poison, sample
from tests.support.kafka import Cluster
from tests.support.poll import poll_until, until
from tests.support.topics import Record, create_topic, produce, read_committed, read_until, unique

pytestmark = pytest.mark.timeout(240)


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

    def test_bad_records_come_back_unchanged_with_their_origin(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", 0, 1.0), b"\xff\xfe", b"A" * 900_000, sample("a", 1, 1.0)], key=b"k")
            letters = read_until(kafka, daemon.dead, lambda found: len(found) >= 2, "two dead letters", 60)
            daemon.until_read(4)

            daemon.until_metric("anomalyd_samples_scored_total", 2)
            daemon.until_metric("anomalyd_records_rejected_total", 2)

        assert [(letter.key, letter.value) for letter in letters] == [(b"k", b"\xff\xfe"), (b"k", b"A" * 900_000)]
        assert letters[0].headers == {
            "anomalyd-reason": b"malformed",
            "anomalyd-topic": daemon.source.encode(),
            "anomalyd-partition": b"0",
            "anomalyd-offset": b"1",
        }

    def test_policies_are_taken_over_on_sighup_and_survive_a_crash(self, kafka: str, tmp_path: Path) -> None:
        """What the first policy mutes stays untold, though a crash has it replayed under another one; an invalid file changes nothing."""
        mute = {"start": "1970-01-01", "end": "2099-01-01", "reason": "test"}
        with Daemon(kafka, tmp_path, settings={"state": {"turn_s": 3_600}}) as daemon:
            daemon.until_ready()
            daemon.reconfigure(alerts={"topic": daemon.alerts, "mutes": [mute]})
            poll_until(lambda: daemon.events("config_reloaded"), "the first policy")
            produce(kafka, daemon.source, incident("web-1"))
            daemon.until_read(600)
            daemon.until_metric("anomalyd_alerts_muted_total", 1)

            daemon.reconfigure(alerts={"topic": daemon.alerts, "labels": {"team": "a"}}, max_series=500)
            poll_until(lambda: len(daemon.events("config_reloaded")) == 2, "the second policy")
            assert [event["keys"] for event in daemon.events("config_needs_restart")] == [["max_series"]]
            produce(kafka, daemon.source, incident("web-2"))
            read_until(kafka, daemon.alerts, lambda found: len(found) >= 2, "an episode", 60)

            daemon.reconfigure(alerts={"budget": -1})
            poll_until(lambda: daemon.events("config_reload_failed"), "a refusal")
            assert daemon.metric("anomalyd_config_reload_success") == 0
            daemon.kill()
            daemon.start()  # the file is not valid
            assert daemon.process.wait(60) == 2
            daemon.reconfigure(alerts={"topic": daemon.alerts, "labels": {"team": "a"}})
            daemon.start()
            produce(kafka, daemon.source, incident("web-3"))
            records = read_until(kafka, daemon.alerts, lambda found: len(found) >= 4, "another episode", 60)
            assert daemon.metric("anomalyd_replay_divergences_total") == 0

        alerts = [json.loads(record.value or b"") for record in records]
        assert [(alert["series"]["labels"]["host"], alert["labels"]) for alert in alerts if alert["status"] == "firing"] == [
            ("web-2", {"team": "a"}),
            ("web-3", {"team": "a"}),
        ]


def every_poison(found: Sequence[Any], count: int) -> bool:
    return {record.value for record in found} >= {poison(n) for n in range(count)}


FLEET = Fleet(12, 2, seed=5)
WHILE_FED = {"max_series": FLEET.most_series, "state": {"turn_s": 3.0}}
"""Pages are written often enough for a kill to find some that are young and some that are old."""


def dead_letters(daemon: Daemon, feeder: Feeder) -> list[Record]:
    """All of them, once the last record of every partition has come back."""
    wanted = set(feeder.last.values())
    return read_until(daemon.bootstrap, daemon.dead, lambda found: {r.value for r in found} >= wanted, "the last dead letters", 90)


def compared(feeder: Feeder, folder: Path, *daemons: Daemon) -> list[Comparison]:
    """What was written under faults with what an uninterrupted run over the same input writes."""
    dead = [dead_letters(daemon, feeder) for daemon in daemons]
    kafka, source = daemons[0].bootstrap, daemons[0].source
    with Daemon(kafka, folder, source=source, partitions=2, settings=WHILE_FED) as alone:
        dead_alone = dead_letters(alone, feeder)
        assert alone.stop() == 0
    alerts = read_committed(kafka, alone.alerts)
    assert len(alerts) > 30
    return [
        compare(alerts, read_committed(kafka, daemon.alerts), dead_alone, found, feeder.bad)
        for daemon, found in zip(daemons, dead, strict=True)
    ]


def killed_at_random(*daemons: Daemon, kills: int) -> int:
    """Kills and starts each process so many times; returns how many records the new ones have to replay."""
    draw = random.Random(1)

    def kill(daemon: Daemon) -> None:
        poll_until(lambda: (daemon.metric("anomalyd_samples_scored_total") or 0) > 0, "some samples", 60)
        poll_until(lambda: draw.random() < 0.02, "a random moment")
        daemon.kill()
        daemon.start()

    def to_replay(daemon: Daemon) -> int:
        poll_until(lambda: len(daemon.events("partition_restored")) == 2, f"both partitions; its log: {daemon.log()[-2000:]}", 60)
        return sum(event["replay"] for event in daemon.events("partition_restored"))

    replayed = 0
    for _ in range(kills):
        for daemon in daemons:
            kill(daemon)
        replayed += sum(map(to_replay, daemons))
    return replayed


@pytest.mark.real_kafka
class TestDelivery:
    """Alerts and dead letters are those of a run that nobody has interrupted, in everything but the time of detection."""

    def test_kills_lose_nothing_and_double_nothing_that_transactions_hold_together(self, kafka: str, tmp_path: Path) -> None:
        """Without them, what is doubled has the same id."""
        source = create_topic(kafka, partitions=2)
        once = Daemon(kafka, tmp_path, source=source, partitions=2, settings=WHILE_FED)
        repeating = Daemon(kafka, tmp_path, source=source, partitions=2, settings=WHILE_FED | {"delivery": "at-least-once"})
        with once, repeating, Feeder(kafka, source, FLEET, rate=800, at_least=12_000) as feeder:
            replayed = killed_at_random(once, repeating, kills=2)
            feeder.finish()
            exactly, at_least = compared(feeder, tmp_path, once, repeating)
            assert "Traceback" not in once.log() + repeating.log()

        assert exactly == Comparison(alerts=exactly.alerts, dead_letters=len(feeder.bad))
        assert at_least == replace(exactly, doubled=at_least.doubled, dead_doubled=at_least.dead_doubled, examples=at_least.examples)
        assert replayed > 0

    def test_instances_that_come_and_go_lose_nothing_and_keep_in_memory_what_they_keep(self, kafka: str, tmp_path: Path) -> None:
        def sharing(instance: Daemon, partitions: int, claims: int) -> None:
            poll_until(
                lambda: (
                    instance.metric("anomalyd_assigned_partitions") == partitions
                    and instance.get("/readyz")[0] == 200
                    and instance.metric('anomalyd_fences_total{why="claim"}') == claims
                ),
                f"{partitions} partitions after {claims} claims; its log: {instance.log()[-2000:]}",
                60,
            )

        source = create_topic(kafka, partitions=2)
        first = Daemon(kafka, tmp_path, source=source, partitions=2, settings=WHILE_FED)
        second = Daemon(kafka, tmp_path, source=source, group=first.group, settings=WHILE_FED)
        with first, Feeder(kafka, source, FLEET, rate=800, at_least=12_000) as feeder:
            sharing(first, 2, claims=2)
            with second:
                sharing(second, 1, claims=1)
                sharing(first, 1, claims=2)
                replayed = second.metric("anomalyd_records_replayed_total")
                assert first.stop() == 0
                sharing(second, 2, claims=2)
                second.until_metric("anomalyd_records_replayed_total", replayed)  # the other one left in good order
                first.start()
                sharing(first, 1, claims=1)
                sharing(second, 1, claims=2)
                feeder.finish()
                (found,) = compared(feeder, tmp_path, first)
                assert "Traceback" not in first.log() + second.log()

        assert found == Comparison(alerts=found.alerts, dead_letters=len(feeder.bad))


def ready_but_for_one(daemon: Daemon) -> str:
    """Waits until a partition is stopped; returns why."""
    poll_until(lambda: daemon.status().get("partitions_stopped"), f"a stop; its log: {daemon.log()[-2000:]}", 60)
    stopped = daemon.status()["partitions_stopped"]
    assert list(stopped) == [f"{daemon.source}/0"]
    assert daemon.get("/readyz")[0] == 503
    daemon.until_metric("anomalyd_stopped_partitions", 1)
    why: str = stopped[f"{daemon.source}/0"]
    (event,) = daemon.events("partition_stopped")
    assert (event["partition"], event["reason"]) == (0, why)
    return why


@pytest.mark.real_kafka
class TestState:
    """What was learned belongs to an input offset and comes back with it."""

    def test_a_new_process_goes_on_where_the_last_one_stopped_with_what_it_had_learned(self, kafka: str, tmp_path: Path) -> None:
        """A series that began anew would take a hundred samples before its first alert."""
        records = incident("web-1", samples=520)
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, records[:490])
            daemon.until_read(490)
            assert daemon.stop() == 0
            settled = daemon.position()
            assert settled is not None
            assert (settled.position, settled.replay_from) == (490, 490)
            produce(kafka, daemon.source, records[490:])
            daemon.start()
            (fired,) = [
                json.loads(r.value or b"") for r in read_until(kafka, daemon.alerts, lambda found: len(found) >= 1, "an alert", 60)
            ][:1]
            daemon.until_read(30)

            assert (fired["status"], fired["source"]["offset"]) == ("firing", 500)
            daemon.until_metric("anomalyd_records_consumed_total", 30)
            assert daemon.metric("anomalyd_records_replayed_total") == 0
            (restored,) = daemon.events("partition_restored")
            assert (restored["position"], restored["replay"], restored["series"]) == (490, 0, 1)

    def test_input_that_a_replay_needs_and_that_has_expired(self, kafka: str, tmp_path: Path) -> None:
        """As the operator wants it: the partition stops, the others go on; or all go on with what is there."""
        seldom = {"turn_s": 3600.0}
        with Daemon(kafka, tmp_path, partitions=2, settings={"state": seldom}) as daemon:
            for partition in (0, 1):
                produce(kafka, daemon.source, [sample(f"host-{partition}", i, 1.0) for i in range(300)], partition=partition)
            for partition in (0, 1):
                assert daemon.until_committed(300, partition).replay_from < 200
            daemon.kill()
        produce(kafka, daemon.source, [poison(0)], partition=1)
        expire(kafka, daemon.source, 250)

        stopping = {"state": seldom | {"on_gap": "stop"}}
        with Daemon(kafka, tmp_path, source=daemon.source, group=daemon.group, settings=stopping) as careful:
            why = ready_but_for_one(careful)
            assert "250" in why
            assert "state.on_gap" in why
            read_until(kafka, daemon.dead, lambda found: every_poison(found, 1), "the other partition's dead letter", 60)
            assert careful.stop() == 0
        produce(kafka, daemon.source, [poison(1)])
        with Daemon(kafka, tmp_path, source=daemon.source, group=daemon.group, settings={"state": seldom}) as bold:
            read_until(kafka, daemon.dead, lambda found: every_poison(found, 2), "the dead letter behind the gap", 60)
            bold.until_ready()
            (gap,) = bold.events("state_gap")
            assert gap["first"] + gap["records"] == 250
            bold.until_metric("anomalyd_replay_gap_records_total", gap["records"])
            assert bold.metric("anomalyd_records_lost_total") == 0  # everything in front of the position had been told

    def test_an_input_topic_that_was_made_anew_is_read_from_its_start(self, kafka: str, tmp_path: Path) -> None:
        """Its offsets mean other records now; what was learned is void."""
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("old", i, 1.0) for i in range(300)])
            daemon.until_read(300)
            assert daemon.stop() == 0
            make_anew(kafka, daemon.source)
            produce(kafka, daemon.source, [sample("new", i, 1.0) for i in range(50)])
            daemon.start()
            daemon.until_read(50)
            (discarded,) = daemon.events("state_discarded")
            assert discarded["position"] == 300
            daemon.until_metric("anomalyd_series", 1)
            assert daemon.stop() == 0
            produce(kafka, daemon.source, [poison(0)])
            daemon.start()
            read_until(kafka, daemon.dead, lambda found: every_poison(found, 1), "the dead letter", 60)
            (restored,) = daemon.events("partition_restored")

            assert (restored["position"], restored["series"], restored["replay"]) == (50, 1, 0)
            daemon.until_metric("anomalyd_records_consumed_total", 1)

    def test_a_damaged_changelog_stops_its_partition_alone_and_loudly(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path, partitions=2) as daemon:
            for partition in (0, 1):
                produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10)], partition=partition)
            daemon.until_read(20)
            assert daemon.stop() == 0
            page = next(r for r in read_committed(kafka, daemon.changelog) if r.partition == 0 and (r.key or b"").startswith(b"S|"))
            damaged = bytearray(page.value or b"")
            damaged[len(damaged) // 2] ^= 1
            produce(kafka, daemon.changelog, [bytes(damaged)], partition=0, key=page.key)
            for partition in (0, 1):
                produce(kafka, daemon.source, [poison(partition)], partition=partition)
            daemon.start()
            why = ready_but_for_one(daemon)
            letters = read_until(kafka, daemon.dead, lambda found: len(found) >= 1, "the other partition's dead letter", 60)

            assert [letter.value for letter in letters] == [poison(1)]
            assert "changelog offset" in why
            assert daemon.stop() == 0

    def test_a_changelog_that_would_lose_state_is_refused_with_the_command_that_repairs_it(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path, changelog={"cleanup.policy": "delete"}) as daemon:
            assert daemon.process.wait(60) == 1

        last = daemon.log().splitlines()[-1]
        assert daemon.changelog in last
        assert "kafka-configs.sh" in last
        assert "cleanup.policy=compact" in last
        assert "Traceback" not in daemon.log()

    def test_more_partitions_of_the_input_are_refused_until_somebody_has_decided(self, kafka: str, tmp_path: Path) -> None:
        """Series have moved to other partitions: what was learned of them lies where it will not be looked for."""
        admin = AdminClient({"bootstrap.servers": kafka})
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10)])
            daemon.until_committed(10)
            assert daemon.stop() == 0
            admin.create_partitions([NewPartitions(daemon.source, 2)])[daemon.source].result(20)
            daemon.start()
            assert daemon.process.wait(60) == 1
            assert "anomalyd state restart" in daemon.log().splitlines()[-1]

            admin.create_partitions([NewPartitions(daemon.changelog, 2)])[daemon.changelog].result(20)
            daemon.start()
            assert "anomalyd state restart" in ready_but_for_one(daemon)
            assert "Traceback" not in daemon.log()


def expire(kafka: str, topic: str, before: int, partition: int = 0) -> None:
    """Removes the oldest records of a partition, as retention does."""
    admin = AdminClient({"bootstrap.servers": kafka})
    (deleted,) = admin.delete_records([TopicPartition(topic, partition, before)]).values()
    deleted.result(20)


def make_anew(kafka: str, topic: str) -> None:
    """A topic of the same name, with nothing in it."""
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.delete_topics([topic])[topic].result(20)
    poll_until(lambda: topic not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topic(kafka, topic)


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

    @pytest.mark.timeout(240)  # each claim throws the other one out, and on a busy machine that goes on for a while
    def test_two_instances_with_one_instance_id_are_told_so_or_take_turns_but_never_crash(self, kafka: str, tmp_path: Path) -> None:
        with (
            Daemon(kafka, tmp_path, kafka={"group_instance_id": "one"}) as first,
            Daemon(kafka, tmp_path, source=first.source, group=first.group, kafka={"group_instance_id": "one"}) as second,
        ):
            produce(kafka, first.source, [poison(n) for n in range(10)])
            read_until(kafka, first.dead, lambda found: every_poison(found, 10), "every dead letter", 180)

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
            assert daemon.until_committed(4).position == 4  # behind two records and two markers

            daemon.until_metric("anomalyd_records_consumed_total", 1)
            assert daemon.stop() == 0
        assert [letter.value for letter in read_committed(kafka, daemon.dead)] == [poison(1)]

    def test_expired_records_are_passed_over_loudly(self, kafka: str, tmp_path: Path) -> None:
        with Daemon(kafka, tmp_path) as daemon:
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10)])
            daemon.until_read(10)
            daemon.stop()
            produce(kafka, daemon.source, [sample("a", i, 1.0) for i in range(10, 40)])
            expire(kafka, daemon.source, 25)
            daemon.start()
            daemon.until_read(15)

            daemon.until_metric("anomalyd_records_lost_total", 15)
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

            letters = read_until(kafka, daemon.dead, lambda found: every_poison(found, 200), "every dead letter", 90)
            daemon.until_ready()
            assert len(letters) == 200
            daemon.until_metric('anomalyd_fences_total{why="claim"}', 1)  # nothing had to be restored
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
            daemon.until_metric("anomalyd_records_lost_total", 100)
