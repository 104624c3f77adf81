"""The short version of `make chaos`: each kind of fault, few of each."""

import pytest

from tests.chaos.guard import guarded
from tests.chaos.harness import Chaos, Plan
from tests.support.kafka import Cluster

POINTS = ("before-commit", "after-commit", "after-fence", "replay", "flush")

SHORT = Plan(
    kills=4,
    points=1,
    point_names=POINTS,
    moves=2,
    zombies=1,
    brokers=1,
    swaps=0,  # the other model's machine code alone takes minutes beside the load; `make chaos` has them
    rollbacks=0,
    events=60_000,
    rate=250,
    series=64,
    session_timeout_ms=4_000,
    patience_s=90,
)


@pytest.mark.slow
@pytest.mark.real_kafka
@pytest.mark.timeout(1200)  # six minutes alone on two cores; beside everything else it has taken ten
def test_what_is_committed_under_faults_is_what_an_uninterrupted_run_commits(
    kafka_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with guarded():
        report = Chaos(kafka_cluster, SHORT, tmp_path_factory.mktemp("chaos"), say=print).run()

    assert report.problems == [], "\n".join([*report.problems, *report.comparison.examples])
    assert report.points == dict.fromkeys(POINTS, 1)
    assert (report.moves >= 2, report.zombies, report.brokers, report.digest_equal) == (True, 1, 1, True)
    assert report.killed_at_work >= 2
    assert report.comparison.alerts > 100
    assert report.comparison.dead_letters > 30
