"""`python -m tests.simulation`: many seeds, or one again.

--seeds 2000 --base 7       seeds 7, 8, … on all cores; the first failure is told with its last events
--seed 41                   this one, with everything that happened
"""

import argparse
import os
import sys

from tests.simulation.campaign import Campaign, base_seed, show


def main() -> int:
    if os.environ.get("PYTHONHASHSEED") != "0":
        # Sets of names are iterated over in the client: a run replays only under the same order.
        os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], os.environ | {"PYTHONHASHSEED": "0"})
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=2_000, help="how many")
    parser.add_argument("--base", type=int, default=None, help="the first; default: from the commit")
    parser.add_argument("--seed", type=int, default=None, help="only this one, with all its events")
    parser.add_argument("--events", type=int, default=4_000, help="how many of them")
    parser.add_argument("--processes", type=int, default=None)
    given = parser.parse_args()
    if given.seed is not None:
        report = Campaign.one(given.seed)
        sys.stdout.write(show(report, given.events) + "\n")
        return int(report.failure is not None)
    campaign = Campaign(base_seed() if given.base is None else given.base, given.seeds, given.processes)
    campaign.run(progress=lambda text: print(text, flush=True))  # noqa: T201  the result of a command
    sys.stdout.write(campaign.summary() + "\n")
    return int(bool(campaign.failures))


if __name__ == "__main__":
    sys.exit(main())
