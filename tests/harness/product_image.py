"""The product's image, built from the Containerfile at the root without a registry and without a container engine.

buildah builds it on a base made by debootstrap, which is stored under the name that the Containerfile's FROM uses.
The machine's own settings (apt, pip, the CA certificates) are mounted into the build and are no part of any layer.
The result is a docker-archive in the cache, named by a hash of all that goes in: an unchanged tree builds nothing, a
change of the code does the last seconds anew.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness import locks, processes
from tests.harness.errors import CommandError, MissingError
from tests.harness.places import ROOT, cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.harness.progress import Progress

SUITE = "bookworm"
BASE = "debian:bookworm-slim"
INPUTS = (
    "Containerfile",
    ".dockerignore",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "requirements/build.txt",
    "requirements/image.txt",
    "operator",
    "csi",
)
KEPT_ARCHIVES = 3
KEPT_BUILDS = 30
"""After so many the store is emptied, base included: what of it is still of use cannot be told from outside."""
OVERLAYFS = "overlayfs"
OWN_MOUNTS = ("unshare", "--mount", "--")
CERTIFICATES = Path("/etc/pip-ca.crt")
"""Where the build sees the certificates that pip is told to trust; no package of Debian has a file there."""
APT_SETTINGS = (Path("/etc/apt/apt.conf.d"), Path("/etc/apt/auth.conf.d"))
SLIM = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/cache/apt", "var/lib/apt/lists")
"""What the slim variant of a Debian image leaves out, and what apt downloads again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """A built image: its archive, and the name under which a pod asks for it."""

    archive: Path
    repository: str
    tag: str

    @property
    def name(self) -> str:
        """Return `repository:tag`."""
        return f"{self.repository}:{self.tag}"


def version() -> str:
    """Return the version of the distribution."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if found is None:
        raise MissingError("pyproject.toml has no version")
    return found[1]


def digest_of_inputs() -> str:
    """Return a hash of everything that the image is made of.

    Raises:
        MissingError: a file of it is missing.
    """
    digest = hashlib.sha256()
    for file in _input_files():
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_mode & 0o111:o}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def build(*, progress: Progress) -> Image:
    """Return the image of the checkout as it is now, built where the cache does not have it.

    Two builds never run at once: the second waits and finds the archive. A killed build leaves a partial file that
    nothing reads, and layers that the next one uses.

    Raises:
        MissingError: buildah or debootstrap is missing, or this is not root.
        CommandError: the build failed.
    """
    digest = digest_of_inputs()
    place = cache_dir() / "images"
    image = Image(place / f"moorage-{digest}.tar", "moorage", f"{version()}-{digest}")
    if image.archive.exists():
        image.archive.touch()
        progress.say(f"image {image.name}: in the cache")
        return image
    _demand_tools()
    with locks.hold(place / ".lock", wait=True):
        if not image.archive.exists():
            with progress.step(f"building image {image.name}", usually="1 min, 5 s after a change of the code"):
                _build(image, progress=progress)
                _prune(place)
    return image


def _input_files() -> Iterator[Path]:
    for name in INPUTS:
        path = ROOT / name
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
        elif path.is_file():
            yield path
        else:
            raise MissingError(f"{path} is missing: the image is made of it")


def _demand_tools() -> None:
    lacking = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if lacking:
        raise MissingError(f"{' and '.join(lacking)} missing: apt-get install -y {' '.join(lacking)}")
    if os.geteuid() != 0:
        raise MissingError("building the image without a container engine needs root")


def _build(image: Image, *, progress: Progress) -> None:
    _make_base(progress=progress)
    log = cache_dir() / "build" / "image.log"
    _buildah(
        "build",
        "--isolation=chroot",
        "--network=host",
        "--layers",
        "--pull=never",
        f"--build-arg=BASE=localhost/{BASE}",
        f"--build-arg=VERSION={version()}",
        *(f"--volume={source}:{target}:ro" for source, target in _settings_of_machine()),
        f"--file={ROOT / 'Containerfile'}",
        f"--tag=localhost/{image.name}",
        str(ROOT),
        log=log,
    )
    partial = image.archive.with_suffix(".part")
    partial.unlink(missing_ok=True)
    _buildah(
        "push", "--disable-compression", f"localhost/{image.name}", f"docker-archive:{partial}:{image.name}", log=log
    )
    partial.replace(image.archive)


def _settings_of_machine() -> list[tuple[Path, Path]]:
    """Return what of the machine's settings the build must see, each with the place where it sees it."""
    volumes = [(place, place) for place in APT_SETTINGS if place.exists()]
    pip = _pip_settings()
    if "cert" in pip:
        volumes.append((Path(pip["cert"]), CERTIFICATES))
        pip["cert"] = str(CERTIFICATES)
    links = Path(pip.get("find-links", ""))
    if links.is_absolute() and links.is_dir():
        volumes.append((links, links))
    settings = cache_dir() / "build" / "pip.conf"
    settings.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in pip.items()))
    volumes.append((settings, Path("/etc/pip.conf")))
    return volumes


def _make_base(*, progress: Progress) -> None:
    """Store a minimal Debian under the name of the base image, where the store does not have it."""
    have = processes.run([*_store(), "images", "--format={{.Name}}:{{.Tag}}"], seconds=60).stdout.split()
    if f"localhost/{BASE}" in have:
        return
    work = cache_dir() / "build" / "base"
    log = cache_dir() / "build" / "base.log"
    with progress.step("a minimal Debian as the base", usually="40 s"):
        if work.exists():
            shutil.rmtree(work)
        work.parent.mkdir(parents=True, exist_ok=True)
        argv = [*OWN_MOUNTS, "debootstrap", "--variant=minbase", SUITE, str(work), *_mirror()]
        with log.open("wb") as output:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
        if done.returncode != 0:
            raise CommandError(f"`{' '.join(argv)}` failed with exit code {done.returncode}:\n{processes.tail(log)}")
        for name in SLIM:
            for entry in (work / name).glob("*"):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        container = processes.run([*_store(), "from", "scratch"]).stdout.strip()
        _buildah("add", "--quiet", container, f"{work}", "/", log=log)
        _buildah(
            "config",
            "--cmd=bash",
            "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            container,
            log=log,
        )
        _buildah("commit", "--rm", "--quiet", container, f"localhost/{BASE}", log=log)
        shutil.rmtree(work)


def _mirror() -> list[str]:
    """Return the Debian mirror that this machine uses, nothing where that cannot be told."""
    for file in sorted([Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]):
        if file.is_file():
            found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?) *(\S+/debian/?)(?:\s|$)", file.read_text(), re.MULTILINE)
            if found is not None:
                return [found[1]]
    return []


def _pip_settings() -> dict[str, str]:
    """Return what pip is told on this machine, from all its files and the environment."""
    return parse_pip_settings(processes.run([sys.executable, "-m", "pip", "config", "list"], check=False).stdout)


def parse_pip_settings(listed: str) -> dict[str, str]:
    """Return the settings that `pip config list` shows and that concern an installation; the environment wins."""
    settings: dict[str, str] = {}
    for scope in ("global", "install", ":env:"):
        for line in listed.splitlines():
            found = re.fullmatch(re.escape(scope) + r"\.+([\w-]+)=('.*'|\".*\")", line)
            if found is not None:
                settings[found[1]] = str(ast.literal_eval(found[2]))
    return settings


def _store() -> list[str]:
    """Return buildah with a store of its own in the cache and its mounts in a namespace that ends with it."""
    place = cache_dir() / "build"
    place.mkdir(parents=True, exist_ok=True)
    kind = processes.run(["stat", "--file-system", "--format=%T", place]).stdout.strip()
    driver = "vfs" if kind == OVERLAYFS else "overlay"
    return [
        *OWN_MOUNTS,
        "buildah",
        f"--root={place / 'store'}",
        f"--runroot={place / 'run'}",
        f"--storage-driver={driver}",
    ]


def _buildah(*arguments: str, log: Path) -> None:
    argv: Sequence[str] = [*_store(), *arguments]
    with log.open("ab") as output:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False)
    if done.returncode != 0:
        raise CommandError(f"`{' '.join(argv)}` failed with exit code {done.returncode}:\n{processes.tail(log)}")


def _prune(place: Path) -> None:
    """Remove all archives but the newest few, and a store that has grown."""
    archives = sorted(place.glob("moorage-*.tar"), key=lambda file: file.stat().st_mtime, reverse=True)
    for old in archives[KEPT_ARCHIVES:]:
        old.unlink()
    listed = processes.run([*_store(), "images", "--format={{.Name}}"]).stdout.split()
    if sum(name.endswith("/moorage") for name in listed) > KEPT_BUILDS:
        processes.run([*_store(), "rmi", "--all", "--force"])
