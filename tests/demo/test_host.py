import json
import sys
import time

import pytest

from anomalyd.demo.host import Host
from anomalyd.errors import ConfigError


def test_the_host_describes_itself_in_telegraf_records() -> None:
    records = [json.loads(text) for _, text in Host().records()]

    names = {record["name"] for record in records}
    assert {"cpu", "system", "mem"} <= names
    for record in records:
        assert record["tags"]["host"]
        assert abs(record["timestamp"] - time.time()) < 60
        assert record["fields"]
        assert all(isinstance(value, int | float) for value in record["fields"].values())


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)

    with pytest.raises(ConfigError, match=r"pip install 'anomalyd\[demo\]'"):
        Host()
