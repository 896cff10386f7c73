"""What a storm of calls may have led to: a model of volumes and snapshots by name, beside the driver.

A name is in the hands of one caller at a time, so what is under it follows from the calls in their order: it exists from
the create that succeeded until the delete that succeeded. What a copy holds does not follow from that alone, because its
source is written, copied and deleted by others meanwhile: it is one of the contents that the source has shown between
the first attempt at the copy and its success. As soon as somebody has looked it is that one, for ever.

Contents are marks: a file that somebody wrote whole, with who wrote it and what cannot be there by chance.
"""

import asyncio
import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

EMPTY: Final = ""
"""The content of a volume to which nothing was ever written."""

MARK: Final = "mark"
_LENGTH: Final = 24 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A class of volumes."""

    name: str
    pool: str
    parameters: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class Show:
    """What something may show, from one moment on and until it shows the next."""

    contents: frozenset[str]
    since: int
    until: int | None = None


@dataclass(slots=True, kw_only=True)
class Life:
    """A volume or a snapshot, from the first attempt to make it until it was deleted."""

    name: str
    id: str
    kind: Kind
    size: int
    began: int
    shows: list[Show]
    ended: int | None = None
    growing_to: int = 0
    targets: set[Path] = field(default_factory=set)

    def shown(self, since: int, until: int) -> frozenset[str]:
        """All that it may have shown between the two."""
        if self.began > until or (self.ended is not None and self.ended < since):
            return frozenset()
        some = (show for show in self.shows if show.since <= until and (show.until is None or show.until >= since))
        return frozenset().union(*(show.contents for show in some))

    def seen(self, content: str) -> None:
        """Somebody looked."""
        now = self.shows[-1]
        assert content in now.contents, f"{self.name} holds {content!r}, and can hold only {sorted(now.contents)}"
        now.contents = frozenset({content})


class Model:
    """What there may be. Belongs to the event loop; its callers hold the lock of the name that they change."""

    def __init__(self, *, volumes: int, snapshots: int) -> None:
        self.volumes = tuple(f"pvc-{number}" for number in range(volumes))
        self.snapshots = tuple(f"snap-{number}" for number in range(snapshots))
        self.locks = {name: asyncio.Lock() for name in (*self.volumes, *self.snapshots)}
        self.answers: Counter[tuple[str, str]] = Counter()
        self._lives: dict[str, list[Life]] = {name: [] for name in self.locks}
        self._expected: dict[str, Callable[[], frozenset[str]]] = {}
        self._now = 0

    def tick(self) -> int:
        """The next moment."""
        self._now += 1
        return self._now

    def alive(self, name: str) -> Life | None:
        """What is under that name now."""
        lives = self._lives[name]
        return lives[-1] if lives and lives[-1].ended is None else None

    def all_alive(self, names: tuple[str, ...]) -> Iterator[Life]:
        """All that is there under these names."""
        return (life for name in names if (life := self.alive(name)) is not None)

    @contextlib.contextmanager
    def expecting(self, name: str, contents: Callable[[], frozenset[str]]) -> Iterator[None]:
        """Something with such contents is being made, and may be there, and copied, before its caller is told."""
        self._expected[name] = contents
        try:
            yield
        finally:
            del self._expected[name]

    def born(self, name: str, *, identity: str, kind: Kind, size: int, began: int, contents: frozenset[str]) -> Life:
        """A create has succeeded, which was first tried at ``began``."""
        assert self.alive(name) is None
        shows = [Show(contents=contents, since=began)]
        life = Life(name=name, id=identity, kind=kind, size=size, began=began, shows=shows)
        self._lives[name].append(life)
        return life

    def died(self, life: Life) -> None:
        """A delete has succeeded."""
        life.ended = self.tick()

    def shown(self, name: str, since: int) -> frozenset[str]:
        """All that a copy of that may hold which was first tried at ``since`` and has succeeded just now."""
        until = self.tick()
        expected = self._expected[name]() if name in self._expected else frozenset()
        return expected.union(*(life.shown(since, until) for life in self._lives[name]))


def mark(life: Life, number: int) -> str:
    """A content that nothing else has."""
    return f"{life.name}-{life.began}-{number}"


def _body(content: str) -> bytes:
    return hashlib.shake_128(content.encode()).digest(_LENGTH)


def write(folder: Path, content: str) -> None:
    """Put the content into a volume, durably; whoever copies it meanwhile finds the one before or this one."""
    aside = folder / f".{content}"
    with aside.open("wb") as file:
        file.write(content.encode() + b"\n" + _body(content))
        file.flush()
        os.fsync(file.fileno())
    aside.rename(folder / MARK)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(folder: Path) -> str:
    """The content of a volume, which has to be whole."""
    try:
        found = (folder / MARK).read_bytes()
    except FileNotFoundError:
        return EMPTY
    content, _, body = found.partition(b"\n")
    assert body == _body(content.decode()), f"{folder}: {content!r} is not whole"
    return content.decode()
