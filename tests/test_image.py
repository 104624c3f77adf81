"""What the container image promises, proved without a container engine: the Dockerfile itself was linted, never built, by these tests."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"

# The shipped model has one feature; this judges several together.
NOT_NEEDED = "anomalyd.detector.step_cpu.build_step.<locals>.joint_evidence"

# Every mount becomes read-only for the command that follows, and for it alone.
READ_ONLY = """
awk '{ print $2 }' /proc/self/mounts | while read -r mount; do mount -o remount,bind,ro "$mount" 2>/dev/null || true; done
exec "$@"
"""

COMPILED_BY_WARM_UP = """
import gc
from numba.core.dispatcher import Dispatcher
from anomalyd.detector import Detector
from anomalyd.warmup import warm_up

warm_up(Detector.load(device="cpu"))
kernels = [found for found in gc.get_objects() if issubclass(type(found), Dispatcher) and found.py_func.__module__.startswith("anomalyd.")]
print(*(f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__}" for kernel in kernels if not kernel.signatures))
"""

FIRST_SCORE = """
import gc, json, sys, time
import numpy as np
from anomalyd.batch import SampleBatch
from anomalyd.detector import Detector

detector = Detector.load(device="cpu")
pages = detector.new_pages(16)
n = 8
batch = SampleBatch(np.arange(n, dtype=np.int32), np.full(n, 1_700_000_000_000), np.ones((n, 1)), np.arange(n, dtype=np.int32))
verdicts = detector.step(pages, batch)
scored = time.process_time()

from numba.core.dispatcher import Dispatcher
from anomalyd.warmup import warm_up

warm_up(detector)
kernels = [found for found in gc.get_objects() if issubclass(type(found), Dispatcher) and found.py_func.__module__.startswith("anomalyd.")]
try:
    open(__import__("anomalyd").__path__[0] + "/probe", "w").close()
    read_only = False
except OSError:
    read_only = True
print(json.dumps({
    "scored": scored,
    "scores": len(verdicts),
    "compiled": [kernel.py_func.__qualname__ for kernel in kernels if sum(kernel.stats.cache_misses.values())],
    "read_only": read_only,
    "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def tree() -> Iterator[Path]:
    """The package alone in a folder of its own, as an image has it, with a cache that warm-up filled."""
    with tempfile.TemporaryDirectory(prefix="anomalyd-image-") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "anomalyd", folder / "anomalyd", ignore=shutil.ignore_patterns("__pycache__"))
        subprocess.run([sys.executable, "-m", "compileall", "-q", folder / "anomalyd"], check=True)
        yield folder


def _environment(tree: Path) -> dict[str, str]:
    """The Dockerfile's environment on this processor, and nothing else: no HOME, no USER."""
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    processor = re.search(rf"AS base-{architecture}\nENV NUMBA_CPU_NAME=(\S+)", DOCKERFILE.read_text())
    assert processor is not None
    return {
        "NUMBA_CACHE_DIR": str(tree / "numba-cache"),
        "NUMBA_CPU_NAME": processor[1],
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(tree),
    }


def _read_only_prefix() -> list[str]:
    prefix = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs mount namespaces (unshare) to make the root read-only")
    return [*prefix, "sh", "-c", READ_ONLY, "sh"]


def test_hadolint_has_no_objection() -> None:
    linted = subprocess.run([Path(sys.executable).with_name("hadolint"), DOCKERFILE], capture_output=True, text=True, check=False)

    assert linted.returncode == 0, linted.stdout


def test_build_context_is_what_the_dockerfile_copies() -> None:
    """A file that the image needs and .dockerignore keeps out would only show in a build."""
    copied = {
        source
        for line in DOCKERFILE.read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }
    admitted = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert copied == admitted
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.slow
@pytest.mark.timeout(580)  # compiles every kernel from nothing, on a machine that may be busy
def test_read_only_root_without_home_scores_within_three_seconds_and_compiles_nothing(tree: Path, tmp_path: Path) -> None:
    """Warm-up fills the cache with every kernel there is; then a start on a read-only root finds all of them. Seconds of a processor."""
    read_only = _read_only_prefix()
    filling = subprocess.run(
        [sys.executable, "-c", COMPILED_BY_WARM_UP],
        env=_environment(tree),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert filling.returncode == 0, filling.stderr
    missed = [kernel for kernel in filling.stdout.split() if not kernel.startswith(NOT_NEEDED)]
    assert missed == [], "kernels that warm-up does not reach"

    starts = []
    for _ in range(3):
        started = subprocess.run(
            [*read_only, sys.executable, "-c", FIRST_SCORE],
            env=_environment(tree),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert started.returncode == 0, started.stderr
        told = json.loads(started.stdout)
        starts.append(told.pop("scored"))
        assert told == {"scores": 8, "compiled": [], "read_only": True, "torch": False}

    # The chart's way to a cache that can be written: a copy is as good.
    subprocess.run(["cp", "--recursive", "--update", f"{tree}/numba-cache/.", tmp_path], check=True)
    copied = subprocess.run(
        [sys.executable, "-c", FIRST_SCORE],
        env=_environment(tree) | {"NUMBA_CACHE_DIR": str(tmp_path)},
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert json.loads(copied.stdout)["compiled"] == []

    # The best of three: what else runs on the machine is not ours.
    assert min(starts) <= 3.0
