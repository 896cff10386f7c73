"""What of the machine itself a cluster needs: programs that a distribution packages, installed where that is possible.

Only what is missing is installed, found out by looking for the files and not by asking a package manager, so that
other distributions work too and are told what to install.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.errors import CommandError, MissingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.harness.progress import Progress

SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "runc": "runc",
    "busybox": "busybox-static",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
}
"""The Debian package of each program."""
VIRTUAL_MACHINE = {
    "qemu-system-x86_64": "qemu-system-x86",
    "modprobe": "kmod",
    "mkfs.vfat": "dosfstools",
    "cryptsetup": "cryptsetup-bin",
    **{name: PROGRAMS[name] for name in ("setpriv", "mount", "ip", "busybox", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs")},
}
"""The same for a kernel in a virtual machine and all of its tests, which only those install who start one."""


def missing_packages() -> list[str]:
    """Return the Debian packages whose programs this machine lacks."""
    lacking = _packages_of_missing(PROGRAMS)
    if not Path("/usr/lib/cni/bridge").exists():
        lacking.append("containernetworking-plugins")
    if importlib.util.find_spec("ensurepip") is None:
        lacking.append("python3-venv")
    return sorted(set(lacking))


def install(*, progress: Progress) -> None:
    """Install what is missing, with apt as root.

    Raises:
        MissingError: it cannot be installed from here; the text names the packages and the command.
        CommandError: apt failed.
    """
    _install(missing_packages(), progress=progress)


def install_for_virtual_machine(*, progress: Progress) -> None:
    """Install what of a virtual machine's needs is missing, with apt as root.

    Raises:
        MissingError: it cannot be installed from here; the text names the packages and the command.
        CommandError: apt failed.
    """
    _install(sorted(set(_packages_of_missing(VIRTUAL_MACHINE))), progress=progress)


def update_index() -> None:
    """Let apt learn of new versions, where we may.

    Raises:
        CommandError: apt failed.
    """
    if os.geteuid() == 0 and shutil.which("apt-get") is not None:
        _apt(["update", "-q"])


def _packages_of_missing(programs: Mapping[str, str]) -> list[str]:
    return [package for name, package in programs.items() if shutil.which(name, path=SEARCHED) is None]


def _install(packages: Sequence[str], *, progress: Progress) -> None:
    if not packages:
        progress.say("system packages: all there")
        return
    command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise MissingError(
            f"missing, under Debian's names: {' '.join(packages)}. There is no apt-get here to install them with"
        )
    if os.geteuid() != 0:
        raise MissingError(f"missing: {' '.join(packages)}. Install them with: sudo {command}")
    with progress.step(f"installing {' '.join(packages)}", usually="1 min"):
        _apt(["update", "-q"])
        _apt(command.split()[1:])


def _apt(arguments: list[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    argv = ["apt-get", *arguments]
    done = subprocess.run(argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CommandError(f"`{' '.join(argv)}` failed with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
