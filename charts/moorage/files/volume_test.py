# ruff: noqa: INP001 - a script that the chart carries, no module of a package
"""What `helm test` runs in a pod: is the mounted volume a volume, and does it keep what is written?

Each step prints its own line, so that the last line names the layer that failed. That the pod runs at all shows
that the claim was bound and the volume mounted.
"""

import os
import re
import sys
from pathlib import Path

UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
PATTERN = b"moorage " * 8192


def size_in_bytes(quantity: str) -> int:
    """Read a whole Kubernetes quantity such as ``64Mi``."""
    found = re.fullmatch(r"(\d+)([A-Za-z]*)", quantity)
    if found is None or found[2] not in UNITS:
        raise SystemExit(f"FAILED the size {quantity!r} is not a whole quantity like 64Mi or 1Gi")
    return int(found[1]) * UNITS[found[2]]


def check_mounted(volume: Path) -> str:
    """Something is mounted here: without a volume the path would be a folder of the container."""
    if not os.path.ismount(volume):
        raise OSError(f"{volume} is a plain folder of the container, nothing is mounted there")
    return f"mounted at {volume}"


def check_kept(volume: Path) -> str:
    """Write, flush to the disk, read back by a new descriptor, remove."""
    file = volume / "moorage-test"
    with file.open("wb") as written:
        written.write(PATTERN)
        written.flush()
        os.fsync(written.fileno())
    if file.read_bytes() != PATTERN:
        raise OSError(f"{file} does not hold the bytes written to it")
    file.unlink()
    return f"{len(PATTERN)} bytes written, flushed and read back"


def check_size(volume: Path, *, wanted: int, quota: str) -> str:
    """The filesystem's size, which is the claim's where the kernel holds it."""
    stat = os.statvfs(volume)
    total = stat.f_blocks * stat.f_frsize
    if quota == "required" and not 0.7 * wanted <= total <= 1.1 * wanted:
        raise OSError(f"the class promises {wanted} bytes, the filesystem has {total}")
    held = "as asked for" if quota == "required" else f"not held by the kernel, as the class says: quota {quota}"
    return f"{wanted} bytes asked for, filesystem of {total} bytes ({held})"


def main(volume: Path, class_name: str, size: str, quota: str) -> None:
    """Run the steps in order; the first that fails ends the pod with its name."""
    wanted = size_in_bytes(size)
    steps = {
        "mount": lambda: check_mounted(volume),
        "write": lambda: check_kept(volume),
        "size": lambda: check_size(volume, wanted=wanted, quota=quota),
    }
    for layer, step in steps.items():
        try:
            print(f"class {class_name}: {layer}: ok: {step()}", flush=True)  # noqa: T201 - the pod's log is what helm shows
        except OSError as error:
            raise SystemExit(f"class {class_name}: {layer}: FAILED: {error}") from error


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
