"""What csi-sanity skips because the driver does not do it on purpose, reason by reason, and why.

The suite asks the driver what it can do and skips the rest, so a capability that is lost would show as nothing but a
few tests less. Here every skipped test has to have been expected, and every expected one to be skipped.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NOTHING_TO_ATTACH: Final = {
    "ControllerPublishVolume not supported": 7,
    "ControllerUnpublishVolume not supported": 1,
    "Controller Publish, UnpublishVolume not supported": 2,
}
"""Storage of a node is attached to it always; the CSIDriver object says `attachRequired: false`."""

NOTHING_TO_STAGE: Final = {
    "NodeStageVolume not supported": 3,
    "NodeUnstageVolume not supported": 2,
}
"""A volume is mounted straight onto each target, so that there is no second place to keep in step."""

NEWER_THAN_CSI_1_12: Final = {
    "ControllerGetVolumeHealth not supported": 2,
    "ControllerListVolumeHealth not supported": 1,
    "NodeGetVolumeHealth not supported": 2,
    "NodeGetStorageHealth not supported": 1,
    "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported": 1,
}
"""Calls of CSI 1.13, whose messages are not in our protocol; the condition of a volume is told as in 1.12."""

NOT_RUN_BY_THE_SUITE: Final = {"pending": 1}
"""A test that csi-sanity itself has switched off."""

EXPECTED: Final[Mapping[str, int]] = {
    **NOTHING_TO_ATTACH,
    **NOTHING_TO_STAGE,
    **NEWER_THAN_CSI_1_12,
    **NOT_RUN_BY_THE_SUITE,
}
"""The same for every backend and mode."""


def surprises(skips: Mapping[str, int]) -> Iterator[str]:
    """Name each reason for which other tests were skipped than is expected."""
    for reason in sorted({*EXPECTED, *skips}):
        expected, found = EXPECTED.get(reason, 0), collections.Counter(skips)[reason]
        if expected != found:
            yield f"{reason or 'no reason given'}: {found} skipped, {expected} expected"
