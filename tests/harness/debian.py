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


def missing_packages() -> list[str]:
    """Return the Debian packages whose programs this machine lacks."""
    lacking = [package for name, package in PROGRAMS.items() if shutil.which(name, path=SEARCHED) is None]
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
    packages = missing_packages()
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
