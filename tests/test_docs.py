"""Reference pages and configurations say what the code does."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from anomalyd.kafka.access import commands, rights
from anomalyd.settings import load

ROOT = Path(__file__).parent.parent


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["configuration", "metrics"])
def test_reference_page_is_what_the_code_says(page: str) -> None:
    assert (ROOT / "docs" / f"{page}.md").read_text("utf-8") == getattr(generator(), page)(), "run: python docs/generate.py"


def test_rights_in_the_documentation_are_those_that_the_command_prints() -> None:
    path = ROOT / "configs" / "hosts-telegraf.yaml"
    settings = load(path)

    printed = "\n".join(commands(rights(settings), settings.kafka.bootstrap_servers, "User:anomalyd"))

    assert f"```\n{printed}\n```" in (ROOT / "docs" / "security.md").read_text("utf-8"), f"run: anomalyd topics rights -c {path}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text("utf-8"))
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.slow
def test_the_site_builds_and_every_link_and_anchor_leads_somewhere(tmp_path: Path) -> None:
    """As `make docs` does; a page that is in no table of contents is an error, too."""
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "-c", "docs", "-d", str(tmp_path / "trees")]
    built = subprocess.run([*command, ".", str(tmp_path / "site")], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)

    assert (built.returncode, built.stderr) == (0, "")
    assert (tmp_path / "site" / "index.html").exists()
    assert "Detection" in (tmp_path / "site" / "docs" / "index.html").read_text("utf-8")
