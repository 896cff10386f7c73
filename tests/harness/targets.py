"""Where the demonstration runs: a cluster of the harness, one of kind, or the one of the present kubeconfig."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.harness import processes, product_image
from tests.harness.cluster import Cluster
from tests.harness.errors import HarnessError, MissingError
from tests.harness.places import ROOT, run_dir

if TYPE_CHECKING:
    from tests.harness.progress import Progress

DEMO = "demo"
KIND_CLUSTER = "moorage-demo"


class Target(Protocol):
    """A cluster that the demonstration can be shown on."""

    def start(self) -> Path:
        """Bring the cluster up and return an administrator's kubeconfig."""

    def image(self) -> str:
        """Bring the product's image to every node and return its name."""


class Embedded:
    """A cluster of the harness on this machine; it runs on until `make down`."""

    def __init__(self, *, progress: Progress) -> None:
        self._progress = progress
        self._cluster = Cluster(DEMO, detached=True, progress=progress)

    def start(self) -> Path:
        """Start the cluster anew and return its kubeconfig."""
        return self._cluster.start().kubeconfig

    def image(self) -> str:
        """Build the image where that is needed, import it on the node and return its name."""
        image = product_image.build(progress=self._progress)
        with self._progress.step("importing the image", usually="3 s"):
            self._cluster.load_images(image.archive)
        return image.name


class Kind:
    """A cluster of kind, in Docker; `make down` deletes it."""

    def __init__(self, *, progress: Progress) -> None:
        self._progress = progress

    def start(self) -> Path:
        """Create the cluster where it does not exist and return its kubeconfig.

        Raises:
            MissingError: Docker or kind is missing.
        """
        lacking = [name for name in ("docker", "kind") if shutil.which(name) is None]
        if lacking:
            raise MissingError(
                f"CLUSTER=kind needs {' and '.join(lacking)} on PATH. CLUSTER=embedded, the default, needs neither"
            )
        kubeconfig = kind_kubeconfig()
        kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        if KIND_CLUSTER not in processes.run(["kind", "get", "clusters"]).stdout.split():
            with self._progress.step("kind create cluster", usually="1 min"):
                processes.run(
                    [
                        "kind",
                        "create",
                        "cluster",
                        f"--name={KIND_CLUSTER}",
                        f"--kubeconfig={kubeconfig}",
                        "--wait=120s",
                    ],
                    seconds=600,
                )
        processes.run(["kind", "export", "kubeconfig", f"--name={KIND_CLUSTER}", f"--kubeconfig={kubeconfig}"])
        return kubeconfig

    def image(self) -> str:
        """Build the image with Docker, load it into kind and return its name."""
        name = f"moorage:{product_image.version()}-{product_image.digest_of_inputs()}"
        with self._progress.step(f"docker build {name}", usually="2 min"):
            argv = ["docker", "build", f"--file={ROOT / 'Containerfile'}", f"--tag={name}", str(ROOT)]
            processes.run(argv, seconds=1200)
        with self._progress.step("kind load docker-image", usually="20 s"):
            processes.run(["kind", "load", "docker-image", name, f"--name={KIND_CLUSTER}"], seconds=300)
        return name


class Current:
    """The cluster of the present kubeconfig, with an image that its nodes can get."""

    def __init__(self, *, image: str) -> None:
        self._image = image

    def start(self) -> Path:
        """Return the kubeconfig in use.

        Raises:
            MissingError: there is none, or no image was named.
        """
        if ":" not in self._image:
            raise MissingError("CLUSTER=current needs an image that the nodes can pull: IMAGE=registry/moorage:tag")
        named = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
        kubeconfig = Path(named) if named else Path.home() / ".kube" / "config"
        if not kubeconfig.exists():
            raise MissingError(f"CLUSTER=current needs a kubeconfig; {kubeconfig} does not exist. Set KUBECONFIG")
        return kubeconfig

    def image(self) -> str:
        """Return the named image."""
        return self._image


def chosen(cluster: str, *, image: str, progress: Progress) -> Target:
    """Return the target by the word that people type.

    Raises:
        HarnessError: the word is unknown.
    """
    if cluster == "embedded":
        return Embedded(progress=progress)
    if cluster == "kind":
        return Kind(progress=progress)
    if cluster == "current":
        return Current(image=image)
    raise HarnessError(f"CLUSTER={cluster} is unknown: embedded, kind or current")


def kind_kubeconfig() -> Path:
    """Return where the kubeconfig of the kind cluster lies; it exists while the cluster does."""
    return run_dir() / "kind.kubeconfig"


def remove_kind(*, progress: Progress) -> None:
    """Delete the kind cluster where the demonstration made one. Idempotent."""
    if kind_kubeconfig().exists() and shutil.which("kind") is not None:
        with progress.step("kind delete cluster"):
            processes.run(["kind", "delete", "cluster", f"--name={KIND_CLUSTER}"])
        kind_kubeconfig().unlink()
