"""Compiled code: what its cache promises."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from anomalyd.jit import njit

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


FACTORY = """
from anomalyd.jit import njit

def build(constant):
    @njit
    def inner(x: int) -> int:
        return x * constant

    @njit
    def outer(x: int) -> int:
        return inner(x) + constant

    return outer

first, second = build({first}), build({second})
print(first(1), second(1))
"""


def test_kernels_of_one_factory_do_not_meet_in_the_linker(tmp_path: Path) -> None:
    """Machine code of two processes, in which either kernel was the first, comes together in a third."""
    for first, second in ((2, 3), (3, 2), (2, 3), (3, 2)):
        (tmp_path / "program.py").write_text(FACTORY.format(first=first, second=second))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "NUMBA_CACHE_DIR": str(tmp_path)}
        ran = subprocess.run([sys.executable, str(tmp_path / "program.py")], env=environment, capture_output=True, text=True, check=True)
        assert ran.stdout.split() == [str(2 * first), str(2 * second)]


def test_kernels_of_one_factory_have_names_of_their_own() -> None:
    """What the linker goes by."""

    def build(constant: int) -> Any:  # noqa: ANN401 - numba's dispatcher has no type
        @njit
        def kernel(x: int) -> int:
            return x * constant

        return kernel

    names = {kernel.py_func.__qualname__ for kernel in map(build, (2, 3, 2))}

    assert len(names) == 2


def test_kernels_that_are_given_different_kernels_have_names_of_their_own() -> None:
    """Neither of which holds constants that would tell them apart."""

    @njit
    def up(x: int) -> int:
        return x + 1

    @njit
    def down(x: int) -> int:
        return x - 1

    def build(inner: Any) -> Any:  # noqa: ANN401 - numba's dispatcher has no type
        @njit
        def kernel(x: int) -> int:
            return int(inner(x))

        return kernel

    names = {kernel.py_func.__qualname__ for kernel in map(build, (up, down, up))}

    assert len(names) == 2
