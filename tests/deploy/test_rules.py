"""The rules that ship: well formed, right about what happens, about metrics that exist, and each with a page for whoever it wakes."""

import importlib
import pkgutil
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from anomalyd import telemetry
from anomalyd.cli import app
from anomalyd.telemetry.events import EVENTS
from anomalyd.telemetry.metrics import Declaring
from tests.support.parts import part

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def metric_names() -> set[str]:
    """What scrapes of all processes have, the parts of histograms included."""
    modules = [importlib.import_module(f"anomalyd.telemetry.{module.name}") for module in pkgutil.iter_modules(telemetry.__path__)]
    declaring = {
        found for module in modules for found in vars(module).values() if isinstance(found, type) and issubclass(found, Declaring)
    } - {Declaring}
    names = set[str]()
    for metrics in declaring:
        for metric in metrics().declared:
            names |= {metric.name + suffix for suffix in (("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))}
    return names


def test_rules_are_well_formed() -> None:
    done = subprocess.run([part("promtool"), "check", "rules", str(RULES)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(RULES.parent.glob("*.test.yaml")), ids=lambda path: path.name)
def test_rules_fire_when_they_should_and_not_otherwise(path: Path) -> None:
    command = [part("promtool"), "test", "rules", path.name]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_in_a_test() -> None:
    tests = "".join(path.read_text() for path in RULES.parent.glob("*.test.yaml"))
    fired = set(re.findall(r"alertname=\"(Anomalyd\w+)\"|alertname: (Anomalyd\w+)\n", tests))
    assert {rule["alert"] for rule in rules() if "alert" in rule} == {first or second for first, second in fired}


def test_rules_are_about_metrics_and_rules_that_exist() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = {name for rule in rules() for name in re.findall(r"[a-z_]*:?anomalyd_[a-z0-9_:]+", str(rule["expr"]))}
    assert named - recorded - metric_names() == set()


def test_alerts_say_how_bad_it_is_and_where_the_runbook_is() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"critical", "warning"}
            assert {"summary", "description"} < rule["annotations"].keys()
            assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    pages = {path.stem for path in RUNBOOKS.glob("*.md")} - {"README"}
    assert pages == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_runbooks_speak_of_what_there_is(path: Path) -> None:
    text = path.read_text("utf-8")
    code = re.findall(r"`([^`]+)`", text)
    recorded = {rule["record"] for rule in rules() if "record" in rule}

    named = {name for piece in code for name in re.findall(r"[a-z_]*:?anomalyd_[a-z0-9_:]+", piece)}
    assert named - recorded - metric_names() == set()
    commands = [match for piece in code if (match := re.match(r"anomalyd ((?:[a-z]+ ?)+)", " ".join(piece.split())))]
    assert [match[0] for match in commands if not _is_command(match[1].split())] == []
    assert [match.string for match in commands if _lacks(match.string, match[1].split())] == []
    assert {event for event in re.findall(r"`(\w+)` in (?:the|its|the retrainer's) log", text) if event not in EVENTS} == set()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (path.parent / target).exists()] == []


def _lacks(text: str, words: list[str]) -> bool:
    """Whether a command is written without an option that it needs, or without the configuration that it takes."""
    command: Any = typer.main.get_command(app)
    for word in words:
        command = command.commands[word] if word in getattr(command, "commands", {}) else command
    given = set(text.split())
    wanted = [option for option in command.params if option.opts[0].startswith("-") and (option.required or "-c" in option.opts)]
    return "--help" not in given and any(given.isdisjoint(option.opts) for option in wanted)


def _is_command(words: list[str]) -> bool:
    group: Any = typer.main.get_command(app)
    for word in words:
        group = getattr(group, "commands", {}).get(word)
    return group is not None
