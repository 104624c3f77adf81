"""Every command of the tutorial, in its order, in one shell: what it promises is there at the end."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from anomalyd.detector import artifact as artifacts

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

COMMAND = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
if sys.argv[1] in ("train", "tune"):
    # Fewer calm series for the threshold, fewer generated ones to learn from: the steps are the same, and take seconds.
    from anomalyd.training import course, pretrain
    pretrain.CALM_SERIES, course.GENERATED_SERIES = (64, 1000), 8
from anomalyd.cli import main
main()
"""
PYTHON = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} "$@"\n'


def script(port: int) -> str:
    """All commands; trainings cut short, and the daemon's server at a port that is free."""
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 8
    text = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n" + "".join(blocks)
    text, shortened = re.subn(r"--(final-)?steps \d+", r"--\1steps 20", text)
    assert shortened >= 2
    return text.replace("localhost:9464", f"127.0.0.1:{port}")


@pytest.mark.slow
@pytest.mark.broker
@pytest.mark.timeout(600)
def test_the_tutorial_leads_from_a_csv_to_alerts(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "bin").mkdir()
    for name, content in (("anomalyd", COMMAND), ("python", PYTHON)):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANOMALYD_HTTP__PORT": str(port)}
    environment["PATH"] = f"{tmp_path / 'bin'}:{environment['PATH']}"

    (tmp_path / "tutorial.sh").write_text(script(port))
    command = ["bash", "tutorial.sh"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=580, check=False)

    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, told
    model, tuned = (artifacts.load(tmp_path / "shop" / name) for name in ("model", "tuned"))
    assert (model.shape.units, model.shape.layers, model.shape.features) == (50, 2, 1)
    assert tuned.training["tuning"]["trials"] == 3
    assert "orders is anomalous" in done.stdout or 'orders{shop="main"} is anomalous' in done.stdout
    assert "(model trained)" in done.stdout
    for page in ("shipped.html", "trained.html", "model/report.html", "tuned/report.html"):
        assert "<svg" in (tmp_path / "shop" / page).read_text("utf-8"), page
