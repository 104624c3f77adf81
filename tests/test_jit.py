"""Compiled code: what its cache promises."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from anomalyd.jit import njit

FACTOR = {factor}

@njit(forceinline=True)
def twice(x: int) -> int:
    return FACTOR * x

@njit
def kernel(x: int) -> int:
    return twice(x) + 1

print(kernel(5), sum(kernel.stats.cache_hits.values()))
"""


def run(folder: Path, factor: int = 2, **environment: str) -> list[int]:
    """[result, how often the machine code came from the cache]."""
    program = folder / "program.py"
    if not program.exists() or program.read_text() != PROGRAM.format(factor=factor):
        program.write_text(PROGRAM.format(factor=factor))
    known = {name: value for name, value in os.environ.items() if name not in {"HOME", "NUMBA_CACHE_DIR"}}
    root = str(Path(__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, str(program)],
        env={**known, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert ran.stderr == ""
    return [int(word) for word in ran.stdout.split()]


def test_machine_code_is_kept_and_renewed_with_the_source(tmp_path: Path) -> None:
    assert run(tmp_path) == [11, 0]
    assert run(tmp_path) == [11, 1]
    assert run(tmp_path, factor=3) == [16, 0]


def test_the_named_folder_comes_first(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    run(tmp_path / "sources", NUMBA_CACHE_DIR=str(tmp_path / "cache"))

    assert list((tmp_path / "cache").rglob("*.nbi"))
    assert not (tmp_path / "sources" / "__pycache__").exists()
