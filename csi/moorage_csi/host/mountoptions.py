"""Mount options as people write them, and what each of them is for.

Some words belong to one mount (``nosuid``), some to the filesystem (``nouuid``), some to neither. The mount API takes them
at different places, so they are sorted here.
"""

import enum
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final


class MountFlag(enum.IntFlag):
    """Attributes of one mount, as ``mount_setattr`` numbers them; they leave the filesystem as it is."""

    READ_ONLY = 0x1
    NOSUID = 0x2
    NODEV = 0x4
    NOEXEC = 0x8
    NOATIME = 0x10
    STRICTATIME = 0x20
    NODIRATIME = 0x80
    NOSYMFOLLOW = 0x200000


_NO_FLAG: Final = MountFlag(0)


@dataclass(frozen=True, slots=True)
class MountAttributes:
    """Which attributes a mount gets, and which it must not inherit from the mount it is cloned from."""

    set: MountFlag = _NO_FLAG
    clear: MountFlag = _NO_FLAG

    def adding(self, flag: MountFlag) -> "MountAttributes":
        """The same with ``flag`` set."""
        return MountAttributes(set=self.set | flag, clear=self.clear & ~flag)

    def removing(self, flag: MountFlag) -> "MountAttributes":
        """The same with ``flag`` cleared."""
        return MountAttributes(set=self.set & ~flag, clear=self.clear | flag)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through the mount."""
        return MountFlag.READ_ONLY in self.set


ATIME: Final = MountFlag.NOATIME | MountFlag.STRICTATIME
_SETTING: Final = {
    "ro": MountFlag.READ_ONLY,
    "nosuid": MountFlag.NOSUID,
    "nodev": MountFlag.NODEV,
    "noexec": MountFlag.NOEXEC,
    "nodiratime": MountFlag.NODIRATIME,
    "nosymfollow": MountFlag.NOSYMFOLLOW,
}
_CLEARING: Final = {
    "rw": MountFlag.READ_ONLY,
    "suid": MountFlag.NOSUID,
    "dev": MountFlag.NODEV,
    "exec": MountFlag.NOEXEC,
    "diratime": MountFlag.NODIRATIME,
    "symfollow": MountFlag.NOSYMFOLLOW,
}
_ATIMES: Final = {
    "noatime": MountFlag.NOATIME,
    "strictatime": MountFlag.STRICTATIME,
    "relatime": _NO_FLAG,
    "atime": _NO_FLAG,
}
_IGNORED: Final = frozenset({"defaults", "_netdev", "nofail", "auto", "noauto", "user", "nouser", "users", "owner"})
"""Words of fstab that mean something to programs and nothing to the kernel."""

_REFUSED: Final = frozenset(
    {
        *("bind", "rbind", "move", "remount", "loop"),
        *("private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"),
    },
)


_NO_CHANGE: Final = MountAttributes()


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Mount options sorted by whom they are for: the mount, or the filesystem."""

    attributes: MountAttributes = _NO_CHANGE
    filesystem: tuple[str, ...] = ()


def parse_options(options: Iterable[str]) -> MountOptions:
    """Split mount options as people write them, each possibly a comma-separated list; the last word wins.

    What no mount attribute is goes to the filesystem as it is written; whether that is right only the
    filesystem knows. Raises ValueError for operations that are not options, such as ``bind`` or ``remount``.
    """
    attributes = MountAttributes()
    filesystem: list[str] = []
    for option in _split(options):
        if option in _SETTING:
            attributes = attributes.adding(_SETTING[option])
        elif option in _CLEARING:
            attributes = attributes.removing(_CLEARING[option])
        elif option in _ATIMES:
            attributes = attributes.removing(ATIME).adding(_ATIMES[option])
        elif option in _REFUSED:
            msg = f"mount option {option!r} is an operation, not an option: remove it from mountOptions"
            raise ValueError(msg)
        elif option not in _IGNORED and not option.startswith(("x-", "X-", "comment=")):
            filesystem.append(option)
    return MountOptions(attributes=attributes, filesystem=tuple(filesystem))


def _split(options: Iterable[str]) -> Iterator[str]:
    """Options one by one; a value in double quotes may hold commas, as SELinux contexts do."""
    for text in options:
        for match in re.finditer(r'(?:[^,"]|"[^"]*"?)+', text):
            option = match.group().replace('"', "").strip()
            if option:
                yield option
