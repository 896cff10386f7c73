"""The upstream programs a cluster is made of: which, at what version, and how they are built into the cache.

Each group is a Go module under `toolchain/` that pins one project and all it needs by hash. A group is built into a
folder named by its version and by a hash of its pins and flags, so that a changed pin builds anew beside the old one
and a fresh clone finds what another one built. Only the standard library is used: this runs before any set-up.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.errors import CommandError, MissingError
from tests.harness.places import cache_dir
from tests.harness.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterable

TOOLCHAIN = Path(__file__).resolve().parent / "toolchain"


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Programs of one upstream project, built together from one pinned Go module."""

    name: str
    module: str
    """The module whose required version names the folder."""
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    """What the built files are called, in the order of the packages."""
    usually: str
    """How long a cold build takes on two cores, for the person who waits."""
    version_flag: str = ""
    """The Go variable that has to hold the version, else the program reports v0.0.0."""
    folder: str = ""
    """What the folder in the cache is called, where not like the group."""

    @property
    def source(self) -> Path:
        """Return the folder of the Go module that pins this group."""
        return TOOLCHAIN / self.name

    @property
    def version(self) -> str:
        """Return the pinned version, without its `v`."""
        text = (self.source / "go.mod").read_text()
        found = re.search(rf"^(?:require )?\s*{re.escape(self.module)} v(\S+)", text, re.MULTILINE)
        if found is None:
            raise MissingError(f"{self.source / 'go.mod'} requires no version of {self.module}")
        return found[1]

    @property
    def linker_flags(self) -> str:
        """Return what the linker is told: no symbols, and the version where the program wants it."""
        if not self.version_flag:
            return "-s -w"
        major, minor = self.version.split(".")[:2]
        stamps = {"gitVersion": f"v{self.version}", "gitMajor": major, "gitMinor": minor}
        return "-s -w " + " ".join(f"-X {self.version_flag}.{name}={value}" for name, value in stamps.items())

    @property
    def directory(self) -> Path:
        """Return the folder in the cache; it exists exactly when the whole group is built."""
        digest = hashlib.sha256(self.linker_flags.encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.source / name).read_bytes())
        digest.update("\n".join(self.packages).encode())
        return cache_dir() / "bin" / f"{self.folder or self.name}-{self.version}-{digest.hexdigest()[:12]}"

    @property
    def built(self) -> bool:
        """Tell whether the whole group lies in the cache."""
        return all((self.directory / program).is_file() for program in self.programs)


GROUPS = (
    Group(
        name="etcd",
        module="go.etcd.io/etcd/server/v3",
        packages=("go.etcd.io/etcd/server/v3",),
        programs=("etcd",),
        usually="25 s",
    ),
    Group(
        name="containerd",
        module="github.com/containerd/containerd/v2",
        packages=tuple(
            f"github.com/containerd/containerd/v2/cmd/{name}"
            for name in ("containerd", "containerd-shim-runc-v2", "ctr")
        ),
        programs=("containerd", "containerd-shim-runc-v2", "ctr"),
        usually="40 s to 2 min",
    ),
    Group(
        name="sanity",
        folder="csi-sanity",
        module="github.com/kubernetes-csi/csi-test/v5",
        packages=("github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",),
        programs=("csi-sanity",),
        usually="10 s",
    ),
    Group(
        name="helm",
        module="helm.sh/helm/v3",
        packages=("helm.sh/helm/v3/cmd/helm",),
        programs=("helm",),
        usually="1 to 2 min",
    ),
    Group(
        name="kubernetes",
        module="k8s.io/kubernetes",
        packages=tuple(
            f"k8s.io/kubernetes/cmd/{name}"
            for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl")
        ),
        programs=("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kubectl"),
        usually="5 to 10 min",
        version_flag="k8s.io/component-base/version",
    ),
)


def program(name: str) -> Path:
    """Return where a built program lies.

    Raises:
        MissingError: it is not built yet; the text names the command that builds it.
    """
    for group in GROUPS:
        if name in group.programs:
            if not group.built:
                raise MissingError(f"{name} {group.version} is not built yet: run `make setup`")
            return group.directory / name
    raise MissingError(f"no group of the toolchain has a program {name!r}")


def build_all(names: Iterable[str] = (), *, progress: Progress) -> None:
    """Build the named groups, or all of them, that are not in the cache yet.

    A lock file keeps two runs from building at once: the second waits, then finds everything there. A run that is
    killed leaves a temporary folder that the next one removes; the final folder appears by one rename.

    Raises:
        MissingError: there is no Go.
        CommandError: a build failed.
    """
    wanted = set(names)
    missing = [group for group in GROUPS if not group.built and (not wanted or group.name in wanted)]
    if not missing:
        progress.say("binaries: all there")
        return
    if shutil.which("go") is None:
        raise MissingError(
            "the Go compiler is missing: install Go 1.26 or newer from https://go.dev/dl and put its bin on PATH"
        )
    place = cache_dir() / "bin"
    place.mkdir(parents=True, exist_ok=True)
    with (place / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f"binaries: another run is building into {place}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in place.glob(".building-*"):
            shutil.rmtree(left_over)
        for number, group in enumerate(missing, start=1):
            if not group.built:
                text = f"building {group.name} {group.version}, {number} of {len(missing)}"
                with progress.step(text, usually=group.usually):
                    _build(group, place)


def _build(group: Group, place: Path) -> None:
    output = Path(tempfile.mkdtemp(prefix=".building-", dir=place))
    output.chmod(0o755)
    argv = ["go", "build", "-trimpath", "-buildvcs=false", "-ldflags", group.linker_flags, "-o", f"{output}/"]
    environment = os.environ | {"CGO_ENABLED": "0"}
    done = subprocess.run(
        [*argv, *group.packages], cwd=group.source, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode != 0:
        shutil.rmtree(output)
        raise CommandError(
            f"building {group.name} failed with exit code {done.returncode}; its messages stand above.\n"
            f"The same by hand: cd {group.source} && CGO_ENABLED=0 {' '.join([*argv[:-2], *group.packages])}"
        )
    for package, name in zip(group.packages, group.programs, strict=True):
        built = _file_name(package)
        if built != name:
            (output / built).rename(output / name)
    if group.directory.exists():
        shutil.rmtree(group.directory)
    output.rename(group.directory)


def _file_name(package: str) -> str:
    """Return what `go build` calls the program of a package: its last element that is not a major version."""
    parts = [part for part in package.split("/") if not re.fullmatch(r"v\d+", part)]
    return parts[-1]


def main() -> int:
    """Build everything; the command `python3 -m tests.harness.binaries`."""
    build_all(sys.argv[1:], progress=Progress())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
