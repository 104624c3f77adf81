"""Microseconds a record from bytes to columns with rows, series known, beside a bare msgspec decode of the same records in the same run.

    python benchmarks/decode.py [--series 10000 1000000] [--formats plain-json telegraf-json influx] [--fields 1 5]

Prints a table to stderr and one JSON object to stdout. "first" is the first sight of each series (exact reading, allocation), "decode" what
every later record costs, median of the passes; "baseline" is msgspec into a struct with tags left raw, the records joined to one list, no
lookup of series (JSON formats only).
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from anomalyd.formats import make_decoder
from anomalyd.series import SeriesIndex

BATCH = 5000
START = 1_766_000_000


class Plain(msgspec.Struct, gc=False):
    """A plain-json record."""

    name: str
    ts: int
    value: float
    tags: msgspec.Raw


class Telegraf(msgspec.Struct, gc=False):
    """A telegraf-json record."""

    name: str
    timestamp: int
    fields: dict[str, float]
    tags: msgspec.Raw


BASELINES: dict[str, Callable[[bytes], object]] = {
    "plain-json": msgspec.json.Decoder(list[Plain]).decode,
    "telegraf-json": msgspec.json.Decoder(list[Telegraf]).decode,
}
FIELDS = ("usage_idle", "usage_user", "usage_system", "usage_iowait", "usage_steal", "usage_nice", "usage_irq", "usage_guest")


def record(name: str, s: int, fields: int, value: Callable[[], float]) -> bytes:
    """One record of series s, as the format's usual producer writes it."""
    host, cpu = f"host-{s // 8:06d}.example.net", f"cpu{s % 8}"
    if name == "plain-json":
        tags = {"cpu": cpu, "host": host, "region": "eu-west-1"}
        return json.dumps({"name": "cpu_usage_idle", "ts": START * 1000 + s, "value": value(), "tags": tags}).encode()
    if name == "telegraf-json":
        metric = {"fields": {f: value() for f in FIELDS[:fields]}, "name": "cpu", "tags": {"cpu": cpu, "host": host}, "timestamp": START}
        return json.dumps(metric, separators=(",", ":")).encode() + b"\n"
    return f"cpu,cpu={cpu},host={host} {','.join(f'{f}={value()!r}' for f in FIELDS[:fields])} {START}000000000\n".encode()


def timed(work: Callable[[Sequence[bytes]], object], values: list[bytes]) -> float:
    """Microseconds a record."""
    start = time.perf_counter()
    for i in range(0, len(values), BATCH):
        work(values[i : i + BATCH])
    return (time.perf_counter() - start) / len(values) * 1e6


def measure(name: str, series: int, fields: int, passes: int, digits: int) -> dict[str, object]:
    """All figures of one format."""
    rng = random.Random(7)
    values = [record(name, s, fields, lambda: round(rng.uniform(0, 100), digits)) for s in range(series)]
    rng.shuffle(values)
    index = SeriesIndex(series * fields)
    decoder = make_decoder(name)
    timed(lambda some: decoder.decode(some, lambda _: 0, SeriesIndex(BATCH * fields)), values[:BATCH])  # compiles
    first = timed(lambda some: decoder.decode(some, lambda _: 0, index), values)
    repeats = max(1, 200_000 // series)
    decode = [timed(lambda some: decoder.decode(some, lambda _: 0, index), values * repeats) for _ in range(passes)]
    result: dict[str, object] = {
        "format": name,
        "series": len(index),
        "fields": fields,
        "bytes": round(statistics.mean(map(len, values))),
        "first_us": round(first, 2),
        "decode_us": round(statistics.median(decode), 3),
        "decode_us_min_max": [round(min(decode), 3), round(max(decode), 3)],
        "decode_us_a_sample": round(statistics.median(decode) / fields, 3),
    }
    if name in BASELINES:
        bare = BASELINES[name]
        baseline = [timed(lambda some: bare(b"[" + b",".join(some) + b"]"), values * repeats) for _ in range(passes)]
        result["baseline_us"] = round(statistics.median(baseline), 3)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", default=["plain-json", "telegraf-json", "influx"])
    parser.add_argument("--fields", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--digits", type=int, default=4, help="digits behind the point of the values")
    arguments = parser.parse_args()
    results = []
    for series in arguments.series:
        for name in arguments.formats:
            for fields in arguments.fields:
                if name == "plain-json" and fields > 1:
                    continue
                result = measure(name, max(BATCH, series // fields), fields, arguments.passes, arguments.digits)
                print(*(f"{key}={value}" for key, value in result.items()), file=sys.stderr)
                results.append(result)
    print(json.dumps({"decode": results}))


if __name__ == "__main__":
    main()
