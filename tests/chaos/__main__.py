"""Faults on real processes and a real Kafka; what is committed must be what an uninterrupted run writes.

    make chaos                                                  everything, about an hour
    python -m tests.chaos --kills 3 --points 0 --moves 1 --zombies 1 --brokers 1 --events 60000 --series 64

Needs Java 17 and Maven. Prints what it does, a table, and one JSON object as the last line; the exit code is 1 where something does not
hold. Logs of all processes, and of what was written where it is wrong, lie in the folder that it names. Ends what it started.
"""

import argparse
import json
import shutil
import signal
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from tests.chaos.guard import guarded
from tests.chaos.harness import Chaos, Plan, Report
from tests.support.kafka import Cluster

LOGS: Final = Path(".cache/chaos")


def main() -> int:
    """Runs it; returns the exit code."""
    chosen = arguments()
    values = vars(chosen)
    plan = Plan(**{field.name: values[field.name] for field in fields(Plan) if field.name in values})
    folder = chosen.logs / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    say(f"{plan}\nlogs: {folder}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is undone, as for Ctrl-C
    with guarded(), Cluster(brokers=3) as cluster:
        report = Chaos(cluster, plan, folder, say).run()
    say(table(report))
    if report.problems:
        say("\n".join(["", "DOES NOT HOLD", *report.problems, *report.comparison.examples, f"logs: {folder}; seed {plan.seed}"]))
    elif not chosen.keep:
        shutil.rmtree(folder)
    say(json.dumps(asdict(report)))
    return 1 if report.problems else 0


def arguments() -> argparse.Namespace:
    """What was asked for."""
    plan = Plan()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=plan.kills, help="SIGKILLs at random moments")
    options.add_argument("--points", type=int, default=plan.points, help="SIGKILLs at each crash point")
    options.add_argument(
        "--point", dest="point_names", nargs="+", default=plan.point_names, metavar="NAME", help="crash points; all of them"
    )
    options.add_argument("--moves", type=int, default=plan.moves, help="instances that join or leave")
    options.add_argument("--zombies", type=int, default=plan.zombies, help="instances that are stopped past their session and go on")
    options.add_argument("--brokers", type=int, default=plan.brokers, help="brokers killed and started again")
    options.add_argument("--swaps", type=int, default=plan.swaps, help="changes to another model")
    options.add_argument("--rollbacks", type=int, default=plan.rollbacks, help="changes back to the model before")
    options.add_argument("--events", type=int, default=plan.events, help="records of input, at least")
    options.add_argument("--rate", type=float, default=plan.rate, help="records a second, while faults go on")
    options.add_argument("--series", type=int, default=plan.series)
    options.add_argument("--partitions", type=int, default=plan.partitions)
    options.add_argument("--seed", type=int, default=plan.seed, help="of input and schedule")
    options.add_argument("--delivery", choices=["exactly-once", "at-least-once"], default=plan.delivery)
    options.add_argument("--patience", dest="patience_s", type=float, default=plan.patience_s, metavar="SECONDS", help="for progress")
    options.add_argument("--logs", type=Path, default=LOGS, metavar="FOLDER")
    options.add_argument("--keep", action="store_true", help="keep the logs of a run that holds")
    return options.parse_args()


def table(report: Report) -> str:
    """The figures, for people."""
    found = report.comparison
    points = ", ".join(f"{name} {times}" for name, times in sorted(report.points.items()))
    rows = {
        "SIGKILLs": f"{report.kills} ({report.killed_at_work} at work, {report.killed_starting} starting, {report.killed_recovering} "
        "recovering)",
        "SIGKILLs at crash points": f"{sum(report.points.values())} ({points}), {report.prepared} more to prepare them",
        "joins and leaves": report.moves,
        "zombies": report.zombies,
        "broker kills": report.brokers,
        "starts, fences, assignments": f"{report.starts}, {report.fences}, {report.rebalances}",
        "swaps, rollbacks": f"{report.swaps}, {report.rollbacks}: {report.models} recorded in partitions",
        "events": f"{report.events:,}",
        "alerts": f"{found.alerts:,}: {found.lost} lost, {found.doubled} doubled, {found.foreign} foreign, {found.changed} changed, "
        f"{found.disordered} disordered",
        "dead letters": f"{found.dead_letters:,}: {found.dead_lost} lost, {found.dead_doubled} doubled, {found.dead_foreign} foreign, "
        f"{found.dead_changed} changed",
        "state equal": {None: "not compared", True: "yes", False: "no"}[report.digest_equal],
        "from a fault to progress": f"median {report.recovery_median_s} s, longest {report.recovery_longest_s} s, of {report.recoveries}",
        "seconds": round(report.seconds),
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def say(text: str) -> None:
    """To stdout, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
