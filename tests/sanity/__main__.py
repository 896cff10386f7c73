"""`python -m tests.sanity`: one line for each backend and mode; what failed, and why, follows on standard error."""

from __future__ import annotations

import os
import sys

from tests.harness.errors import HarnessError
from tests.sanity.suite import MODES, binary, run


def main() -> int:
    """Run every mode and return 0 when nothing failed and nothing was left behind."""
    suite = binary()
    if suite is None or os.geteuid() != 0:
        reason = "csi-sanity is not built: run `make setup`" if suite is None else "mounting needs root"
        sys.stderr.write(f"csi-sanity cannot run: {reason}\n")
        return 2
    good = True
    for mode in MODES:
        if not mode.offered:
            sys.stdout.write(f"csi-sanity, {mode.name}: not in this release\n")
            continue
        try:
            outcome = run(mode, suite)
        except HarnessError as error:
            sys.stdout.write(f"csi-sanity, {mode.name}: not run\n")
            sys.stderr.write(f"{error}\n")
            good = False
            continue
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        for line in (*outcome.failed, *(f"left behind: {what}" for what in outcome.left), *outcome.surprises):
            sys.stderr.write(f"  {line}\n")
        good = good and outcome.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
