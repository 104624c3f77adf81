"""An instance of the daemon whose every start has a log of its own, and that can be ended in more ways."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.integration.daemon import Daemon
from tests.support.poll import poll_until


class Instance(Daemon):
    """A member of a group that exists already; `create_topics` makes what it writes to.

    Args:
        bootstrap: the brokers.
        folder: for its configuration and logs.
        name: beginning of their names, and its name in the group if it is a static member.
        source: the input topic.
        group: the consumer group.
        static: whether its membership outlives its process.
        session_timeout_ms: of the group.
        settings: more of them.
    """

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        name: str,
        *,
        source: str,
        group: str,
        static: bool = False,
        session_timeout_ms: int = 6_000,
        settings: dict[str, Any] | None = None,
    ) -> None:
        kafka = {"session_timeout_ms": session_timeout_ms} | ({"group_instance_id": name} if static else {})
        super().__init__(bootstrap, folder, source=source, group=group, make_topics=False, kafka=kafka, settings=settings)
        self.name = name
        self.starts = 0
        self.ended_itself: list[str] = []
        """What processes said at last that ended without being asked to."""
        self._folder = folder
        self._may_end = True

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Runs another command with the instance's configuration."""
        arguments = [sys.executable, "-m", "anomalyd", *words, "-c", str(self.config)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)

    def create_topics(self) -> None:
        """`anomalyd topics create`."""
        done = self.command("topics", "create")
        assert done.returncode == 0, f"topics create: {done.stdout}{done.stderr}"

    def start(self, **environment: str) -> Self:
        """Starts the next process."""
        assert not self.running, f"{self.name} runs"
        self.starts += 1
        self._log = self._folder / f"{self.name}-{self.starts:03}.log"
        self._may_end = False
        super().start(**environment)
        return self

    @property
    def running(self) -> bool:
        """Whether its process lives; one that is stopped by SIGSTOP does."""
        return self._process is not None and self._process.poll() is None

    def may_end(self) -> None:
        """From here on it is no finding if the process ends."""
        self._may_end = True

    def fell(self) -> bool:
        """Whether the process ended without being asked to; told once."""
        if self._process is None or self.running or self._may_end:
            return False
        self._may_end = True
        self.ended_itself.append(f"{self.name}, start {self.starts}, exit code {self.process.returncode}: {self.log()[-500:]}")
        return True

    def kill(self) -> None:
        """SIGKILL."""
        self.fell()
        self.may_end()
        super().kill()

    def stop(self, timeout_s: float = 60.0) -> int:
        """SIGTERM; returns the exit code, which has to be 0."""
        self.fell()
        self.may_end()
        code = super().stop(timeout_s)
        if code != 0:
            self.ended_itself.append(f"{self.name}, start {self.starts}, exit code {code} after SIGTERM: {self.log()[-500:]}")
        return code

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and does not know."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def scored(self) -> float:
        """Samples that this process has scored."""
        return self.metric("anomalyd_samples_scored_total") or 0.0

    def until_working(self, patience_s: float) -> None:
        """Waits until the process that runs has scored something."""
        poll_until(lambda: self._alive() and self.scored() > 0, f"{self.name} to score something", patience_s, 0.1)
