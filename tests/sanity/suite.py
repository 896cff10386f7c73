"""csi-sanity, the conformance suite of the CSI project, against a real driver process on a unix socket.

Each run has a driver, a pool and a kubelet directory of its own on a real disk, and ends with a look at what is left:
a suite that passed and left a mount, a loop device or a volume behind has not passed.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from xml.etree import ElementTree as ET

from moorage_csi import contract
from moorage_csi.host import qgroups
from tests.harness import debian, loops, processes
from tests.harness.binaries import program
from tests.harness.errors import HarnessError
from tests.harness.places import run_dir
from tests.harness.plugin import Plugin
from tests.sanity.skips import surprises

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VOLUME_BYTES: Final = 384 * 2**20
"""Large enough for every filesystem's minimum (xfs: 300 MiB)."""

POOL_BYTES: Final = 32 * 2**30
"""Of a pool's own filesystem, in a sparse file: room for all volumes that the suite has at a time."""

DISK_IMAGE: Final = "disk.img"
SUITE_SECONDS: Final = 600.0
MNT_DETACH: Final = 2

MAKE: Final = {
    "xfs": ("mkfs.xfs", "-q", "-f", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
"""How the filesystem of a pool is made."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One kind of volume for the suite to make: class parameters, and whether it is mounted or a device.

    ``pool`` is the filesystem of the pool's own; where it is empty, the pool lies where the run's other files do.
    """

    name: str
    parameters: Mapping[str, str]
    access: str = "mount"
    pool: str = ""

    @property
    def offered(self) -> bool:
        """Whether this release has the backend."""
        return self.parameters["backend"] in contract.BACKENDS


MODES: Final = (
    Mode(name="image, ext4", parameters={"backend": "image", "csi.storage.k8s.io/fstype": "ext4"}),
    Mode(name="image, xfs", parameters={"backend": "image", "csi.storage.k8s.io/fstype": "xfs"}),
    Mode(name="image, block", parameters={"backend": "image"}, access="block"),
    Mode(
        name="image, ext4, on xfs",
        parameters={"backend": "image", "csi.storage.k8s.io/fstype": "ext4"},
        pool="xfs",
    ),
    Mode(name="image, block, on xfs", parameters={"backend": "image"}, access="block", pool="xfs"),
    Mode(name="directory, best-effort", parameters={"backend": "directory", "quota": "best-effort"}),
    Mode(
        name="directory, best-effort, on xfs",
        parameters={"backend": "directory", "quota": "best-effort"},
        pool="xfs",
    ),
    Mode(name="btrfs", parameters={"backend": "btrfs"}, pool="btrfs"),
    Mode(name="layered", parameters={"backend": "layered"}),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the suite said, and what was left behind. ``skips`` are the suite's reasons, with how many tests have each."""

    mode: Mode
    passed: int
    failed: tuple[str, ...]
    skips: Mapping[str, int]
    left: tuple[str, ...]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether something was tested, nothing failed, nothing was left behind and no test was skipped unexpectedly."""
        return self.passed > 0 and not (self.failed or self.left or self.surprises)

    @property
    def surprises(self) -> tuple[str, ...]:
        """What was skipped, or was not, against what is expected."""
        return tuple(surprises(self.skips))

    @property
    def skipped(self) -> int:
        """How many tests were skipped."""
        return sum(self.skips.values())

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"csi-sanity, {self.mode.name}: {self.passed} passed, {len(self.failed)} failed, {self.skipped} skipped, "
            f"{len(self.left)} left behind ({self.seconds:.0f} s)"
        )


def binary() -> Path | None:
    """Return the built csi-sanity: $MOORAGE_CSI_SANITY, else the one in the cache; None where neither is there."""
    chosen = os.environ.get("MOORAGE_CSI_SANITY")
    if chosen:
        return Path(chosen) if Path(chosen).is_file() else None
    with contextlib.suppress(HarnessError):
        return program("csi-sanity")
    return None


def run(mode: Mode, suite: Path) -> Outcome:
    """Run the suite in one mode.

    Raises:
        HarnessError: the driver did not start, or the suite wrote no report.
    """
    with _place() as place:
        _make_disk(mode, place)
        started = time.monotonic()
        pool = {"name": "default", "path": str(place / "disk" / "pool")}
        with Plugin(place, [pool], "--log-level=debug") as driver:
            report = _suite(mode, suite, place, driver.log)
        left = tuple(_left_behind(place))
        seconds = time.monotonic() - started
    cases = [case for case in report.iter("testcase") if case.get("status") is not None]
    return Outcome(
        mode=mode,
        passed=sum(case.get("status") == "passed" for case in cases),
        failed=tuple(_failure(case) for case in cases if case.get("status") not in {"passed", "skipped", "pending"}),
        skips=collections.Counter(_skip(case) for case in cases if case.get("status") in {"skipped", "pending"}),
        left=left,
        seconds=seconds,
    )


def _failure(case: ET.Element) -> str:
    what = case.find("failure") if case.find("failure") is not None else case.find("error")
    text = (what.get("message", "") if what is not None else "").strip()
    # A status is printed over twenty lines, of which one says what the driver answered.
    said = [line.strip() for line in text.splitlines() if "rpc error:" in line] or text.splitlines()[:3]
    return f"{case.get('name')}: {' / '.join(dict.fromkeys(said))}"


def _skip(case: ET.Element) -> str:
    what = case.find("skipped")
    return (what.get("message", "") if what is not None else "").removeprefix("skipped - ")


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder on a real disk, with a name short enough for a socket; whatever is mounted in it goes with it."""
    run_dir().mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="sanity-", dir=run_dir()))
    try:
        yield place
    finally:
        for target in _mounts_below(place):
            ctypes.CDLL(None).umount2(os.fsencode(target), MNT_DETACH)
        loops.detach_below(place)
        shutil.rmtree(place, ignore_errors=True)


def _make_disk(mode: Mode, place: Path) -> None:
    """Make the pool's own filesystem, where the mode has one, and mount it below the pool."""
    disk = place / "disk"
    disk.mkdir()
    if not mode.pool:
        return
    image = place / DISK_IMAGE
    with image.open("wb") as file:
        file.truncate(POOL_BYTES)
    environment = os.environ | {"PATH": debian.SEARCHED}
    processes.run([*MAKE[mode.pool], image], environment=environment)
    processes.run(["mount", "-o", "loop", image, disk], environment=environment)
    if mode.pool == "btrfs":
        _have_counted(disk)


def _have_counted(disk: Path) -> None:
    """Have a btrfs count, so that it can hold the size of a subvolume."""
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECTORY)
    try:
        qgroups.enable(fd, pause=lambda: time.sleep(0.05))
    finally:
        os.close(fd)


def _suite(mode: Mode, suite: Path, place: Path, log: Path) -> ET.Element:
    parameters = place / "parameters.yaml"
    parameters.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in mode.parameters.items()))
    mutable = place / "mutable.yaml"
    mutable.write_text("onDelete: retain\n")
    report = place / "report.xml"
    argv: Sequence[str | Path] = [
        suite,
        f"-csi.endpoint=unix://{place}/csi.sock",
        f"-csi.mountdir={place}/kubelet/mount",
        f"-csi.stagingdir={place}/kubelet/staging",
        f"-csi.testvolumesize={VOLUME_BYTES}",
        f"-csi.testvolumeexpandsize={2 * VOLUME_BYTES}",
        f"-csi.testvolumeparameters={parameters}",
        f"-csi.testvolumemutableparameters={mutable}",
        f"-csi.testvolumeaccesstype={mode.access}",
        f"-ginkgo.junit-report={report}",
        "-ginkgo.no-color",
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SUITE_SECONDS, check=False)
    if not report.exists():
        raise HarnessError(
            f"csi-sanity ended with {done.returncode} and no report:\n{done.stdout[-2000:]}{done.stderr[-2000:]}\n"
            f"the driver said:\n{log.read_text()[-2000:]}"
        )
    return ET.parse(report).getroot()  # noqa: S314 - written by the suite that we ran


def _left_behind(place: Path) -> Iterator[str]:
    """Name what should be gone after the suite deleted all that it made."""
    yield from (f"mount {target}" for target in _mounts_below(place) if target != str(place / "disk"))
    # Looked for by name first: detaching is the cleaning's business, not this one's.
    yield from (f"loop device {device} of {file}" for device, file in _loops_below(place))
    yield from (f"volume {entry.name}" for entry in _entries(place / "disk" / "pool" / "volumes"))
    yield from (f"snapshot {entry.name}" for entry in _entries(place / "disk" / "pool" / "snapshots"))
    yield from (f"half-made {entry.name}" for entry in _entries(place / "disk" / "pool" / "making"))
    yield from (f"target {entry}" for entry in _entries(place / "kubelet"))
    if (place / "csi.sock").exists():
        yield "the driver's socket"


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _loops_below(place: Path) -> Iterator[tuple[str, str]]:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = entry.read_text().strip()
            if file.startswith(f"{place}/") and file != str(place / DISK_IMAGE):
                yield entry.parts[3], file


def _mounts_below(place: Path) -> list[str]:
    """Return the mount points below a folder, the last mounted first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [target for line in reversed(lines) if (target := line.split(" ")[4]).startswith(f"{place}/")]
