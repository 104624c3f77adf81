"""This host's own metrics as Telegraf would write them."""

from __future__ import annotations

import json
import socket
import time
from typing import TYPE_CHECKING

from anomalyd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Host:
    """Reads processors, load, memory, disks and network interfaces of this machine.

    Raises ConfigError where psutil is not installed.
    """

    def __init__(self) -> None:
        try:
            import psutil  # noqa: PLC0415  an extra: only the demo needs it
        except ImportError:
            raise ConfigError("demo: psutil is not installed; install it with: pip install 'anomalyd[demo]'") from None
        self._psutil = psutil
        self._name = socket.gethostname() or "localhost"
        psutil.cpu_times_percent(percpu=True)  # the first answer covers no time and means nothing

    def records(self) -> list[tuple[str, str]]:
        """What the machine does right now, telegraf-json: (Kafka key, value) of one record a measurement and device."""
        timestamp = int(time.time())
        return [
            (
                self._name,
                json.dumps(
                    {"fields": dict(fields), "name": name, "tags": {"host": self._name, **tags}, "timestamp": timestamp},
                    separators=(",", ":"),
                ),
            )
            for name, tags, fields in self._measurements()
        ]

    def _measurements(self) -> Iterator[tuple[str, Mapping[str, str], Mapping[str, float]]]:
        psutil = self._psutil
        for core, cpu in enumerate(psutil.cpu_times_percent(percpu=True)):
            yield "cpu", {"cpu": f"cpu{core}"}, {"usage_user": cpu.user, "usage_system": cpu.system, "usage_idle": cpu.idle}
        load1, load5, _ = psutil.getloadavg()
        yield "system", {}, {"load1": load1, "load5": load5, "n_processes": len(psutil.pids())}
        memory = psutil.virtual_memory()
        yield "mem", {}, {"used": memory.used, "available": memory.available, "used_percent": memory.percent}
        # Containers may hide disks and interfaces; psutil then has None or nothing to say.
        if disk := psutil.disk_io_counters():
            yield "diskio", {}, {"read_bytes": disk.read_bytes, "write_bytes": disk.write_bytes}
        for interface, net in (psutil.net_io_counters(pernic=True) or {}).items():
            yield "net", {"interface": interface}, {"bytes_recv": net.bytes_recv, "bytes_sent": net.bytes_sent}
