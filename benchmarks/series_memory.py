"""What a series costs in memory, everything counted: growth of the process from n to 2n series.

    python benchmarks/series_memory.py                   from 100,000 to 200,000 series

Runs the engine of one partition on plain records, as the daemon does: decoding, index, state rows, episodes. Prints one JSON object.
"""

import argparse
import gc
import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script of the repository, which is not a package

from anomalyd.batch import Source  # noqa: E402  after the path
from anomalyd.detector import Detector  # noqa: E402
from anomalyd.formats import make_decoder  # noqa: E402
from anomalyd.shard import Shard, StreamPlan  # noqa: E402

START_S: Final = 1_760_000_000
SAMPLES: Final = 3
BATCH: Final = 10_000


class Record(NamedTuple):
    """A record as the consumer hands it over."""

    value: bytes
    offset: int
    timestamp: int = 0
    key: bytes | None = None


def main() -> None:
    """Runs the benchmark."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--series", type=int, default=100_000)
    n = options.parse_args().series
    shard = Shard(StreamPlan("bench"), Source("metrics", 0), Detector.load(device="cpu"), make_decoder("telegraf-json"), 10 * n)
    sizes = []
    for first in (0, n):
        for records in batches(first, n):
            shard.process(records)
        gc.collect()
        sizes.append(resident())
    figures = {"series": shard.series, "rss_mib_at_n": sizes[0] >> 20, "rss_mib_at_2n": sizes[1] >> 20}
    print(json.dumps(figures | {"bytes_per_series": round((sizes[1] - sizes[0]) / n)}))


def batches(first: int, n: int) -> Iterator[list[Record]]:
    """Some samples of n series, names as long as those of real hosts."""
    for i in range(SAMPLES):
        for start in range(first, first + n, BATCH):
            yield [Record(telegraf(one, i), one) for one in range(start, min(start + BATCH, first + n))]


def telegraf(one: int, i: int) -> bytes:
    """A record of one sample."""
    tags = f'{{"host":"host-{one:07d}.example.net"}}'
    return f'{{"fields":{{"value":{one % 97 + i}.0}},"name":"cpu","tags":{tags},"timestamp":{START_S + 10 * i}}}\n'.encode()


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
