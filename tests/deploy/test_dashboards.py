"""The dashboards that ship are what the generator makes, and are sound by themselves."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
NAMES = ["overview", "detection", "delivery", "model"]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def board(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    return found


def test_dashboards_are_those_of_the_generator() -> None:
    made = generator()

    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(made.DASHBOARDS) == sorted(NAMES)
    for name in made.DASHBOARDS:
        assert (FOLDER / f"{name}.json").read_text("utf-8") == made.render(name), "run: python deploy/grafana/generate.py"


@pytest.mark.parametrize("name", NAMES)
def test_panels_are_numbered_described_and_use_declared_variables(name: str) -> None:
    found = board(name)
    panels = found["panels"]
    graphs = [panel for panel in panels if panel["type"] != "row"]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"] and panel["description"].endswith(".") for panel in graphs)
    assert all(len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0 for panel in graphs)
    declared = {variable["name"] for variable in found["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$(\w+)", json.dumps(panels))) <= declared


def test_dashboards_have_addresses_of_their_own() -> None:
    assert sorted(board(name)["uid"] for name in NAMES) == sorted(f"anomalyd-{name}" for name in NAMES)
