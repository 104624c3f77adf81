"""Ends what a chaos run has started, however the run itself ends."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

MARK: Final = "CHAOS_RUN"
"""Environment variable that every process of a run inherits."""


@contextmanager
def guarded() -> Iterator[None]:
    """What is started inside has ended afterwards; also if this process is killed without a chance to see to it."""
    mark = uuid.uuid4().hex
    command = [sys.executable, __file__, mark]
    # Of its own session, so that a Ctrl-C for the run does not reach it; its end of the pipe tells it when nobody is left.
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ[MARK] = mark
    try:
        yield
    finally:
        del os.environ[MARK]
        guard.communicate(timeout=60)


def end_all(mark: str) -> None:
    """SIGKILL for every process with this mark."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
            if f"{MARK}={mark}".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


if __name__ == "__main__":
    sys.stdin.read()
    end_all(sys.argv[1])
