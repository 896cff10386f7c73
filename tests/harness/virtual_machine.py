"""A virtual machine that runs one command in a kernel of its own, on the files of this machine.

This machine's root is the guest's, read-only and with a layer in memory above it: the same Python, tools and checkout
at the same places, only another kernel. So nothing is copied or built for a run, a changed file counts at once, and
no root is needed. Beside it the guest has an empty disk. Processors are emulated (`tcg`): a nested hypervisor is not
everywhere, and where it pretends to be, guests hang in the firmware.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from tests.harness import debian, initramfs, kernel_image, processes
from tests.harness.errors import HarnessError, MissingError, StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.harness.kernel_image import KernelImage

GUEST: Final = Path(__file__).parent / "guest.py"
LOAD: Final = ("loop", "ext4", "quota_v2", "xfs", "btrfs", "overlay", "dm_mod", "dm_thin_pool")
"""What is loaded before the tests: none of it is by itself when a filesystem's name or a control device is looked for."""
MOUNT_POINT: Final = "/disk"
DISK_BYTES: Final = 24 << 30
"""Of a sparse file: what no test writes takes no room."""
MEMORY_MIB: Final = 2048
MOST_PROCESSORS: Final = 4
"""And no more than half of the machine's: emulated ones that do not really run at once wait for each other and spin."""


@dataclasses.dataclass(frozen=True, slots=True)
class Disk:
    """What is made on the guest's disk, and how it is mounted."""

    filesystem: str
    make: tuple[str, ...]
    mount_options: tuple[str, ...] = ()


DISKS: Final = {
    "ext4": Disk("ext4", ("mkfs.ext4", "-q", "-F")),
    "ext4-quota": Disk("ext4", ("mkfs.ext4", "-q", "-F", "-O", "quota,project"), ("-o", "prjquota")),
    "xfs": Disk("xfs", ("mkfs.xfs", "-q", "-f")),
    "xfs-quota": Disk("xfs", ("mkfs.xfs", "-q", "-f"), ("-o", "prjquota")),
    "btrfs": Disk("btrfs", ("mkfs.btrfs", "-q", "-f")),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a guest gets before it is held for hung and killed."""

    boot: float = 180
    """Until its first output."""
    silence: float = 900
    """Between two outputs, which is more than any single test gets."""
    whole: float = 7200


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """What the guest is to do, as guest.py reads it."""

    argv: Sequence[str]
    cwd: str
    environment: dict[str, str]
    kernel_modules: str
    disk: Disk
    mount_point: str = MOUNT_POINT
    load: Sequence[str] = LOAD


def run(
    order: Order,
    *,
    kernel: KernelImage,
    folder: Path,
    output: BinaryIO | None = None,
    patience: Patience | None = None,
) -> int:
    """Boot the guest, relay what its command writes, and return the command's exit code.

    The guest is killed when its time is over, when this raises, and by the kernel when this process dies.

    Args:
        order: what it runs.
        kernel: what it boots.
        folder: an empty folder on a real disk; what is made in it (disk, console's log) is the caller's to remove.
        output: where the command's output goes; the standard output where it is not given.
        patience: after which the guest is held for hung.

    Raises:
        StartError: the guest hung, or ended without a result.
    """
    _write_disk(folder / "disk", order.disk)
    (folder / "order.json").write_text(written(order))
    (folder / "initramfs").write_bytes(_initramfs(kernel, order=folder / "order.json"))
    processors = max(1, min((os.cpu_count() or 1) // 2, MOST_PROCESSORS))
    argv = machine_command(kernel.program, folder=folder, processors=processors)
    return operate(argv, folder=folder, output=output or sys.stdout.buffer, patience=patience or Patience())


def written(order: Order) -> str:
    """Return an order as guest.py reads it."""
    return json.dumps(dataclasses.asdict(order))


def operate(argv: Sequence[str], *, folder: Path, output: BinaryIO, patience: Patience) -> int:
    """Run a machine's command to its end, and return what it left in `result`.

    Raises:
        StartError: it hung, or left nothing; the text carries the end of the console.
    """
    words = ["setpriv", "--pdeathsig", "KILL", *argv]
    with (
        (folder / "machine.log").open("wb") as log,
        subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        ) as machine,
    ):
        try:
            relay(machine, output=output, patience=patience)
        except HarnessError as error:
            raise StartError(f"{error}\n{_last_words(folder)}") from error
        finally:
            machine.kill()
    return _result(folder)


def machine_command(program: Path, *, folder: Path, processors: int) -> list[str]:
    """Return the command of the virtual machine: no network, no firmware menus, files only below its folder."""
    devices = [
        ("-virtfs", f"local,path=/,mount_tag={initramfs.SHARE},security_model=none,readonly=on,multidevs=remap"),
        # Nothing outlives the guest, so it need not wait for the disk.
        ("-drive", f"file={_escaped(folder / 'disk')},format=raw,if=virtio,cache=unsafe,discard=unmap"),
        ("-serial", f"file:{folder / 'console.log'}"),
        ("-device", "virtio-serial-pci"),
        ("-chardev", "file,id=output,path=/dev/stdout"),
        ("-device", "virtserialport,chardev=output,name=output"),
        ("-chardev", f"file,id=result,path={_escaped(folder / 'result')}"),
        ("-device", "virtserialport,chardev=result,name=result"),
        ("-nic", "none"),
    ]
    boot = [
        ("-kernel", str(program)),
        ("-initrd", str(folder / "initramfs")),
        # Any failure of the kernel ends the guest at once, whose console then tells of it.
        ("-append", "console=ttyS0 quiet panic=-1 oops=panic mitigations=off"),
    ]
    processor = [("-accel", "tcg,thread=multi"), ("-cpu", "max"), ("-smp", str(processors)), ("-m", str(MEMORY_MIB))]
    words = [word for pair in (*processor, *boot, *devices) for word in pair]
    return ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", *words]


def relay(machine: subprocess.Popen[bytes], *, output: BinaryIO, patience: Patience) -> None:
    """Pass on what a process writes, as it comes, until it closes its standard output.

    Raises:
        StartError: it was silent, or lasted, for longer than it may.
    """
    if machine.stdout is None:
        raise HarnessError("the machine's output goes elsewhere")
    end = time.monotonic() + patience.whole
    deadline = min(end, time.monotonic() + patience.boot)
    while select.select([machine.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
        heard = os.read(machine.stdout.fileno(), 1 << 16)
        if not heard:
            return
        output.write(heard)
        output.flush()
        deadline = min(end, time.monotonic() + patience.silence)
    raise StartError(
        f"the guest was killed because it hung: {patience.boot:g} s are allowed until its first output, "
        f"{patience.silence:g} s between two and {patience.whole:g} s for all"
    )


def _write_disk(file: Path, disk: Disk) -> None:
    with file.open("wb") as image:
        image.truncate(DISK_BYTES)
    processes.run([*disk.make, file], environment=os.environ | {"PATH": debian.SEARCHED})


def _initramfs(kernel: KernelImage, *, order: Path) -> bytes:
    busybox = shutil.which("busybox", path=debian.SEARCHED)
    if busybox is None:
        raise MissingError("busybox is missing: apt-get install busybox-static")
    return initramfs.build(
        busybox=Path(busybox).read_bytes(),
        modules=[kernel_image.module_content(file) for file in kernel.insertions(initramfs.MODULES)],
        command=(sys.executable, "-I", str(GUEST), str(order)),
    )


def _result(folder: Path) -> int:
    try:
        return int((folder / "result").read_text())
    except (FileNotFoundError, ValueError):
        raise StartError(f"the guest ended without a result\n{_last_words(folder)}") from None


def _last_words(folder: Path) -> str:
    said = processes.tail(folder / "machine.log") + processes.tail(folder / "console.log")
    return f"The end of its console:\n{said}" if said else "Its console is empty."


def _escaped(path: Path) -> str:
    """Return a path as the value of one of qemu's settings, whose comma is written twice."""
    return str(path).replace(",", ",,")
