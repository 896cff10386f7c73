"""`make test`: every suite one after the other, each with its own time, and a machine that is clean afterwards.

The tests run in a mount namespace of their own and in a folder of their own; a watcher outside removes what they leave
(loop devices, files, clusters) also when they are killed.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import TYPE_CHECKING

from tests.harness import processes, product_image, watching
from tests.harness.errors import HarnessError
from tests.harness.places import ROOT, run_dir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.progress import Progress

NO_TESTS = 5
"""What pytest exits with when no test was selected."""


@dataclasses.dataclass(frozen=True, slots=True)
class Suite:
    """A part of the tests, by marker."""

    name: str
    selection: str
    usually: str
    workers: int = 0


SUITES = (
    Suite("unit", "not api and not kernel and not sanity and not cluster", "1 min", workers=2),
    Suite("api", "api and not cluster", "9 min"),
    Suite("kernel", "kernel and not sanity and not cluster", "1 min"),
    Suite("sanity", "sanity", "1 min"),
    Suite("cluster", "cluster", "11 min"),
)


def run(names: Sequence[str], *, progress: Progress) -> int:
    """Run the named suites, or all; a failed one does not keep the next from running.

    Returns:
        The exit code: 0 when every suite passed.

    Raises:
        HarnessError: a name is unknown.
    """
    unknown = set(names) - {suite.name for suite in SUITES}
    if unknown:
        raise HarnessError(f"no suite {', '.join(sorted(unknown))}: {', '.join(suite.name for suite in SUITES)}")
    chosen = [suite for suite in SUITES if not names or suite.name in names]
    outcomes = []
    for suite in chosen:
        if suite.name == "cluster" and os.geteuid() == 0:
            product_image.build(progress=progress)
        progress.say(f"suite {suite.name} (usually {suite.usually})")
        began = time.monotonic()
        code = _run_suite(suite)
        outcomes.append((suite, code, time.monotonic() - began))
    progress.say("suites:")
    for suite, code, seconds in outcomes:
        word = {0: "passed", NO_TESTS: "no tests"}.get(code, f"failed ({code})")
        progress.say(f"  {suite.name:8} {word:12} {seconds:6.1f} s")
    return 0 if all(code in {0, NO_TESTS} for _, code, _ in outcomes) else 1


def sweep() -> None:
    """Remove the folders of test runs whose process is gone; a watcher normally has done that."""
    for folder in (run_dir() / "tests").glob("*-*"):
        if processes.ProcessIdentity.of(int(folder.name.rpartition("-")[2])) is None:
            watching.remove(folder)


def _run_suite(suite: Suite) -> int:
    folder = run_dir() / "tests" / f"{suite.name}-{os.getpid()}"
    folder.mkdir(parents=True)
    argv = [sys.executable, "-m", "pytest", "-m", suite.selection, "--durations=5", "-p", "no:cacheprovider"]
    argv.append(f"--basetemp={folder / 'pytest'}")
    if suite.workers:
        argv.append(f"--numprocesses={suite.workers}")
    # Mounts vanish with the namespace, whatever becomes of the tests.
    isolation = ["unshare", "--mount", "--"] if os.geteuid() == 0 else []
    with watching.folder(folder):
        return processes.run_visibly([*isolation, *argv], cwd=ROOT, environment=os.environ | {"TMPDIR": str(folder)})
