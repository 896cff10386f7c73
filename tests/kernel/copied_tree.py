"""A tree with one of everything, a place to copy it to, and a look at whether the copy is one."""

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moorage_csi.host import treecopy
from moorage_csi.host.paths import Directory
from tests.kernel.loop_filesystem import MIB, filesystem
from tests.kernel.machine import names, sparse

USER, GROUP = 4711, 4712
ACL_HEAD = struct.pack("<I", 2)
ACL_ENTRY = struct.Struct("<HHI")
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return ACL_HEAD + b"".join(ACL_ENTRY.pack(*entry) for entry in entries)


NAMED_USER = acl((1, 6, NOBODY), (2, 4, USER), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))


@contextmanager
def copying_place(area: Path, kind: str) -> Iterator[Path]:
    """A filesystem with a ``source`` to be filled, an empty ``copy``, and something that nobody may touch."""
    with filesystem(area, kind) as mount:
        for name in ("source", "copy", "precious"):
            (mount / name).mkdir()
        (mount / "precious" / "data").write_text("data")
        yield mount
        assert (mount / "precious" / "data").read_text() == "data"
        assert names(mount / "precious") == ["data"]


def copy(place: Path, batch: Callable[[], None] | None = None) -> treecopy.Copied:
    with Directory.open(place / "source") as source, Directory.open(place / "copy") as target:
        return treecopy.copy_tree(source, target, batch=batch)


def described(path: Path) -> tuple[object, ...]:
    """All of an entry that a copy has to have; not the time of change, and not the size of a directory."""
    seen = path.lstat()
    content: object = None
    if stat.S_ISREG(seen.st_mode):
        content = path.read_bytes()
    elif stat.S_ISLNK(seen.st_mode):
        content = path.readlink()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
    }
    links = 0 if stat.S_ISDIR(seen.st_mode) else seen.st_nlink
    return (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_rdev, seen.st_mtime_ns, links, content, attributes)


def inventory(top: Path) -> dict[str, tuple[object, ...]]:
    found = {".": described(top)}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path.relative_to(top))] = described(path)
    return found


def furnished(top: Path) -> None:
    """One of everything."""
    (top / "file").write_bytes(os.urandom(MIB + 5))
    (top / "empty").touch()
    (top / "name\nwith\tanything \udcff").write_text("odd")
    sparse(top / "sparse", 64 * MIB)
    with (top / "sparse").open("r+b") as file:
        file.seek(32 * MIB)
        file.write(b"middle")
    (top / "folder" / "below").mkdir(parents=True)
    (top / "folder" / "below" / "file").write_text("below")
    (top / "link").symlink_to("file")
    (top / "outwards").symlink_to("../precious/data")
    (top / "dangling").symlink_to("/nowhere/at all")
    os.mkfifo(top / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(top, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    os.mknod(top / "whiteout", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(top / "disk", stat.S_IFBLK | 0o640, os.makedev(7, 250))
    os.link(top / "file", top / "folder" / "again")
    os.link(top / "fifo", top / "folder" / "fifo again")
    os.link(top / "link", top / "link again", follow_symlinks=False)
    (top / "setuid").write_text("#!")
    for path in (top / "setuid", top / "link", top / "fifo", top / "folder", top / "disk"):
        os.chown(path, USER, GROUP, follow_symlinks=False)
    (top / "setuid").chmod(0o6755)
    (top / "empty").chmod(0)
    (top / "folder").chmod(0o3775)
    os.setxattr(top / "setuid", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(top / "file", "user.word", b"value \0 with anything")
    os.setxattr(top / "folder", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "link", "trusted.of the link", b"itself", follow_symlinks=False)
    os.setxattr(top / "fifo", "trusted.of the fifo", b"itself")
    os.setxattr(top / "file", "system.posix_acl_access", NAMED_USER)
    os.setxattr(top / "folder", "system.posix_acl_default", NAMED_USER)
    (top / "folder" / "heir").touch()
    for number, path in enumerate([*top.iterdir(), top / "folder" / "below", top]):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number), follow_symlinks=False)
