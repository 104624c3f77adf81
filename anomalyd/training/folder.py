"""The folder that an artifact goes to: looked at before hours are spent, and not left behind where nothing came of it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from anomalyd.errors import ConfigError

MANIFEST: Final = "manifest.json"
"""As `detector.artifact` calls it, which takes long to import: this is for the first moment of a command."""
_NAMED: Final = 3


def free(out: Path) -> None:
    """Whether an artifact may go there: a folder with a model or a study in it, an empty one, or none yet. Raises ConfigError."""
    if not out.is_dir():
        if out.exists():
            raise ConfigError(f"--out {out}: is a file, must be a folder")
        return
    names = sorted(path.name for path in out.iterdir())
    others = [name for name in names if not name.startswith("study.")]
    if MANIFEST in names or not others:
        return
    some = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else "")
    raise ConfigError(f"--out {out}: holds other files: {some}; give a new or an empty folder, or one with a model in it")


def writable(out: Path, key: str = "--out") -> None:
    """Makes a folder, before hours are spent for what goes there. Raises ConfigError that names the `key` it was given by."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{key} {out}: {error.strerror or error}") from None


@contextmanager
def made(out: Path) -> Iterator[None]:
    """The folder while the block runs and for good, but for what of it was made here and is empty when the block fails.

    Raises ConfigError: it cannot be written, or is somebody else's.
    """
    new = [folder for folder in (out, *out.parents) if not folder.exists()]  # the deepest first
    free(out)
    try:
        writable(out)
        yield
    except BaseException:
        for folder in new:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise
