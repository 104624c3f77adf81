"""How long a running daemon takes to go over to a model of another shape, what that costs its event loop, and how long the way back takes.

    python benchmarks/champion.py                 a network of 16 units in one layer
    python benchmarks/champion.py --units 50

A load of 1,000 samples a second flows all the time. The first time a shape is met its machine code is compiled by a process beside the
daemon; a second run finds it in the cache. Needs Java 17 and Maven, or --kafka HOST:PORT. Prints one JSON object.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

import numpy as np  # noqa: E402  after the path

from anomalyd.detector import Shape  # noqa: E402
from anomalyd.detector import artifact as artifacts  # noqa: E402
from anomalyd.detector.weights import tensor_shapes  # noqa: E402
from benchmarks.end_to_end import broker  # noqa: E402
from tests.integration.daemon import sample  # noqa: E402
from tests.integration.test_models import BASE, Operated  # noqa: E402
from tests.support.poll import poll_until  # noqa: E402
from tests.support.topics import produce  # noqa: E402

SERIES: Final = 50
LAG: Final = "anomalyd_event_loop_lag_seconds_bucket"


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--units", type=int, default=16)
    options.add_argument("--kafka", metavar="HOST:PORT", help="instead of a broker of its own")
    chosen = options.parse_args()
    with broker(chosen.kafka) as address, tempfile.TemporaryDirectory() as folder:
        figures = measure(address, Path(folder), chosen.units)
    print(json.dumps(figures))


def measure(address: str, folder: Path, units: int) -> dict[str, Any]:
    """Promotes a network with this many units and rolls back; times are in seconds from the moment at which the command was begun."""
    shape = Shape(1, units, 1, 4, joint=False)
    rng = np.random.default_rng(0)
    bound = units**-0.5
    tensors = {name: rng.uniform(-bound, bound, size).astype(np.float32) for name, size in tensor_shapes(shape).items()}
    artifacts.save(replace(BASE, version=f"{units} units", shape=shape, tensors=tensors), folder / "model")
    done = threading.Event()
    with Operated(address, folder) as daemon:
        daemon.until_ready(300)
        feeder = threading.Thread(target=_feed, args=(daemon, done))
        feeder.start()
        try:
            poll_until(lambda: (daemon.metric("anomalyd_samples_scored_total") or 0) > 5_000, "the load", 120)
            before = _lags(daemon)
            command_s, promoted_s = _timed(daemon, 1, "promote", str(folder / "model"))
            after = _lags(daemon)
            rollback_command_s, rolled_back_s = _timed(daemon, 2, "rollback")
        finally:
            done.set()
            feeder.join()
        compiled = daemon.events("model_compiled")
    late = {edge: round(after["+Inf"] - before["+Inf"] - (after[edge] - before[edge])) for edge in after if edge != "+Inf"}
    return {
        "units": units,
        "promote_command_s": command_s,
        "promoted_s": promoted_s,
        "compiled_s": compiled[0]["seconds"] if compiled else None,
        "loop_lags_above": {edge: count for edge, count in late.items() if count},
        "rollback_command_s": rollback_command_s,
        "rolled_back_s": rolled_back_s,
    }


def _feed(daemon: Operated, done: threading.Event) -> None:
    rng, i = np.random.default_rng(1), 0
    while not done.wait(0.05):
        values = 1 + 0.1 * rng.standard_normal(SERIES)
        produce(daemon.bootstrap, daemon.source, [sample(f"host-{k}", i, float(values[k])) for k in range(SERIES)])
        i += 1


def _timed(daemon: Operated, swaps: int, *words: str) -> tuple[float, float]:
    """How long the command took, and how long until the daemon had so many swaps behind it."""
    began_s = time.monotonic()
    daemon.models(*words, "--stream", "hosts")
    command_s = time.monotonic() - began_s
    swapped: Callable[[], bool] = lambda: len(daemon.events("model_swapped")) >= swaps  # noqa: E731  for the type
    poll_until(swapped, "the swap", 600, 0.02)
    return round(command_s, 2), round(time.monotonic() - began_s, 2)


def _lags(daemon: Operated) -> dict[str, float]:
    """How often the event loop was late by no more than so many seconds."""
    lines = [line for line in daemon.get("/metrics")[1].splitlines() if line.startswith(LAG)]
    return {line.split('le="')[1].split('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


if __name__ == "__main__":
    main()
