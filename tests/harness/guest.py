"""The first process of a virtual machine: lays out its mounts, runs one command, tells its exit code, switches off.

Runs as `python -I guest.py ORDER` before anything is mounted and outside any package: only the standard library. The
root is the machine's own, below a layer in memory that takes all writes. ORDER is a JSON file with the keys of
`virtual_machine.Order`. What the command writes goes out through one port and its exit code through another. Where
this process fails, the kernel does too, and the last words are on the console.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

MOUNTS = (
    ("proc", "/proc", ""),
    ("sysfs", "/sys", ""),
    ("devtmpfs", "/dev", ""),
    ("devpts", "/dev/pts", "ptmxmode=666"),
    ("tmpfs", "/dev/shm", "mode=1777"),  # noqa: S108 - the guest's own
    ("tmpfs", "/run", "mode=755"),
)
DISK = "/dev/vda"


def main() -> None:
    """Carry out the order, and switch the machine off whatever its command's end was."""
    order = json.loads(Path(sys.argv[1]).read_text())
    os.environ.update(order["environment"])
    os.umask(0o022)
    for kind, place, options in MOUNTS:
        Path(place).mkdir(exist_ok=True)
        _run("mount", "-t", kind, *(["-o", options] if options else []), kind, place)
    _run("mount", "--make-rshared", "/")
    _run("ip", "link", "set", "lo", "up")
    Path("/lib/modules").mkdir(exist_ok=True)
    _run("mount", "--bind", order["kernel_modules"], "/lib/modules")
    _run("modprobe", "--all", *order["load"])
    Path(order["mount_point"]).mkdir()
    disk = order["disk"]
    _run("mount", "-t", disk["filesystem"], *disk["mount_options"], DISK, order["mount_point"])
    for folder in ("HOME", "TMPDIR"):
        Path(order["environment"][folder]).mkdir()
    code = _carry_out(order["argv"], cwd=order["cwd"])
    _port("result").write_text(str(code))
    os.sync()
    Path("/proc/sysrq-trigger").write_text("o")
    signal.pause()


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def _port(name: str) -> Path:
    """Return the device of the port that the machine outside gave this name."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").exists() and (entry / "name").read_text().strip() == name:
            return Path("/dev") / entry.name
    raise FileNotFoundError(f"the virtual machine has no port {name}")


def _carry_out(argv: list[str], *, cwd: str) -> int:
    """Run the command and reap whatever else loses its parent until it ends; return its exit code as a shell tells it."""
    with _port("output").open("wb", buffering=0) as output:
        command = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    while True:
        pid, status = os.wait()
        if pid == command.pid:
            command.returncode = os.waitstatus_to_exitcode(status)
            return command.returncode if command.returncode >= 0 else 128 - command.returncode


if __name__ == "__main__":
    main()
