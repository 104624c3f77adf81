"""The places where chaos tests end the process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anomalyd import crashpoints
from anomalyd.errors import ConfigError

PROGRAM = """
from anomalyd import crashpoints
crashpoints.arm({where!r})
for place in {visited!r}:
    print(place, flush=True)
    crashpoints.reached(place)
"""


@pytest.mark.parametrize(
    ("where", "visited", "survived"),
    [
        (None, ["begin", "sent"], True),
        ("sent", ["begin", "sent", "begin"], False),
        ("begin:3", ["begin", "sent", "begin"], True),
        ("begin:2", ["begin", "sent", "begin"], False),
    ],
)
def test_a_process_ends_at_the_armed_place_and_nowhere_else(where: str | None, visited: list[str], survived: bool) -> None:
    program = PROGRAM.format(where=where, visited=[*visited, "replay"])

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)

    assert done.returncode == (0 if survived else -signal.SIGKILL), done.stderr
    assert done.stdout.split() == ([*visited, "replay"] if survived else visited[: 2 if where == "sent" else 3])


@pytest.mark.parametrize("where", ["nowhere", "begin:soon", "", ":1"])
def test_an_unknown_place_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match=r"ANOMALYD_CRASH_AT: got .*valid are begin, sent"):
        crashpoints.arm(where)


def test_the_environment_arms_the_daemon_and_is_no_setting() -> None:
    command = [sys.executable, "-m", "anomalyd", "run"]
    settings = {
        "ANOMALYD_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "ANOMALYD_STREAMS": '[{"name": "hosts", "topics": ["metrics"], "format": "plain-json"}]',
    }

    environment = os.environ | settings | {"ANOMALYD_CRASH_AT": "nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "ANOMALYD_CRASH_AT" in done.stderr


def test_every_place_exists() -> None:
    package = Path(crashpoints.__file__).parent
    reached = {name for file in package.rglob("*.py") for name in re.findall(r'reached\("([^"]*)"\)', file.read_text())}

    assert reached == set(crashpoints.NAMES)
