"""Overlays: one tree made of directories that lie over each other, of which only the topmost is written to.

The kernel keeps private copies of the mounts that the directories lie on. So these are mounted where nobody can reach
them, given by descriptor, and let go of: they live exactly as long as the overlay does, whoever dies meanwhile.

Kernels before 6.15 take only mounts that the calling process has in its own table. For them each mount is put into the
table of a thread that has a copy to itself; the copy ends with the thread, so nothing is left to be removed there
either. It is not done without need, because for that moment the copy keeps in use what others unmount.

A directory's marks (what is deleted, what is opaque, where a renamed directory came from) are extended attributes
``trusted.overlay.*`` and character devices 0:0 in the directory that is written to. Only who has CAP_SYS_ADMIN on the host
can make either, and the overlay hides and refuses both: whoever sees the merged tree alone, as a pod does, cannot forge
them. A directory from anywhere else must not become a layer.
"""

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

from moorage_csi.host import inodes, mounts, syscalls
from moorage_csi.host.mounts import MountAttributes

_OVERLAY: Final = "overlay"
_OPTIONS: Final = ("index=off", "metacopy=off", "xino=auto")
_WRITABLE: Final = "redirect_dir=on"
"""Directories of the layers below can be renamed, as anywhere else."""
_READABLE: Final = "redirect_dir=follow"
_MARKS: Final = "trusted.overlay."
_PRIVATE: Final = 1 << 18
_NO_ATTRIBUTES: Final = MountAttributes()
_UNABLE: Final = "the kernel cannot mount an overlay here"


@dataclass(frozen=True, slots=True)
class Place:
    """The directory ``name`` at the top of a detached mount, on which ``mount`` is open."""

    mount: int
    name: str


@dataclass(frozen=True, slots=True)
class Writable:
    """Where an overlay keeps what is written: two directories of one mount that no other overlay has."""

    upper: Place
    work: Place


def detached(
    *,
    source: str,
    lower: Sequence[Place],
    writable: Writable | None = None,
    attributes: MountAttributes = _NO_ATTRIBUTES,
) -> int:
    """Mount an overlay where nobody can reach it; returns an O_PATH descriptor of its top, which the caller closes.

    Args:
        source: any word, by which it is told apart in mountinfo.
        lower: the layers, the topmost first; at least one, and two where nothing is writable.
        writable: None for an overlay that cannot be written to. Two overlays on one are undefined: the kernel does not
            refuse the second, so the caller makes sure that there is none.
        attributes: of this mount alone.

    Closing the descriptor dissolves it, unless it was moved somewhere. OSError says what the kernel said, and then
    nothing is left. The mounts of the places are for this overlay alone and for nothing else afterwards.
    """
    try:
        return _directly(source, lower, writable, attributes)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix=_OVERLAY) as thread:
        return thread.submit(_in_own_table, source, lower, writable, attributes).result()


def _directly(source: str, lower: Sequence[Place], writable: Writable | None, attributes: MountAttributes) -> int:
    def at(place: Place) -> str:
        return f"{inodes.path(place.mount)}/{place.name}"

    options = [*_options(writable), *(f"lowerdir+={at(place)}" for place in lower)]
    if writable is not None:
        options += [f"upperdir={at(writable.upper)}", f"workdir={at(writable.work)}"]
    return mounts.filesystem_detached(source=source, filesystem=_OVERLAY, options=options, attributes=attributes)


def _in_own_table(source: str, lower: Sequence[Place], writable: Writable | None, attributes: MountAttributes) -> int:
    """The same with the mounts in the table of this thread, which ends with it.

    The names are as short as can be, since older kernels take all layers in one text of 255 bytes; the thread has a
    working directory of its own too.
    """
    syscalls.unshare_mounts()
    places = [*lower, *((writable.upper, writable.work) if writable is not None else ())]
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syscalls.mount_setattr(root, set_flags=0, clear_flags=0, propagation=_PRIVATE, recursive=True)
        for mount in dict.fromkeys(place.mount for place in places):
            syscalls.move_mount(mount, root)
    finally:
        os.close(root)
    os.chdir(inodes.path(lower[0].mount).rpartition("/")[0])
    options = [*_options(writable), "lowerdir=" + ":".join(f"{place.mount}/{place.name}" for place in lower)]
    if writable is not None:
        options += [
            f"upperdir={writable.upper.mount}/{writable.upper.name}",
            f"workdir={writable.work.mount}/{writable.work.name}",
        ]
    return mounts.filesystem_detached(source=source, filesystem=_OVERLAY, options=options, attributes=attributes)


def _options(writable: Writable | None) -> tuple[str, ...]:
    return (*_OPTIONS, _READABLE if writable is None else _WRITABLE)


def forget_marks(fd: int) -> None:
    """Take an overlay's marks off a directory that became another one's, and is to be nothing but a directory."""
    for name in os.listxattr(fd):
        if name.startswith(_MARKS):
            os.removexattr(fd, name)


def likeness(fd: int) -> tuple[object, ...]:
    """Owner, mode and attributes of a directory, without an overlay's marks, to compare it with another one."""
    seen = os.fstat(fd)
    attributes = {name: os.getxattr(fd, name) for name in os.listxattr(fd) if not name.startswith(_MARKS)}
    return seen.st_uid, seen.st_gid, seen.st_mode, attributes


def overlay_supported() -> str | None:
    """Why overlays cannot be mounted here, None where they can.

    Found out by doing it, in memory: a directory of the lower layer is renamed, which takes all that is needed.
    """
    try:
        with ExitStack() as stack:
            memory = mounts.filesystem_detached(source="probe", filesystem="tmpfs", options=["size=1m"])
            stack.callback(os.close, memory)
            for name in ("lower", "lower/before", "upper", "work"):
                os.mkdir(name, 0o700, dir_fd=memory)
            probe = detached(
                source="probe",
                lower=[Place(memory, "lower")],
                writable=Writable(upper=Place(memory, "upper"), work=Place(memory, "work")),
            )
            stack.callback(os.close, probe)
            os.rename("before", "after", src_dir_fd=probe, dst_dir_fd=probe)
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=probe)
            stack.callback(os.close, top)
            with os.scandir(top) as entries:
                if [entry.name for entry in entries] != ["after"]:
                    return f"{_UNABLE}: it does not show what was done in it"
    except OSError as error:
        return f"{_UNABLE}: {error}"
    return None
