# ruff: noqa: INP001  a script, not a package
"""Takes the pictures of the README from a real run of the demo: `python docs/pictures.py [--seconds 60]`.

docs/pictures/demo.svg is the live view at its busiest moment, docs/pictures/report.png the head of the report with the first detected
incidents; the second needs chromium.
"""

import argparse
import io
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final
from unittest import mock

from rich.console import Console

from anomalyd.demo import main as demo
from anomalyd.demo import view

PICTURES: Final = Path(__file__).parent / "pictures"
COLUMNS: Final = 132
ROWS: Final = 10
"""Alerts shown."""
SETTLED_S: Final = 30.0
"""Before that the view is mostly empty."""


def main() -> None:
    """Runs the demo once and takes both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    seconds = parser.parse_args().seconds
    PICTURES.mkdir(exist_ok=True)
    moments: list[view.Status] = []
    status = demo._Demo._status  # noqa: SLF001  a script that looks over the demo's shoulder

    def remember(running: Any, rate: float, _: int = 0) -> view.Status:  # noqa: ANN401  private
        moments.append(status(running, rate, ROWS))
        return moments[-1]

    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.html"
        # Off a terminal the demo prints a line every few seconds, from the same status that the live view shows.
        with mock.patch.object(demo._Demo, "_status", remember), mock.patch.object(demo, "_LINE_S", 0.5):  # noqa: SLF001  likewise
            demo.run(seconds=seconds, series=200, json_output=False, kafka=None, report=report, seed=0)
        settled = [moment for moment in moments if moment.elapsed_s >= min(SETTLED_S, seconds / 2)]
        live_view(max(settled, key=lambda moment: moment.firing))
        if chromium := shutil.which("chromium") or shutil.which("google-chrome"):
            detected_incidents(chromium, report)


def live_view(moment: view.Status) -> None:
    """The terminal as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(view.screen(moment, rows=ROWS, width=console.width))
    (PICTURES / "demo.svg").write_text(console.export_svg(title="anomalyd demo", unique_id="demo"), "utf-8")


def detected_incidents(chromium: str, report: Path) -> None:
    """The report's head and its first detected incidents; the sections before them are left out."""
    page = re.sub(r'<section id="\w+">\s*<h2>(?!Detected).*?</section>', "", report.read_text("utf-8"), flags=re.DOTALL)
    report.write_text(page, "utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1100,1000"]
    subprocess.run(
        [*command, f"--screenshot={PICTURES / 'report.png'}", report.as_uri()], check=True, timeout=120, stderr=subprocess.DEVNULL
    )


if __name__ == "__main__":
    main()
