"""One process's view of the mounts, as the kernel writes it in ``/proc/self/mountinfo``."""

import os
import re
from dataclasses import dataclass
from typing import Final

_OCTAL: Final = re.compile(rb"\\([0-3][0-7]{2})")
"""Spaces, tabs, line breaks, backslashes and number signs are written so."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; see proc_pid_mountinfo(5)."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    root: str
    """The path within the filesystem that is mounted: a bind mount shows it."""
    target: str
    options: frozenset[str]
    """Of this mount alone."""
    filesystem: str
    source: str
    filesystem_options: frozenset[str]
    peer_group: int | None
    """Mounts made below propagate to the other members of this group; None: they do not."""
    master_group: int | None

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written through this mount."""
        return "ro" in self.options or "ro" in self.filesystem_options


def parse_mountinfo(content: bytes) -> list[Mount]:
    """The mounts in the kernel's order, which puts a mount that covers another after it."""
    return [_parse_line(line) for line in content.split(b"\n") if line]


def _parse_line(line: bytes) -> Mount:
    head, _, tail = line.partition(b" - ")
    mount_id, parent_id, device, root, target, options, *tags = head.split(b" ")
    filesystem, source, filesystem_options = tail.split(b" ", 2)
    major, _, minor = device.partition(b":")
    groups = dict(tag.split(b":", 1) for tag in tags if b":" in tag)
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        major=int(major),
        minor=int(minor),
        root=_unescaped(root),
        target=_unescaped(target),
        options=frozenset(_unescaped(options).split(",")),
        filesystem=_unescaped(filesystem),
        source=_unescaped(source),
        filesystem_options=frozenset(_unescaped(filesystem_options).split(",")),
        peer_group=int(groups[b"shared"]) if b"shared" in groups else None,
        master_group=int(groups[b"master"]) if b"master" in groups else None,
    )


def _unescaped(text: bytes) -> str:
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match.group(1), 8)]), text))
