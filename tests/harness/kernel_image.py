"""A Debian kernel in the cache: downloaded with apt, unpacked without being installed, its modules indexed.

It is the kernel that the machine's own Debian would install, so it fits the machine's tools. A folder in the cache is
named by the package and the hash that Debian's index has of it: after a security update a new one appears, and a
kernel that is there already is used without any connection. Neither unpacking nor indexing needs root.
"""

from __future__ import annotations

import dataclasses
import hashlib
import lzma
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import debian, locks, processes
from tests.harness.errors import CommandError, MissingError
from tests.harness.places import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.harness.progress import Progress

NEWEST = "linux-image-amd64"
"""The package that depends on the newest kernel of the release. The smaller cloud kernel has no 9p filesystem."""
UNUSED = ("sound", *(f"drivers/{name}" for name in ("gpu", "media", "net", "usb", "iio", "staging", "hid", "hwmon")))
"""Drivers of things that a virtual machine does not have: half of the package."""
KEPT = 2
DOWNLOAD_SECONDS = 900


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """A kernel package as the machine's index of Debian names it."""

    name: str
    sha256: str

    @property
    def key(self) -> str:
        """Return what the kernel's folder in the cache is called; it follows from all that decides what lies there."""
        left_out = hashlib.sha256("\n".join(UNUSED).encode()).hexdigest()
        return f"{self.name}-{self.sha256[:12]}-{left_out[:6]}"


@dataclasses.dataclass(frozen=True, slots=True)
class KernelImage:
    """An unpacked kernel."""

    tree: Path
    """Holds `boot` and `lib/modules`, as the root of a filesystem does."""

    @property
    def release(self) -> str:
        """Return what `uname -r` says under it.

        Raises:
            MissingError: the tree holds no kernel.
        """
        found = sorted((self.tree / "boot").glob("vmlinuz-*"))
        if not found:
            raise MissingError(f"no kernel lies in {self.tree / 'boot'}")
        return found[0].name.removeprefix("vmlinuz-")

    @property
    def program(self) -> Path:
        """Return the file that the machine boots."""
        return self.tree / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """Return what belongs at /lib/modules."""
        return self.tree / "lib" / "modules"

    def insertions(self, names: Sequence[str]) -> list[Path]:
        """Return the files to insert, in this order, so that all the named modules are loaded.

        Raises:
            CommandError: there is no such module.
        """
        argv = ["modprobe", f"--dirname={self.tree}", f"--set-version={self.release}", "--show-depends"]
        environment = os.environ | {"PATH": debian.SEARCHED}
        listed = [processes.run([*argv, name], environment=environment).stdout for name in names]
        return insertion_order("".join(listed))


def ensure(*, progress: Progress) -> KernelImage:
    """Return the newest kernel that this machine's Debian knows of, downloaded where the cache does not have it.

    Two processes never download at once. A killed one leaves a temporary folder that the next one removes; the final
    folder appears by one rename.

    Raises:
        MissingError: apt knows of no kernel.
        CommandError: the download failed.
    """
    if platform.machine() != "x86_64":
        raise MissingError(f"the virtual machine is made for x86_64, and this machine is {platform.machine()}")
    place = cache_dir() / "kernels"
    package = _newest()
    if package is not None and (place / package.key).exists():
        (place / package.key).touch()
        return KernelImage(place / package.key)
    with locks.hold(place / ".lock", wait=True):
        for left_over in place.glob(".making-*"):
            shutil.rmtree(left_over)
        debian.update_index()
        package = _newest()
        if package is None:
            raise MissingError(f"apt knows of no package {NEWEST}: run `apt-get update` as root, on Debian")
        target = place / package.key
        if not target.exists():
            with progress.step(f"downloading {package.name}", usually="20 s"):
                _make(package, target)
            _prune(place)
    return KernelImage(target)


def insertion_order(listed: str) -> list[Path]:
    """Return the module files of what `modprobe --show-depends` printed for several modules, each once, in order."""
    files = re.findall(r"^insmod (.+?\.ko(?:\.\w+)?)(?:\s|$)", listed, re.MULTILINE)
    return [Path(file) for file in dict.fromkeys(files)]


def module_content(file: Path) -> bytes:
    """Return the bytes of a module; newer kernels ship them packed, which the smallest insmod does not read.

    Raises:
        MissingError: it is packed in a way that Python does not know.
    """
    content = file.read_bytes()
    if file.suffix == ".ko":
        return content
    if file.suffix == ".xz":
        return lzma.decompress(content)
    raise MissingError(f"{file} is packed in an unknown way: .ko and .ko.xz can be read")


def parse_newest(depends: str) -> str | None:
    """Return the kernel package that `apt-cache depends` names for the package of the newest one."""
    found = re.search(r"^\s*Depends: (linux-image-\d\S*)", depends, re.MULTILINE)
    return None if found is None else found[1]


def parse_package(shown: str) -> Package | None:
    """Return the package that `apt-cache show` describes."""
    fields = dict(re.findall(r"^(Package|SHA256): (\S+)", shown, re.MULTILINE))
    return Package(fields["Package"], fields["SHA256"]) if len(fields) == len(("Package", "SHA256")) else None


def _newest() -> Package | None:
    name = parse_newest(_apt_cache("depends", NEWEST))
    return None if name is None else parse_package(_apt_cache("show", "--no-all-versions", name))


def _apt_cache(*arguments: str) -> str:
    if shutil.which("apt-cache") is None:
        raise MissingError("there is no apt-get here to download a kernel with: it needs Debian")
    return processes.run(["apt-cache", *arguments], check=False, environment=os.environ | {"LC_ALL": "C"}).stdout


def _make(package: Package, target: Path) -> None:
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=target.parent))
    made.chmod(0o755)
    processes.run(["apt-get", "download", "-q", package.name], cwd=made, seconds=DOWNLOAD_SECONDS)
    archive = next(made.glob("*.deb"), None)
    if archive is None:
        raise CommandError(f"`apt-get download {package.name}` left no package in {made}")
    processes.run(["dpkg-deb", "--extract", archive, made], seconds=DOWNLOAD_SECONDS)
    archive.unlink()
    if not (made / "lib").exists():
        (made / "lib").symlink_to("usr/lib")
    for folder in _unused(made):
        shutil.rmtree(folder)
    image = KernelImage(made)
    processes.run(["depmod", f"--basedir={made}", image.release], environment=os.environ | {"PATH": debian.SEARCHED})
    made.rename(target)


def _unused(tree: Path) -> Iterator[Path]:
    for name in UNUSED:
        yield from (tree / "lib" / "modules").glob(f"*/kernel/{name}")
    yield from tree.glob("usr/share/doc")


def _prune(place: Path) -> None:
    """Remove all kernels but those that were used last."""
    trees = sorted(place.glob("linux-image-*"), key=lambda tree: tree.stat().st_mtime, reverse=True)
    for old in trees[KEPT:]:
        shutil.rmtree(old)
