"""Measures the guard's streams by `anomalyd evaluate`, and holds the figures against the recorded limits."""

import json
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from unittest.mock import patch

from anomalyd.evaluation import evaluate
from anomalyd.training.joint import PLAN, fit_joint
from tests.evaluation.guard import streams

FLOORS = Path(__file__).with_name("floors.json")
COMMAND = "python -m tests.evaluation.guard --write"
STEPS = 150
"""Of the joint model's training, half of the usual: enough to notice that it got worse."""
ROOM = {
    "single": {"vus_pr": 0.02, "auc_pr": 0.02, "event_recall": 0.03, "false_episodes_to_budget": 0.3},
    "entities": {"auc_pr": 0.06, "hit_rate_150": 0.1},
}
"""How much worse than recorded a measure may get, since processors round differently. A training that rounds differently ends up somewhere
else, like one with another seed: the room of entities is twice the standard deviation over seeds, or one of ten causes."""
SMALLER_IS_BETTER = {"false_episodes_to_budget"}

Figures = dict[str, dict[str, float]]
"""By set and measure."""
Limits = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By set and measure: `measured`, and `least` or `most`."""


def measure(folder: Path) -> Figures:
    """Figures of each set by name of the measure; the sets are written below `folder`."""
    found = {}
    for name, write in (("single", streams.single), ("entities", streams.entities)):
        (folder / name).mkdir()
        write(folder / name)
        told = _evaluated(folder / name)
        found[name] = {measure: told[measure] for measure in ROOM[name]}
    return found


def limits() -> Limits:
    """As recorded."""
    recorded: Limits = json.loads(FLOORS.read_text())["limits"]
    return recorded


def record(figures: Figures) -> None:
    """Writes the limits anew, from these figures."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, measures in figures.items():
        for measure, value in measures.items():
            room = ROOM[name][measure]
            limit = {"most": round(value + room, 4)} if measure in SMALLER_IS_BETTER else {"least": round(value - room, 4)}
            found.setdefault(name, {})[measure] = {"measured": value} | limit
    FLOORS.write_text(json.dumps({"measured_by": COMMAND, "limits": found}, indent=2) + "\n")


def held(figures: Figures, recorded: Limits) -> tuple[bool, str]:
    """Whether all limits are kept, and a table of figures beside them."""
    lines = list(_compared(figures, recorded))
    return not any(line.endswith("BROKEN") for line in lines), "\n".join(lines)


def _compared(figures: Figures, recorded: Limits) -> Iterator[str]:
    for name, measures in recorded.items():
        for measure, limit in measures.items():
            value = figures[name][measure]
            kept = value <= limit["most"] if "most" in limit else value >= limit["least"]
            side, edge = ("at most", limit["most"]) if "most" in limit else ("at least", limit["least"])
            verdict = "" if kept else "  BROKEN"
            yield f"{name:<10} {measure:<26} {value:.4f}, {side} {edge:.4f} (recorded {limit['measured']:.4f}){verdict}"


def _evaluated(folder: Path) -> dict[str, float]:
    import torch

    said, threads = StringIO(), torch.get_num_threads()
    torch.set_num_threads(1)  # how sums are cut among threads would show in the weights
    with patch("anomalyd.training.joint.fit_joint", partial(fit_joint, plan=replace(PLAN, steps=STEPS))), redirect_stdout(said):
        evaluate.run("folder", folder, None, json_output=True, shared=True)
    torch.set_num_threads(threads)
    measures: dict[str, float] = json.loads(said.getvalue().splitlines()[-1])["measures"]
    return measures
