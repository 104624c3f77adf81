"""What retraining gains: trained on the first half in time of real streams, held against the shipped model on the second.

    python benchmarks/retraining.py --data DIR --set nab|kpi [--steps N] [--seeds 3] [--json]

One model is trained for the set, as a round of `anomalyd retrain` does it: on the first half of every stream without its labelled
anomalies, beginning with the shipped weights, a quarter of what it sees being generated series; the gate judges by the newest third of the
first half. Whatever the gate says, both models then run over all of each stream in the production engine, and the measures are
those of `anomalyd evaluate` over the second half. Differences are paired by stream, with intervals bootstrapped over streams.

For sets with several values a stream (smd, asd, jumpstarter), whose files have a train and a test part, the same question is answered by
`anomalyd evaluate SET` (a joint model fitted on train) against `anomalyd evaluate SET --no-fit` (each value by itself, nothing trained).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomalyd.detector import Options
from anomalyd.detector import artifact as artifacts
from anomalyd.detector.detector import shipped
from anomalyd.evaluation.measures.bootstrap import paired
from anomalyd.evaluation.sets import LabelledSet
from anomalyd.retrainer.incidents import Incidents
from anomalyd.retrainer.material import prepare
from anomalyd.retrainer.reservoir import History
from anomalyd.retrainer.rounds import Round, hold

MEASURES = ("vus_pr", "auc_pr", "best_f1", "event_recall", "false_episodes_to_budget")


def halves(name: str, data: Path, folder: Path) -> tuple[list[History], Incidents]:
    """Writes each stream with its first half as train; returns the first halves, and the anomalies in them."""
    labelled, histories, incidents = LabelledSet(name, data), [], Incidents("benchmark")
    for file in labelled.files:
        stream = labelled.read(file)
        half = len(stream.table) // 2
        value, time_ms = stream.table.value, stream.table.time_ms
        at = folder / f"{file.name}.npz"
        at.parent.mkdir(parents=True, exist_ok=True)
        np.savez(at, train=value[:half, 0], test=value[half:, 0], label=stream.label[half:])
        order = np.argsort(time_ms[:half], kind="stable")
        histories.append(History(file.name, time_ms[:half][order], value[:half][order]))
        ends = [(a, time_ms[min(b, half - 1)]) for a, b in stream.windows if a < half]
        incidents.resume([(file.name, a, time_ms[a], end, end) for a, end in ends])
    return histories, incidents


def measured(folder: Path, model: Path) -> dict[str, Any]:
    """`anomalyd evaluate folder` with an artifact."""
    command = [sys.executable, "-m", "anomalyd", "evaluate", "folder", "--data", str(folder), "--model", str(model), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, list[float]]:
    """By measure the mean difference over streams and its interval."""
    found = {}
    for measure in ("vus_pr", "auc_pr", "best_f1"):
        compared = paired([stream.get(measure) for stream in ours["per_stream"]], [stream.get(measure) for stream in theirs["per_stream"]])
        if compared is not None:
            difference = compared.difference
            found[measure] = [round(difference.value, 4), round(difference.low, 4), round(difference.high, 4)]
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", dest="name", choices=("nab", "kpi"), required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    champion = artifacts.load(shipped())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "streams").mkdir()
        histories, incidents = halves(asked.name, asked.data, folder / "streams")
        material = prepare(histories, incidents)
        before = measured(folder / "streams", shipped())
        results: list[dict[str, Any]] = []
        for seed in range(asked.seeds):
            began = time.monotonic()
            found: Round = hold(champion, material, Options(), seed, steps=asked.steps)
            took = time.monotonic() - began
            if found.challenger is None:
                sys.exit(found.verdict.reason)
            artifacts.save(found.challenger, folder / f"model-{seed}")
            after = measured(folder / "streams", folder / f"model-{seed}")
            results.append(
                {
                    "seed": seed,
                    "gate": found.verdict.passed,
                    "reason": found.verdict.reason,
                    "figures": found.verdict.figures,
                    "seconds": round(took, 1),
                    "measures": {m: after["measures"].get(m) for m in MEASURES},
                    "differences": differences(after, before),
                }
            )
    told = {"set": asked.name, "streams": len(histories), "shipped": {m: before["measures"].get(m) for m in MEASURES}, "retrained": results}
    if asked.json:
        print(json.dumps(told))
        return
    print(f"{asked.name}: {len(histories)} streams, second halves")
    print(f"{'':<14}" + "".join(f"{m:>28}" for m in MEASURES))
    print(f"{'shipped':<14}" + "".join(f"{told['shipped'][m]:>28.3f}" for m in MEASURES))
    for one in results:
        cells = []
        for measure in MEASURES:
            difference = one["differences"].get(measure)
            interval = "" if difference is None else f" ({difference[0]:+.3f} [{difference[1]:+.3f}, {difference[2]:+.3f}])"
            cells.append(f"{one['measures'][measure]:.3f}{interval}")
        print(f"{'seed ' + str(one['seed']):<14}" + "".join(f"{cell:>28}" for cell in cells))
        print(f"  gate: {'passed' if one['gate'] else 'rejected'}, {one['reason']}; {one['seconds']:.0f} s")


if __name__ == "__main__":
    main()
