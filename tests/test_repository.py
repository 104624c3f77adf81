"""Rules about the repository that no linter knows."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match is not None
    return match[0].lower().replace("_", "-")


def _imported() -> set[str]:
    """The distributions that the package imports, at the top of a module or inside a function."""
    modules: set[str] = set()
    for file in (ROOT / "anomalyd").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules.add(node.module.partition(".")[0])
    foreign = modules - sys.stdlib_module_names - {"anomalyd"}
    distributions = packages_distributions()
    return {_name(distributions[module][0]) for module in foreign}


def test_every_dependency_says_why() -> None:
    requirements = re.findall(r'^    "[a-zA-Z0-9._-]+(?:\[[^\]]*\])?[<>=][^"]*",(.*)$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert len(requirements) == len(PROJECT["dependencies"]) + sum(map(len, PROJECT["optional-dependencies"].values()))
    assert [comment for comment in requirements if not re.match(r" # \w", comment)] == []


def test_what_is_declared_is_what_is_imported() -> None:
    """No dependency that nothing uses, and none that is there only because another brings it."""
    extras = PROJECT["optional-dependencies"]
    declared = {_name(requirement) for requirement in [*PROJECT["dependencies"], *extras["demo"], *extras["tuning"]]}

    # Halves of numba and pydantic, in their versions; the standard library reads tzdata.
    assert _imported() - {"llvmlite", "pydantic-core"} == declared - {"tzdata"}


@pytest.mark.parametrize(("lock", "extras"), [("requirements.lock", False), ("requirements-dev.lock", True)])
def test_locks_hold_every_dependency(lock: str, extras: bool) -> None:
    """`make lock` was not forgotten."""
    locked = set(re.findall(r"^([a-z0-9._-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    wanted = [
        *PROJECT["dependencies"],
        *(requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra if extras),
    ]

    assert {_name(requirement) for requirement in wanted} <= locked


def test_image_and_tests_have_the_same_versions() -> None:
    run, tested = (
        dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))
        for lock in ("requirements.lock", "requirements-dev.lock")
    )

    assert run.items() <= tested.items()


def test_the_wheel_carries_the_artifact_the_schema_and_the_type_marker(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=100)

    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    assert names >= {
        "anomalyd/alerts/alert.schema.json",
        "anomalyd/models/pretrained/manifest.json",
        "anomalyd/models/pretrained/model.safetensors",
        "anomalyd/py.typed",
    }
    assert not [name for name in names if not name.startswith(("anomalyd/", "anomalyd-"))]


def test_the_daemon_loads_neither_torch_nor_training_nor_what_only_extras_bring() -> None:
    """Half a gigabyte of memory and seconds of start; import contracts see training, but not what others bring along."""
    heavy = {"torch", "confluent_kafka", "psutil", "anomalyd.training", "anomalyd.demo", "anomalyd.evaluation"}
    program = f"import sys, anomalyd.cli, anomalyd.app; print(*({heavy!r} & sys.modules.keys()))"

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert loaded.stdout.split() == []
