"""Reading kubeconfig files: which server, whom to trust, and who we are.

Several files are merged as kubectl does it: the first one that names a thing decides about it.
Relative paths are relative to the file they stand in. Exec and auth-provider plugins are refused:
an operator that runs a command of somebody's laptop to log in is not one that can be left alone.
"""

import base64
import binascii
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from moorage_operator.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Access:
    """One context of a kubeconfig, resolved; its ``repr`` shows no secret.

    Attributes:
        server: the API server's URL.
        namespace: the context's; None when it names none.
        ca: PEM of the authorities to trust; None is the system's.
        insecure: do not verify the server at all.
        server_name: the name to verify instead of the URL's host.
        token: a bearer token, or None.
        token_file: a file with the token, read again when it changes; it wins over ``token``.
        client_certificate: PEM, or None.
        client_key: PEM, or None.
    """

    server: str
    namespace: str | None
    ca: bytes | None
    insecure: bool
    server_name: str | None
    token: str | None
    token_file: Path | None
    client_certificate: bytes | None
    client_key: bytes | None

    def __repr__(self) -> str:
        return f"Access(server={self.server!r}, namespace={self.namespace!r})"


class _Files:
    """The merged content of several kubeconfigs, and where each part came from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.described = ":".join(map(str, paths))
        self.current_context = ""
        self._sections: dict[str, dict[str, tuple[dict[str, Any], Path]]] = {}
        found = [path for path in paths if path.exists()]
        if not found:
            raise SettingsError(f"kubeconfig {self.described}: there is no such file")
        for path in found:
            self._merge(path)

    def _merge(self, path: Path) -> None:
        try:
            content = yaml.safe_load(path.read_bytes()) or {}
        except OSError as error:
            raise SettingsError(f"kubeconfig {path} cannot be read: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"kubeconfig {path} is not YAML: {error}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"kubeconfig {path} is not a mapping")
        self.current_context = self.current_context or content.get("current-context") or ""
        for section, inner in (("contexts", "context"), ("clusters", "cluster"), ("users", "user")):
            merged = self._sections.setdefault(section, {})
            for entry in content.get(section) or ():
                if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                    raise SettingsError(f"kubeconfig {path}: each of {section} is a mapping with a name")
                body = entry.get(inner) or {}
                if not isinstance(body, dict):
                    raise SettingsError(f"kubeconfig {path}: {inner} of {entry['name']!r} is not a mapping")
                merged.setdefault(entry["name"], (body, path.parent))

    def entry(self, section: str, name: str) -> tuple[dict[str, Any], Path]:
        """The named entry and the directory its relative paths start at."""
        try:
            return self._sections[section][name]
        except KeyError:
            known = ", ".join(sorted(self._sections.get(section, {}))) or "none"
            raise SettingsError(f"kubeconfig {self.described}: no {name!r} in {section} (there: {known})") from None


def read(paths: Sequence[Path], *, context: str | None) -> Access:
    """Resolve one context, the current one when ``context`` is None.

    Raises:
        SettingsError: a file is missing or malformed, the context names what is not there, or the
            user logs in by a plugin.
    """
    files = _Files(paths)
    name = context or files.current_context
    if not name:
        raise SettingsError(f"kubeconfig {files.described}: it has no current-context")
    chosen, _ = files.entry("contexts", name)
    cluster, cluster_home = files.entry("clusters", chosen.get("cluster", ""))
    user, user_home = files.entry("users", chosen["user"]) if chosen.get("user") else ({}, Path())
    for plugin in ("exec", "auth-provider"):
        if plugin in user:
            raise SettingsError(
                f"kubeconfig {files.described}: user {chosen['user']!r} logs in by {plugin}, which is not supported; "
                "use a token, a token file or a client certificate"
            )
    if not cluster.get("server"):
        raise SettingsError(f"kubeconfig {files.described}: cluster {chosen['cluster']!r} has no server")
    return Access(
        server=cluster["server"],
        namespace=chosen.get("namespace"),
        ca=_bytes(cluster, "certificate-authority", home=cluster_home),
        insecure=bool(cluster.get("insecure-skip-tls-verify")),
        server_name=cluster.get("tls-server-name"),
        token=user.get("token"),
        token_file=user_home / user["tokenFile"] if user.get("tokenFile") else None,
        client_certificate=_bytes(user, "client-certificate", home=user_home),
        client_key=_bytes(user, "client-key", home=user_home),
    )


def tls_context(access: Access) -> ssl.SSLContext | None:
    """The TLS side of it; None for plain HTTP.

    Raises:
        SettingsError: a certificate or key is not one, or the two do not belong together.
    """
    if not access.server.startswith("https://"):
        return None
    try:
        context = ssl.create_default_context(cadata=access.ca.decode("ascii") if access.ca else None)
        if access.client_certificate and access.client_key:
            load_client(context, certificate=access.client_certificate, key=access.client_key)
    except (ssl.SSLError, UnicodeDecodeError) as error:
        raise SettingsError(f"kubeconfig for {access.server}: its certificates cannot be used: {error}") from error
    if access.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def load_client(context: ssl.SSLContext, *, certificate: bytes, key: bytes) -> None:
    """Give ``context`` a client certificate from memory.

    ``ssl`` reads files only; an anonymous file in memory keeps the key off every disk and works
    with a read-only root.
    """
    descriptor = os.memfd_create("client", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _bytes(entry: dict[str, Any], key: str, *, home: Path) -> bytes | None:
    """What ``key-data`` holds, else the file that ``key`` names; data wins, as in kubectl."""
    if data := entry.get(f"{key}-data"):
        try:
            return base64.b64decode(str(data), validate=True)
        except binascii.Error as error:
            raise SettingsError(f"kubeconfig: {key}-data is not base64") from error
    if named := entry.get(key):
        path = home / str(named)
        try:
            return path.read_bytes()
        except OSError as error:
            raise SettingsError(f"kubeconfig: {key} {path} cannot be read: {error.strerror}") from error
    return None
