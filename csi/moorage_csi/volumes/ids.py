"""Ids: opaque, given by this driver, and looked up.

An id follows from the name in the request that made the thing, so that a request that is repeated finds it. Only a
string that fits its pattern is ever used as the name of a folder.
"""

import hashlib
import re
from typing import Final, NewType

VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)
GroupId = NewType("GroupId", str)

VOLUME_ID: Final = re.compile(r"vol-[0-9a-f]{32}")
SNAPSHOT_ID: Final = re.compile(r"snap-[0-9a-f]{32}")
GROUP_ID: Final = re.compile(r"grp-[0-9a-f]{32}")

_DIGITS: Final = 32


def snapshot_id_for(name: str) -> SnapshotId:
    """The id of the snapshot that is made for a request with this name."""
    return SnapshotId(f"snap-{_digest(name)}")


def group_id_for(name: str) -> GroupId:
    """The id of the group snapshot that is made for a request with this name; no folder has it."""
    return GroupId(f"grp-{_digest(name)}")


def member_id_for(name: str, source: VolumeId) -> SnapshotId:
    """The id of the snapshot of a volume within the group snapshot of this name; no snapshot's name can lead to it."""
    both = f"{name}\0{source}"
    return SnapshotId(f"snap-{_digest(both)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]
