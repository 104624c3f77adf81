"""`python -m tests.evaluation.guard`: the figures beside their limits; with `--write` they become the recorded ones."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.evaluation.guard.measured import held, limits, measure, record

with TemporaryDirectory() as folder:
    figures = measure(Path(folder))
if "--write" in sys.argv:
    record(figures)
kept, table = held(figures, limits())
sys.stdout.write(f"{table}\n")
sys.exit(not kept)
