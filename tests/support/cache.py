"""What tests fetch once a machine lies outside of the repository."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def place(name: str) -> Path:
    """Where a fetched folder lies, whether it is there or not."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "anomalyd-tests" / name


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name`; the first time, `fill` puts into it what belongs there.

    It is moved into place whole, so that a broken download leaves nothing behind.
    """
    folder = place(name)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            fresh = Path(scratch, "fresh")
            fresh.mkdir()
            fill(fresh)
            if not folder.is_dir():  # another run may have been faster
                fresh.rename(folder)
    return folder
