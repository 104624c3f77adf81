"""How well the demo's incidents are detected, without Kafka and its clock: the same fleet, shard and judge, several seeds, days in seconds.

    python benchmarks/fleet.py --seeds 5 --days 2 --budget 0.1 --json

With several budgets it shows what sensitivity costs. Forty-five seconds of `anomalyd demo` are 2.3 simulated days.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from anomalyd.batch import Source
from anomalyd.demo.board import epoch_ms
from anomalyd.demo.fleet import BLOCK, DAY, DEMONSTRATED, KINDS, START_MS, STEP_MS, Fleet, Kind
from anomalyd.demo.judge import Episode, Judgement, judge
from anomalyd.detector import Detector, Options, SampleBatch
from anomalyd.formats import make_decoder
from anomalyd.shard import Shard, StreamPlan


def judged(detector: Detector, series: int, seed: int, days: float, kinds: Sequence[Kind]) -> Judgement:
    """One fleet through one shard."""
    fleet = Fleet(series, seed, kinds)
    shard = Shard(StreamPlan("fleet"), Source("fleet", 0), detector, make_decoder("telegraf-json"), series)
    identities = [(key.partition("{")[0], {"host": key.split('"')[1]}) for key in fleet.keys]
    rows = np.array([shard.index.row(*identity) for identity in identities], np.int32)
    episodes = []
    blocks = max(1, round(days * DAY / BLOCK))
    for _ in range(blocks):
        block = fleet.block()
        ticks = len(block)
        record = np.repeat(np.arange(ticks, dtype=np.int32), series)
        batch = SampleBatch(np.tile(rows, ticks), np.repeat(block.time_ms, series), block.value.reshape(-1, 1), record)
        messages = [alert.message.alert for alert in shard.advance(batch, np.arange(ticks)).alerts]
        episodes += [Episode(m.series.key, epoch_ms(m.event_time)) for m in messages if m.status == "firing"]
    ticks = blocks * BLOCK
    return judge(fleet.incidents, episodes, series=series, ticks=ticks, until_ms=START_MS + (ticks - 1) * STEP_MS)


def measure(budget: float, series: int, seeds: int, days: float, injected: Sequence[Kind]) -> dict[str, Any]:
    """All seeds at one budget."""
    detector = Detector.load(device="cpu", options=Options(budget_per_day=budget))
    judgements = [judged(detector, series, seed, days, injected) for seed in range(seeds)]
    findings = [finding for judgement in judgements for finding in judgement.findings]
    delays = [finding.delay for finding in findings if finding.delay is not None]
    kinds = {kind: [sum(j.by_kind().get(kind, (0, 0))[part] for j in judgements) for part in (0, 1)] for kind in KINDS}
    series_days = sum(judgement.series_days for judgement in judgements)
    false = [episode for judgement in judgements for episode in judgement.false]
    return {
        "budget_per_day": budget,
        "injected": len(findings),
        "detected": len(delays),
        "detected_share": round(len(delays) / max(1, len(findings)), 3),
        "false_per_10_series_days": round(10 * len(false) / series_days, 3),
        "median_delay_samples": float(np.median(delays)) if delays else None,
        "by_seed": [f"{judgement.detected}/{len(judgement.findings)}, {len(judgement.false)} false" for judgement in judgements],
        "by_kind": {kind: f"{detected}/{injected}" for kind, (detected, injected) in kinds.items()},
        "false_by_metric": dict(Counter(episode.key.partition("{")[0] for episode in false).most_common()),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--days", type=float, default=2.25)
    parser.add_argument("--budget", type=float, nargs="+", default=[0.1])
    parser.add_argument("--ramps", action="store_true", help="inject slow ramps too, which the demo leaves out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    kinds = KINDS if arguments.ramps else DEMONSTRATED
    results = [measure(budget, arguments.series, arguments.seeds, arguments.days, kinds) for budget in arguments.budget]
    if arguments.json:
        print(json.dumps(results))
        return
    for result in results:
        print(*(f"{name}: {value}" for name, value in result.items()), "", sep="\n")


if __name__ == "__main__":
    main()
