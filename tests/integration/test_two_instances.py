"""Two instances against one topic: what they write together is what one would have written, whoever comes and goes."""

from pathlib import Path

import pytest

from tests.chaos.compare import Comparison, compare
from tests.chaos.instance import Instance
from tests.chaos.load import Feeder, Fleet
from tests.support.poll import poll_until
from tests.support.topics import Record, create_topic, read_committed, read_until, unique

PARTITIONS = 8
PATIENCE_S = 90.0

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(400)]


def until_sharing(*shares: tuple[Instance, int]) -> None:
    """Waits until each instance has so many partitions and has scored something from them."""
    before = {instance: instance.scored() for instance, _ in shares}
    for instance, partitions in shares:
        poll_until(
            lambda one=instance, n=partitions: one.metric("anomalyd_assigned_partitions") == n,  # type: ignore[misc]  # bound in its defaults
            f"{partitions} partitions for {instance.name}",
            PATIENCE_S,
            0.05,
        )
        poll_until(lambda one=instance: one.scored() > before[one], f"{instance.name} to score something", PATIENCE_S, 0.05)  # type: ignore[misc]


def until_done(instance: Instance, feeder: Feeder) -> list[Record]:
    """Waits until the last record of every partition has come back as a dead letter; returns all of them."""
    wanted = set(feeder.last.values())
    return read_until(
        instance.bootstrap, instance.dead, lambda found: {r.value for r in found} >= wanted, "the last dead letters", PATIENCE_S
    )


def test_alerts_of_instances_that_come_and_go_are_those_of_one(kafka: str, tmp_path: Path) -> None:
    source, group, fleet = create_topic(kafka, unique("shared"), PARTITIONS), unique("pair"), Fleet(64, PARTITIONS, seed=3)
    settings = {"max_series": fleet.most_series}
    first, second = (Instance(kafka, tmp_path, name, source=source, group=group, settings=settings) for name in ("first", "second"))
    alone = Instance(kafka, tmp_path, "alone", source=source, group=unique("alone"), settings=settings)
    for instance in (first, alone):
        instance.create_topics()
    feeder = Feeder(kafka, source, fleet, rate=1_500, at_least=50_000)
    try:
        with feeder:
            first.start()
            until_sharing((first, PARTITIONS))
            second.start()
            until_sharing((first, PARTITIONS // 2), (second, PARTITIONS // 2))
            first.kill()
            until_sharing((second, PARTITIONS))
            first.start()
            until_sharing((first, PARTITIONS // 2), (second, PARTITIONS // 2))
            feeder.finish()
        dead = until_done(first, feeder)
        assert [first.stop(), second.stop()] == [0, 0]
        alone.start()
        dead_alone = until_done(alone, feeder)
        assert alone.stop() == 0
    finally:
        for instance in (first, second, alone):
            instance.kill()
    alerts = read_committed(kafka, alone.alerts)

    found = compare(alerts, read_committed(kafka, first.alerts), dead_alone, dead, feeder.bad)

    assert found == Comparison(alerts=len(alerts), dead_letters=len(feeder.bad))
    assert len(alerts) > 100
    assert not [instance.ended_itself for instance in (first, second, alone) if instance.ended_itself]
