"""The first filesystem of a booting kernel: busybox, the modules that reach the real root, and the script that does it.

It is written as the kernel reads it, a `newc` cpio archive, so that neither root nor device nodes are needed to make
one, and it takes a blink.
"""

from __future__ import annotations

import dataclasses
import io
import shlex
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "9pnet_virtio", "9p", "overlay")
"""What is needed to reach the machine's files, the disk and the way back out."""
SHARE = "machine"
"""The tag under which the machine's files are offered."""
FOLDERS = ("bin", "dev", "machine", "modules", "root", "written")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or device of the archive."""

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def build(*, busybox: bytes, modules: Sequence[bytes], command: Sequence[str]) -> bytes:
    """Return the archive.

    Args:
        busybox: the static program.
        modules: the content of each module, in the order in which they are inserted.
        command: what becomes the first process of the real root.
    """
    files = {f"modules/{number:03}.ko": content for number, content in enumerate(modules)}
    entries = [Entry(name, stat.S_IFDIR | 0o755) for name in FOLDERS]
    entries += [Entry(path, stat.S_IFREG | 0o644, content) for path, content in files.items()]
    entries.append(Entry("bin/busybox", stat.S_IFREG | 0o755, busybox))
    entries.append(Entry("init", stat.S_IFREG | 0o755, script(files, command=command).encode()))
    # What the kernel opens as the script's standard input and outputs, before anything is mounted.
    entries.append(Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)))
    return archive(entries)


def script(modules: Mapping[str, bytes] | Iterable[str], *, command: Sequence[str]) -> str:
    """Return the script: the machine's files below, never written to, and what is written in memory above them."""
    insertions = "".join(f"insmod /{path}\n" for path in modules)
    return f"""#!/bin/busybox sh
set -e
/bin/busybox --install -s /bin
export PATH=/bin
{insertions}mount -t devtmpfs dev /dev
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=1048576 {SHARE} /machine
mount -t tmpfs written /written
mkdir /written/upper /written/work
mount -t overlay -o lowerdir=/machine,upperdir=/written/upper,workdir=/written/work root /root
umount /dev
exec switch_root /root {shlex.join(command)}
"""


def archive(entries: Iterable[Entry]) -> bytes:
    """Return a `newc` cpio archive; the same entries give the same bytes."""
    out = io.BytesIO()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.path.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the archive, device, length of the name, checksum
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
        for part in (name, entry.content):
            out.write(part)
            out.write(b"\0" * (-out.tell() % 4))
    return out.getvalue()
