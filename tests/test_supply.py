"""What ships is known: its bill of materials names all of it, and the audit says whether it looked."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SOUND = {"name": "a", "version": "1", "vulns": []}
FLAWED = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("found", "errors", "code", "said"),
    [
        ([SOUND, SOUND], "", 0, "2 locked versions, no known vulnerability"),
        ([SOUND, FLAWED, UNKNOWN], "", 1, "b 2: PYSEC-1, repaired in 3"),
        ([SOUND, UNKNOWN], "", 1, "1 of 2 versions could not be looked up: c"),
        ([UNKNOWN, UNKNOWN], "", 0, "NOT AUDITED"),
        (None, "requests.exceptions.ConnectionError: no route", 0, "NOT AUDITED"),
        (None, "ERROR: no such option", 1, "pip-audit failed"),
    ],
)
def test_an_audit_that_did_not_look_says_so(found: list[dict[str, Any]] | None, errors: str, code: int, said: str) -> None:
    got = audit().verdict(None if found is None else {"dependencies": found}, errors)

    assert got[0] == code
    assert said in got[1]


def test_the_bill_of_materials_names_all_that_ships(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    command = [
        sys.executable,
        "-m",
        "cyclonedx_py",
        "requirements",
        str(ROOT / "requirements.lock"),
        "--pyproject",
        str(ROOT / "pyproject.toml"),
    ]
    subprocess.run([*command, "--of", "JSON", "--no-validate", "-o", str(out)], check=True, capture_output=True, timeout=100)

    bill = json.loads(out.read_text())
    locked = set(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    assert {(part["name"], part["version"]) for part in bill["components"]} == locked
    assert bill["metadata"]["component"]["name"] == "anomalyd"
