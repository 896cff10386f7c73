"""Ids: opaque, given by this driver, and looked up.

An id follows from the name in the request that made the thing, so that a request that is repeated finds it. Only a
string that fits its pattern is ever used as the name of a folder.
"""

import hashlib
import re
from typing import Final, NewType

VolumeId = NewType("VolumeId", str)
SnapshotId = NewType("SnapshotId", str)

VOLUME_ID: Final = re.compile(r"vol-[0-9a-f]{32}")
SNAPSHOT_ID: Final = re.compile(r"snap-[0-9a-f]{32}")

_DIGITS: Final = 32


def snapshot_id_for(name: str) -> SnapshotId:
    """The id of the snapshot that is made for a request with this name."""
    return SnapshotId(f"snap-{hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]}")
