"""`make bench`: what Moorage costs, each figure beside its budget, all measured in one run.

The parts, in this order; `--only` picks some of them:

decisions  the pure core, in this process, beside 1,000 to 100,000 volumes
start      memory and start of the operator beside 1,000 and 10,000 bound pairs
prebound   pairs that name each other, in both modes of the binder
static     a burst among thousands of volumes, instead of the in-tree binder, beside the raw floor
driver     calls and memory of the node plugin (needs root)
cluster    bursts on a real cluster with our driver, beside the raw floor (needs root)
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from tests.bench import cluster, decisions, driver, figures, prebound, start, static
from tests.harness.errors import HarnessError
from tests.harness.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.figures import Figure


def main() -> int:
    """Run the parts one after the other, and print a table or JSON.

    Returns:
        0, also where a budget is not held: this tells figures, and a machine that is busy has worse ones. 1 where
        something could not be measured.
    """
    options = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--claims", type=int, default=50, help="claims in each burst on a cluster (default: 50)")
    options.add_argument(
        "--pairs",
        type=int,
        nargs="+",
        default=list(start.COUNTS),
        metavar="N",
        help="bound pairs to start the operator beside (default: 1000 10000; 50000 has a budget too)",
    )
    options.add_argument(
        "--files", type=int, default=100_000, help="files in the volume whose figures are asked for (default: 100000)"
    )
    options.add_argument("--only", action="append", choices=tuple(_PARTS), help="run this part; may be repeated")
    options.add_argument("-o", "--output", choices=("table", "json"), default="table")
    chosen = options.parse_args()
    progress = Progress()
    parts = [run for name, run in _PARTS.items() if name in (chosen.only or _PARTS)]
    try:
        found = [figure for run in parts for figure in run(chosen, progress)]
    except HarnessError as error:
        progress.say(f"failed: {error}")
        return 1
    if chosen.output == "json":
        sys.stdout.write(json.dumps({"figures": [each.as_json() for each in found]}, indent=2) + "\n")
    else:
        sys.stdout.write(figures.table(found))
    return 0


_PARTS: dict[str, Callable[[argparse.Namespace, Progress], list[Figure]]] = {
    "decisions": lambda _, progress: decisions.measure(progress=progress),
    "start": lambda chosen, progress: start.measure(chosen.pairs, progress=progress),
    "prebound": lambda _, progress: prebound.measure(progress=progress),
    "static": lambda _, progress: static.measure(progress=progress),
    "driver": lambda chosen, progress: driver.measure(files=chosen.files, progress=progress),
    "cluster": lambda chosen, progress: cluster.measure(chosen.claims, progress=progress),
}


if __name__ == "__main__":
    sys.exit(main())
