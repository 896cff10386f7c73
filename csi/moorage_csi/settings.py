"""What the program is told: flags, the environment and the pools file, checked once and then frozen.

A mistake ends the program before it has touched anything, with a message that names the flag or the
place in the file, the value, and what is allowed.
"""

import argparse
import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from moorage_csi import contract, quantity
from moorage_csi.volumes.pool import PoolSettings

_ENVIRONMENT_PREFIX: Final = "MOORAGE_"
_POOL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_PERCENT: Final = re.compile(r"(?P<number>[0-9]{1,3}(?:\.[0-9]{1,6})?)%", re.ASCII)
_NODE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", re.ASCII)
_POOL_KEYS: Final = ("name", "path", "reserve", "overcommit", "shared", "trashRetention", "archiveRetention")
_DURATION: Final = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhd])")
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_SOCKET_PATH: Final = 107
"""Bytes of a unix socket's path: sun_path has 108 with the ending NUL."""

_LOG_LEVELS: Final = ("debug", "info", "warning", "error")
_LOG_FORMATS: Final = ("text", "json")


class SettingsError(Exception):
    """A flag, an environment variable or the pools file is wrong; the message says which and how."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A TCP address to listen on. Port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that the program is told. ``None`` where something is switched off.

    ``imports`` are the directories in which lies what may be imported; ``max_volumes`` 0 is no limit.
    """

    endpoint: Path
    listen: Address | None
    tls_dir: Path
    registration_dir: Path | None
    kubelet_endpoint: str
    node_name: str
    pools: tuple[PoolSettings, ...]
    imports: tuple[str, ...] = ()
    max_volumes: int = 0
    metrics_listen: Address | None
    kubelet_dir: Path
    log_level: str
    log_format: str


def parser() -> argparse.ArgumentParser:
    """Return the flags with their meaning; the values stay text until ``load`` reads them."""
    flags = argparse.ArgumentParser(
        prog="moorage-csi",
        description="The node program of Moorage: makes, mounts and removes volumes in the pools of its node.",
        epilog="Every flag is also read from the environment: --node-name from MOORAGE_NODE_NAME. A flag wins.",
        allow_abbrev=False,
    )
    for name, default, meaning in _FLAGS:
        flags.add_argument(
            f"--{name}", metavar=name.rpartition("-")[2].upper(), help=f"{meaning} (default: {default!r})"
        )
    return flags


_FLAGS: Final = (
    ("endpoint", "unix:///csi/csi.sock", "unix socket that serves the kubelet: Identity, Controller and Node"),
    ("listen", f"0.0.0.0:{contract.CSI_PORT}", "address that serves the operator over mutual TLS; empty: none"),
    ("tls-dir", "/tls", "directory with ca.crt, tls.crt and tls.key, read again when they change"),
    ("registration-dir", "/registration", "the kubelet's directory of plugin sockets; empty: do not register"),
    (
        "kubelet-endpoint",
        f"/var/lib/kubelet/plugins/{contract.DRIVER_NAME}/csi.sock",
        "path of the endpoint as the kubelet sees it",
    ),
    ("node-name", "", "name of this Kubernetes node; needed"),
    (
        "pools-file",
        "/etc/moorage/pools.json",
        "JSON file that lists the pools, of which the first is the default, and what may be imported",
    ),
    ("max-volumes", "0", "how many volumes the scheduler may put on this node; 0: no limit"),
    ("metrics-listen", "0.0.0.0:9741", "address of /metrics, /healthz and /readyz; empty: none"),
    ("kubelet-dir", "/var/lib/kubelet", "the kubelet's root directory; volumes are published beneath it only"),
    ("log-level", "info", "one of " + ", ".join(_LOG_LEVELS)),
    ("log-format", "text", "one of " + ", ".join(_LOG_FORMATS)),
)


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Read flags, then the environment, then defaults; then the pools file.

    Raises:
        SettingsError: something is wrong.
        SystemExit: ``--help`` was asked for, or a flag is unknown (argparse has said so).
    """
    given = vars(parser().parse_args(arguments))
    texts: dict[str, str] = {}
    for name, default, _ in _FLAGS:
        key = name.replace("-", "_")
        flag = given[key]
        texts[name] = flag if flag is not None else environment.get(_ENVIRONMENT_PREFIX + key.upper(), default)
    kubelet_dir = _absolute("kubelet-dir", texts["kubelet-dir"])
    file = Path(texts["pools-file"])
    document = _document(file)
    pools = _pools(document, file)
    return Settings(
        endpoint=_socket_path("endpoint", texts["endpoint"]),
        listen=_address("listen", texts["listen"]),
        tls_dir=_absolute("tls-dir", texts["tls-dir"]),
        registration_dir=_absolute("registration-dir", texts["registration-dir"])
        if texts["registration-dir"]
        else None,
        kubelet_endpoint=str(_absolute("kubelet-endpoint", texts["kubelet-endpoint"])),
        node_name=_node_name(texts["node-name"]),
        pools=pools,
        imports=_imports(document, pools, kubelet_dir, file),
        max_volumes=_count("max-volumes", texts["max-volumes"]),
        metrics_listen=_address("metrics-listen", texts["metrics-listen"]),
        kubelet_dir=kubelet_dir,
        log_level=_word("log-level", texts["log-level"], _LOG_LEVELS),
        log_format=_word("log-format", texts["log-format"], _LOG_FORMATS),
    )


def _word(flag: str, text: str, allowed: Sequence[str]) -> str:
    if text not in allowed:
        raise SettingsError(f"--{flag} {text!r} is unknown; allowed are {', '.join(allowed)}")
    return text


def _count(flag: str, text: str) -> int:
    if _COUNT.fullmatch(text) is None:
        raise SettingsError(f"--{flag} {text!r} is not a number from 0")
    return int(text)


def _absolute(flag: str, text: str) -> Path:
    if (reason := _unusable(text)) is not None:
        raise SettingsError(f"--{flag} {text!r} {reason}")
    return Path(_normal(text))


def _normal(text: str) -> str:
    """Return the path without doubled or trailing slashes; POSIX keeps two leading ones, which nobody means."""
    return "/" + os.path.normpath(text).lstrip("/")


def _unusable(text: str) -> str | None:
    """Return why ``text`` is not a path that can be meant, or ``None``."""
    if not text.startswith("/"):
        return "is not an absolute path"
    if "\0" in text or "\n" in text:
        return "contains a NUL or a line break"
    if ".." in text.split("/"):
        return "contains '..'; write the path that is meant"
    return None


def _socket_path(flag: str, text: str) -> Path:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme != "unix":
        raise SettingsError(f"--{flag} {text!r} is not a unix socket; write unix:///absolute/path")
    path = _absolute(flag, rest)
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise SettingsError(f"--{flag} {text!r} is longer than the {_MAX_SOCKET_PATH} bytes of a unix socket's path")
    return path


def _address(flag: str, text: str) -> Address | None:
    if not text:
        return None
    host, separator, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not bare or (":" in bare) != (bare != host):
        raise SettingsError(f"--{flag} {text!r} is not an address; write host:port, or [address]:port for IPv6")
    if not (port.isascii() and port.isdigit() and int(port) <= 65535):  # noqa: PLR2004 - TCP's largest port
        raise SettingsError(f"--{flag} {text!r} has no port between 0 and 65535")
    return Address(host=bare, port=int(port))


def _node_name(text: str) -> str:
    if not text:
        raise SettingsError("--node-name is needed: the name of this Kubernetes node (in a pod: spec.nodeName)")
    if _NODE_NAME.fullmatch(text) is None:
        raise SettingsError(f"--node-name {text!r} is not a name that a Kubernetes node can have")
    return text


def read_pools(path: Path) -> tuple[PoolSettings, ...]:
    """Read the pools of the pools file.

    Raises:
        SettingsError: it cannot be read, is not JSON of the shape we know, or contradicts itself.
    """
    return _pools(_document(path), path)


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"the pools file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"the pools file {path} is not JSON: {error}") from error
    shape = {"pools": list, "imports": list}
    if (
        not isinstance(document, dict)
        or "pools" not in document
        or any(not isinstance(value, shape.get(key, ())) for key, value in document.items())
    ):
        raise SettingsError(
            f'the pools file {path} must hold {{"pools": [...]}}, with or without "imports": [...], and nothing else'
        )
    return document


def _pools(document: Mapping[str, Any], path: Path) -> tuple[PoolSettings, ...]:
    if not document["pools"]:
        raise SettingsError(f"the pools file {path} names no pool; at least one is needed")
    pools = tuple(_pool(entry, f"{path}: pools[{index}]") for index, entry in enumerate(document["pools"]))
    _contradictions(pools, path)
    return pools


def _pool(entry: Any, place: str) -> PoolSettings:
    if not isinstance(entry, dict):
        raise SettingsError(f"{place} must be an object with the keys {', '.join(_POOL_KEYS)}")
    if unknown := sorted(set(entry) - set(_POOL_KEYS)):
        raise SettingsError(f"{place} has the unknown key {unknown[0]!r}; allowed are {', '.join(_POOL_KEYS)}")
    name = entry.get("name")
    if not isinstance(name, str) or _POOL_NAME.fullmatch(name) is None:
        raise SettingsError(f"{place}.name {name!r} must be 1 to 63 of a-z, 0-9 and '-', with no '-' at either end")
    path = entry.get("path")
    if not isinstance(path, str) or (reason := _unusable(path)) is not None:
        raise SettingsError(f"{place}.path {path!r} {reason if isinstance(path, str) else 'is not an absolute path'}")
    if _normal(path) == "/":
        raise SettingsError(f"{place}.path '/' is the whole machine; name a directory of its own for the pool")
    overcommit = entry.get("overcommit", 1.0)
    if isinstance(overcommit, bool) or not isinstance(overcommit, int | float) or not 1 <= overcommit < math.inf:
        raise SettingsError(f"{place}.overcommit {overcommit!r} must be a number of at least 1")
    shared = entry.get("shared", False)
    if not isinstance(shared, bool):
        raise SettingsError(f"{place}.shared {shared!r} must be true or false")
    reserve_bytes, reserve_percent = _reserve(entry.get("reserve", 0), place)
    return PoolSettings(
        name=name,
        path=_normal(path),
        reserve_bytes=reserve_bytes,
        reserve_percent=reserve_percent,
        overcommit=float(overcommit),
        shared=shared,
        trash_retention=_seconds(entry.get("trashRetention", "0s"), f"{place}.trashRetention"),
        archive_retention=_seconds(entry.get("archiveRetention", "0s"), f"{place}.archiveRetention") or None,
    )


def _seconds(value: Any, place: str) -> float:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise SettingsError(f"{place} {value!r} must be a time like '30m', '24h' or '7d'")
    return float(int(match["number"]) * _UNITS[match["unit"]])


def _reserve(value: Any, place: str) -> tuple[int, float]:
    """Return the reserve as bytes and as a percentage, one of which is 0."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)) is not None:
        percent = float(match["number"])
        if percent >= 100:  # noqa: PLR2004 - nothing would be left
            raise SettingsError(f"{place}.reserve {value!r} leaves no room for volumes; it must be below 100%")
        return 0, percent
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SettingsError(f"{place}.reserve {value!r} must be a size like '10Gi' or a percentage like '5%'")
    try:
        size = quantity.parse(str(value))
    except quantity.QuantityError as error:
        raise SettingsError(f"{place}.reserve: {error}, or a percentage like '5%'") from error
    if size < 0:
        raise SettingsError(f"{place}.reserve {value!r} is negative")
    return size, 0.0


def _contradictions(pools: Sequence[PoolSettings], file: Path) -> None:
    names: set[str] = set()
    for pool in pools:
        if pool.name in names:
            raise SettingsError(f"{file}: two pools have the name {pool.name!r}")
        names.add(pool.name)
    for index, pool in enumerate(pools):
        for other in pools[index + 1 :]:
            one, two = PurePosixPath(pool.path), PurePosixPath(other.path)
            if one.is_relative_to(two) or two.is_relative_to(one):
                raise SettingsError(
                    f"{file}: the pools {pool.name!r} and {other.name!r} overlap: {one} and {two}; "
                    "each needs a directory of its own"
                )


def _imports(
    document: Mapping[str, Any], pools: Sequence[PoolSettings], kubelet_dir: Path, file: Path
) -> tuple[str, ...]:
    """Return the directories in which lies what may be imported: never a pool, nor what the kubelet has."""
    found: list[str] = []
    taken = {f"pool {pool.name!r}": pool.path for pool in pools} | {"the kubelet's directory": str(kubelet_dir)}
    for index, text in enumerate(document.get("imports", [])):
        place = f"{file}: imports[{index}]"
        if not isinstance(text, str) or (reason := _unusable(text)) is not None:
            raise SettingsError(f"{place} {text!r} {reason if isinstance(text, str) else 'is not an absolute path'}")
        path = PurePosixPath(_normal(text))
        for owner, other in taken.items():
            if path.is_relative_to(other) or PurePosixPath(other).is_relative_to(path):
                raise SettingsError(
                    f"{place} {text!r} overlaps with {owner} ({other}): what lies there is not to be imported; name the "
                    "directories that are"
                )
        found.append(str(path))
    return tuple(dict.fromkeys(found))
