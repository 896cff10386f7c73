"""The first process of a virtual node: lays out its mounts, then adopts and reaps whatever loses its parent.

Runs as `unshare ... python -I node_init.py NODE_FOLDER`, before anything is installed and outside any package: only
the standard library. It makes NODE_FOLDER/ready when the mounts stand. Whoever kills it ends the node, because it is
the first process of the node's pid namespace.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

OWN_FOLDERS = {
    "kubelet": "/var/lib/kubelet",
    "cni": "/var/lib/cni",
    "moorage": "/var/lib/moorage",
    "log": "/var/log",
}
"""What lies at these places is the node's own: a folder of its state, on the disk that the state lies on."""

KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet sets on its machine. They are not namespaced, so the node shows it files that hold its wishes."""


def main() -> None:
    """Lay out the mounts, say so, and reap for ever."""
    node = Path(sys.argv[1])
    socket.sethostname(node.name)
    _mount("--make-rprivate", "/")
    _mount("--make-rshared", "/")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for name, place in OWN_FOLDERS.items():
        (node / name).mkdir(exist_ok=True)
        Path(place).mkdir(parents=True, exist_ok=True)
        _mount("--bind", str(node / name), place)
    _show_kernel_settings(node / "kernel")
    (node / "ready").touch()
    while True:
        _reap()


def _show_kernel_settings(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, value in KERNEL_SETTINGS.items():
        setting = Path("/proc/sys") / name
        if setting.exists():
            shown = folder / name.replace("/", ".")
            shown.write_text(f"{value}\n")
            _mount("--bind", str(shown), str(setting))


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)  # noqa: S607 - found on the node's PATH


def _reap() -> None:
    """Wait for one child; one is always there, so that this never spins."""
    try:
        os.wait()
    except ChildProcessError:
        os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ)


if __name__ == "__main__":
    main()
