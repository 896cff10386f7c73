"""Container images without a registry: docker-archive tars, made of one layer, a config and a manifest.

busybox-static serves as `busybox` (with a link for each applet) and as `pause` (it sleeps). The tars depend only on
the program they hold, so they lie in the cache under its hash.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.harness.errors import MissingError
from tests.harness.places import cache_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PAUSE = "localhost/pause:moorage"
BUSYBOX = "busybox:1.37"
SHELL_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FOREVER = "2147483647"


def pause() -> Path:
    """Return the tar of the image that holds a pod's namespaces."""
    return _archive("pause", (PAUSE,), entrypoint=("/bin/busybox", "sleep", FOREVER), applets=())


def busybox() -> Path:
    """Return the tar of the image for test pods: busybox with a link for each applet."""
    listed = subprocess.run([_busybox(), "--list"], capture_output=True, text=True, check=True).stdout.split()
    return _archive("busybox", (BUSYBOX,), entrypoint=("sh",), applets=listed)


def docker_archive(
    names: Sequence[str], *, files: Mapping[str, bytes], links: Mapping[str, str], entrypoint: Sequence[str]
) -> bytes:
    """Return a docker-archive of an image with one layer; the same input gives the same bytes.

    Args:
        names: what the image is called, each as `repository:tag`.
        files: the content of each executable file, by path without a leading slash.
        links: the target of each symbolic link, by path.
        entrypoint: the command; arguments of a pod replace nothing of it.
    """
    folders = sorted({str(parent) for path in [*files, *links] for parent in Path(path).parents if str(parent) != "."})
    entries = [_folder(name) for name in [*folders, "etc", "proc", "sys", "dev", "root"]]
    entries.append(_folder("tmp", mode=0o1777))
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for entry in entries:
            tar.addfile(entry)
        for path, content in sorted(files.items()):
            _add_file(tar, path, content, mode=0o755)
        for path, target in sorted(links.items()):
            link = tarfile.TarInfo(path)
            link.type = tarfile.SYMTYPE
            link.linkname = target
            tar.addfile(link)
        _add_file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", mode=0o644)
        _add_file(tar, "etc/group", b"root:x:0:\n", mode=0o644)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = json.dumps(
        {
            "architecture": _architecture(),
            "os": "linux",
            "config": {"Cmd": list(entrypoint), "Env": [SHELL_PATH]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": list(names), "Layers": [f"{digest}/layer.tar"]}]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _add_file(tar, f"{digest}/layer.tar", layer.getvalue(), mode=0o644)
        _add_file(tar, config_name, config, mode=0o644)
        _add_file(tar, "manifest.json", json.dumps(manifest).encode(), mode=0o644)
    return archive.getvalue()


def _archive(stem: str, names: Sequence[str], *, entrypoint: Sequence[str], applets: Iterable[str]) -> Path:
    program = Path(_busybox()).read_bytes()
    links = {f"bin/{applet}": "busybox" for applet in applets if applet != "busybox"}
    content = docker_archive(names, files={"bin/busybox": program}, links=links, entrypoint=entrypoint)
    file = cache_dir() / "images" / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.tar"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".part")
        temporary.write_bytes(content)
        temporary.replace(file)
    return file


def _busybox() -> str:
    found = shutil.which("busybox")
    if found is None:
        raise MissingError("busybox is missing: apt-get install busybox-static")
    return found


def _architecture() -> str:
    machine = Path("/proc/sys/kernel/arch").read_text().strip()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _folder(path: str, *, mode: int = 0o755) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.type = tarfile.DIRTYPE
    entry.mode = mode
    return entry


def _add_file(tar: tarfile.TarFile, path: str, content: bytes, *, mode: int) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(content)
    entry.mode = mode
    tar.addfile(entry, io.BytesIO(content))
