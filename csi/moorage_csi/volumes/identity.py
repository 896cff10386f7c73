"""``pool.json``: that this folder is a pool, which one, and what ``auto`` means in it.

It is written first and never made anew beside volumes: a pool that lost it may be a disk that is only
half there, and nothing is decided from half a disk.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moorage_csi.contract import BACKEND_AUTO, BACKENDS
from moorage_csi.errors import PreconditionError, UnavailableError
from moorage_csi.host.paths import Directory

FILE: Final = "pool.json"
VERSION: Final = 1

_KEPT: Final = frozenset(BACKENDS) - {BACKEND_AUTO}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the file says. ``backend`` is None as long as nothing was chosen; ``created`` in epoch seconds."""

    uuid: str
    created: float
    backend: str | None


def load(root: Directory, *, path: str, begun: bool, clock: Callable[[], float]) -> Identity:
    """Read the pool's identity, or give it one where nothing was ``begun`` in it.

    Raises:
        PreconditionError: the file is damaged, newer than this release, or missing beside volumes.
    """
    try:
        return _parse(root.read_bytes(FILE), path=path)
    except FileNotFoundError:
        if begun:
            raise PreconditionError(
                f"{path}/{FILE} is missing although volumes lie beside it: restore the file, "
                "or point the pool at an empty folder"
            ) from None
    identity = Identity(uuid=str(uuid.uuid4()), created=clock(), backend=None)
    save(root, identity)
    return identity


def save(root: Directory, identity: Identity) -> None:
    """Write the file, whole and durably."""
    document = {
        "version": VERSION,
        "uuid": identity.uuid,
        "created": identity.created,
        "backend": identity.backend,
    }
    root.write_atomic(FILE, json.dumps(document, indent=2, sort_keys=True).encode() + b"\n")


def occupy(root: Directory, *, path: str) -> None:
    """Keep a second plugin out of the folder. The lock goes with the process, however that ends.

    Raises:
        UnavailableError: another process has the folder.
    """
    try:
        fcntl.flock(root.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UnavailableError(
            f"{path} is in use by another process of this driver; a folder that several nodes share is declared "
            "with shared: true"
        ) from error


def lock_shared(root: Directory) -> int:
    """Wait for the lock that all nodes of a shared pool take to promise; closing the descriptor ends it."""
    fd = root.open_file(FILE, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parse(content: bytes, *, path: str) -> Identity:
    try:
        document = json.loads(content)
    except ValueError as error:
        raise _distrust(path, f"not JSON: {error}") from error
    match document:
        case {"version": int() as version} if version > VERSION:
            raise _distrust(path, f"version {version} was written by a newer release; this one reads {VERSION}")
        case {
            "version": 1,
            "uuid": str() as identity,
            "created": float() | int() as created,
            "backend": (None | str()) as backend,
        } if backend is None or backend in _KEPT:
            return Identity(uuid=identity, created=float(created), backend=backend)
        case _:
            raise _distrust(path, "version, uuid, created or backend is missing or not of its kind")


def _distrust(path: str, reason: str) -> PreconditionError:
    return PreconditionError(f"{path}/{FILE} cannot be trusted, so nothing in the pool is touched: {reason}")
