"""What the driver costs on a node: time of its calls, and memory of its process.

Measured by a program of its own in a mount namespace of its own (`python -m tests.bench.node`), so that mounts and
loop devices of the pools are gone afterwards, whatever becomes of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import Figure
from tests.harness import watching
from tests.harness.errors import HarnessError
from tests.harness.places import ROOT, run_dir

if TYPE_CHECKING:
    from tests.harness.progress import Progress

SECONDS = 1200


def measure(*, files: int, progress: Progress) -> list[Figure]:
    """Run the program, and return its figures; none where this is not root.

    Args:
        files: how many there are in the volume whose figures are asked for.
        progress: told what is being done.

    Raises:
        HarnessError: it failed; with what it said.
    """
    if os.geteuid() != 0:
        progress.say("the driver's figures are left out: mounting needs root")
        return []
    run_dir().mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=run_dir()))
    argv = ["unshare", "--mount", "--", sys.executable, "-m", "tests.bench.node", str(place), str(files)]
    with watching.folder(place), progress.step("measuring the driver", usually="3 min"):
        done = subprocess.run(
            argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False
        )
    if done.returncode:
        raise HarnessError(f"the driver could not be measured: python -m tests.bench.node ended with {done.returncode}")
    return [Figure(**each) for each in json.loads(done.stdout)]
