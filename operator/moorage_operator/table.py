"""The records of one kind, and which of two of the same object is the newer."""

from collections.abc import Hashable
from typing import Final, Generic, Protocol, TypeVar

from moorage_operator.model.ids import Uid

MOST_GONE: Final = 4096
"""Uids of deleted objects that are remembered: far more than can be in flight at once."""


class _HasUid(Protocol):
    @property
    def uid(self) -> Uid: ...


_Name = TypeVar("_Name", bound=Hashable)
_Record = TypeVar("_Record", bound=_HasUid)


class Table(Generic[_Name, _Record]):
    """The records of one kind by name, and the rule of which of two is the newer."""

    __slots__ = ("_assumed", "_gone", "_versions", "by_name", "names")

    def __init__(self) -> None:
        self.by_name: dict[_Name, _Record] = {}
        self.names: dict[Uid, _Name] = {}
        self._versions: dict[Uid, str] = {}
        self._assumed: set[Uid] = set()
        self._gone: dict[Uid, None] = {}

    def accepts(self, name: _Name, uid: Uid, version: str, *, assumed: bool, listed: bool = False) -> bool:
        """Whether a record of that version is at least as new as what is known.

        A list overrules what the watch has told, but not an answer to a write of ours: the list may have been
        made before that write and be delivered after it.
        """
        if assumed and uid in self._gone:
            return False
        known = self.by_name.get(name)
        if known is None or not version or (listed and known.uid not in self._assumed):
            return True
        old = self._versions[known.uid]
        if version.isdecimal() and old.isdecimal():
            return int(version) >= int(old)
        return assumed or known.uid not in self._assumed or version == old

    def put(self, name: _Name, record: _Record, version: str, *, assumed: bool) -> _Record | None:
        """Keep the record; returns the one that it replaces."""
        old = self.by_name.get(name)
        if old is not None and old.uid != record.uid:
            self.drop(old.uid)
        self.by_name[name] = record
        self.names[record.uid] = name
        # An answer that comes after the watch has told the same is no assumption any more.
        told = self._versions.get(record.uid) == version and record.uid not in self._assumed
        self._versions[record.uid] = version
        (self._assumed.add if assumed and not told else self._assumed.discard)(record.uid)
        return old

    def is_confirmed(self, uid: Uid) -> bool:
        """Whether what is known of an object is from the watch, and not yet only from an answer to ourselves."""
        return uid not in self._assumed

    def is_gone(self, uid: Uid) -> bool:
        """Whether an object of that uid was let go of lately."""
        return uid in self._gone

    def drop(self, uid: Uid) -> _Record | None:
        """Let go of an object; returns its last record, None when it was not known."""
        self._gone[uid] = None
        if len(self._gone) > MOST_GONE:
            del self._gone[next(iter(self._gone))]
        name = self.names.pop(uid, None)
        self._versions.pop(uid, None)
        self._assumed.discard(uid)
        return None if name is None else self.by_name.pop(name)
