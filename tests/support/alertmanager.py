"""Real Alertmanagers on loopback, members of one cluster."""

import json
import socket
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.parts import part
from tests.support.poll import poll_until

_CONFIG = {"route": {"receiver": "nobody", "group_wait": "1s"}, "receivers": [{"name": "nobody"}]}


class Alertmanager:
    """A member.

    Args:
        folder: for its configuration and its data.
        peers: members that are there already.
    """

    def __init__(self, folder: Path, peers: "Sequence[Alertmanager]" = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath("alertmanager.json").write_text(json.dumps(_CONFIG))
        self._log = folder / "alertmanager.log"
        self.port, self.cluster_port = _free(), _free()
        self._command = [
            part("alertmanager"),
            f"--config.file={folder / 'alertmanager.json'}",
            f"--storage.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            f"--cluster.listen-address=127.0.0.1:{self.cluster_port}",
            *(f"--cluster.peer=127.0.0.1:{peer.cluster_port}" for peer in peers),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def start(self) -> Self:
        """Starts it and waits until it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        poll_until(self._answers, f"Alertmanager; its log: {self._log.read_text()[-2000:]}")
        return self

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def alerts(self) -> list[dict[str, Any]]:
        """What is open, by whoever it is silenced."""
        found: list[dict[str, Any]] = json.loads(self._get("/api/v2/alerts"))
        return found

    def silence(self, *matchers: str) -> None:
        """Says with amtool that nobody wants to hear of these alerts for an hour."""
        command = [part("amtool"), f"--alertmanager.url={self.url}", "silence", "add", "--author=test", "--comment=work", "--duration=1h"]
        subprocess.run([*command, *matchers], check=True, stdout=subprocess.DEVNULL)

    def _answers(self) -> bool:
        try:
            self._get("/-/ready")
        except OSError:
            return False
        return True

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=5) as answer:
            read: bytes = answer.read()
            return read


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
