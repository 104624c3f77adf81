"""Bring all compiled code into memory before the first record: from numba's cache, or by compiling it into the cache.

The daemon does it before it joins its group, so that no batch waits for a compiler. Building the container image runs this module, which
fills the cache that the image ships. A running daemon that is to have a model of another shape runs it, too: in a process that gives way to
all others.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anomalyd.batch import SampleBatch, Source
from anomalyd.detector import Artifact, Calibration, Detector, Layout, Pages, Shape
from anomalyd.detector.assembler import Assembler
from anomalyd.detector.migrate import described, migrated
from anomalyd.detector.weights import tensor_shapes
from anomalyd.formats import make_decoder
from anomalyd.jit import on_compiling
from anomalyd.series import Entities
from anomalyd.shard import Shard, StreamPlan

SERIES: Final = 1100
CAPACITY: Final = 1024
"""Fewer rows than series, so that eviction runs; enough of them that the table of spellings grows."""

SAMPLE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "plain-json": '{{"name":"warm","ts":{ms},"value":0.5,"tags":{{"series":"{series}"}}}}',
        "telegraf-json": '{{"name":"warm","timestamp":{ms},"fields":{{"up":0.5}},"tags":{{"series":"{series}"}}}}',
        "influx": "warm,series={series} up=0.5 {ms}000000",
    }
)
"""A record of each wire format."""


class _Record(NamedTuple):
    value: bytes
    offset: int
    timestamp: int
    key: bytes | None = None


def warm_up(detector: Detector, formats: Iterable[str] = SAMPLE, *, several: bool | None = None) -> None:
    """Run a thousand samples in each of the `formats`, by default all, through throw-away shards, and a row through the swap rule.

    Args:
        detector: whose step is needed.
        formats: which decoders are.
        several: samples are assembled from single values; None: not by this detector, but somebody else may do so.
    """
    if several is None:
        several_pages = Pages(Layout(replace(detector.layout.shape, features=2)), 1)
        one: NDArray[np.int32] = np.zeros(1, np.int32)
        list(Assembler(several_pages).samples(SampleBatch(one, np.zeros(1, np.int64), np.zeros((1, 1)), one, one)))
    entities = Entities(["warm", "warm.up", *(f"warm.{k}" for k in range(2, detector.features))], ["series"], "warm") if several else None
    for name in formats:
        template = SAMPLE[name]
        shard = Shard(StreamPlan("warm-up", entities=entities), Source("warm-up", 0), detector, make_decoder(name), CAPACITY)
        first_ms = 1_700_000_000_000
        # The last ones once more: a value of a later time completes the sample before.
        series = [*range(SERIES), *range(SERIES - 100, SERIES)]
        shard.process([_Record(template.format(ms=first_ms + i, series=k).encode(), i, first_ms + i) for i, k in enumerate(series)])
    # A restore of what another model has learned must not wait for a compiler either: a rebalance would find it late.
    migrated(detector, detector.new_pages(1).buffer, described(detector.layout), same_model=False)


def tell_of_compiling() -> None:
    """Has it said on stderr, once, when this machine has to compile: that takes long, and nothing else is to be seen meanwhile."""
    text = "compiling, once on this machine for a network of this shape: about a minute on a quiet core"
    on_compiling(lambda: print(text, file=sys.stderr, flush=True))  # noqa: T201  of a command


def filler(shape: Shape, format_: str, *, several: bool) -> list[str]:
    """The command that fills the cache for networks of a shape, and what makes samples for them.

    Args:
        shape: of the network, for the features of the stream.
        format_: of its records.
        several: samples are assembled from single values.
    """
    return [sys.executable, "-m", __name__, json.dumps(asdict(shape)), format_, *(["several"] if several else [])]


def main(arguments: Sequence[str]) -> None:
    """Fills the cache: for the model that ships, or as `filler` says."""
    if not arguments:
        warm_up(Detector.load(device="cpu"))
        return
    os.nice(19)
    shape, format_, *several = arguments
    warm_up(Detector(_blank(Shape(**json.loads(shape))), "cpu"), [format_], several=bool(several))


def _blank(shape: Shape) -> Artifact:
    """A network of a shape: its weights have no part in its machine code."""
    tensors = {name: np.zeros(size, np.float32) for name, size in tensor_shapes(shape).items()}
    return Artifact("blank", "0", shape, Calibration(-1.0, 1.0, 1.0), tensors)


if __name__ == "__main__":
    main(sys.argv[1:])
