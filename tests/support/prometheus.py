"""A real Prometheus on loopback, with a store in a folder of the test's own."""

import json
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.parts import part
from tests.support.poll import poll_until


class Prometheus:
    """Scrapes and evaluates once a second.

    Args:
        folder: for its configuration and its store.
        targets: port on loopback by the name of the job.
        rules: files of rules.
        receives: takes remote writes.
        alertmanagers: ports on loopback of those that its alerts go to.
    """

    def __init__(
        self, folder: Path, targets: Mapping[str, int], *rules: Path, receives: bool = False, alertmanagers: Sequence[int] = ()
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]} for job, port in targets.items()]
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": jobs,
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{port}" for port in alertmanagers]}]}]},
        }
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath("prometheus.json").write_text(json.dumps(config))
        self._log = folder / "prometheus.log"
        self._command = [
            part("prometheus"),
            f"--config.file={folder / 'prometheus.json'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            *(["--web.enable-remote-write-receiver"] if receives else []),
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        poll_until(self._is_ready, f"Prometheus; its log: {self._log.read_text()[-2000:]}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def query(self, expr: str, at_s: float | None = None) -> list[dict[str, Any]]:
        """What an expression gives, now or at a time: series with `metric` and `value`; a number alone is one without labels."""
        asked = {"query": expr} | ({} if at_s is None else {"time": str(at_s)})
        data = self._get(f"/api/v1/query?{urllib.parse.urlencode(asked)}")["data"]
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else list(data["result"])

    def samples(self, selector: str, start_s: float, end_s: float) -> dict[str, list[tuple[float, float]]]:
        """The samples of each series as they are stored, (time, value), by the series' labels as JSON."""
        found = self.query(f"{selector}[{round(end_s - start_s)}s]", end_s)
        return {json.dumps(one["metric"], sort_keys=True): [(float(at), float(value)) for at, value in one["values"]] for one in found}

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def _get(self, path: str) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{path}: {error.read().decode()}") from None
