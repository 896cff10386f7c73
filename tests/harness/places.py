"""Where the harness keeps things: the checkout, the cache that outlives it, and the state of what runs.

Binaries and images are expensive and depend only on pinned inputs, so they lie in a cache outside the checkout, where
a fresh clone finds them. The state of running clusters lies on a real disk (never a tmpfs: volumes are made in it).
"""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def cache_dir() -> Path:
    """Return the folder for what can be made again: $MOORAGE_CACHE, else `moorage` under the XDG cache."""
    chosen = os.environ.get("MOORAGE_CACHE")
    if chosen:
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "moorage"


def run_dir() -> Path:
    """Return the folder for the state of what runs: $MOORAGE_RUN, else a folder of this user's under /var/tmp."""
    chosen = os.environ.get("MOORAGE_RUN")
    return Path(chosen).resolve() if chosen else Path("/var/tmp") / f"moorage-{os.getuid()}"  # noqa: S108


def clusters_dir() -> Path:
    """Return the folder that holds one folder for each cluster, by name."""
    return run_dir() / "clusters"
