"""Identities that must not be mixed up with other strings, and the keys of work."""

import enum
from typing import NamedTuple, NewType

Uid = NewType("Uid", str)
"""``metadata.uid``: an object that was deleted and made again has another one."""


class Kind(enum.StrEnum):
    """What a key of work is about."""

    CLAIM = "claim"
    VOLUME = "volume"
    ORPHAN = "orphan"
    """Storage that may have been made for a claim that is gone; the name is the claim's uid."""


class Key(NamedTuple):
    """One piece of work: this object has to be looked at again."""

    kind: Kind
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}" if self.namespace else f"{self.kind}/{self.name}"


def claim_key(namespace: str, name: str) -> Key:
    """The key of a claim."""
    return Key(Kind.CLAIM, name, namespace)


def volume_key(name: str) -> Key:
    """The key of a volume."""
    return Key(Kind.VOLUME, name)


def orphan_key(uid: Uid) -> Key:
    """The key of what was begun for the claim of that uid."""
    return Key(Kind.ORPHAN, uid)
