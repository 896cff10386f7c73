"""The certificates of the TCP server: mutual TLS, and new ones taken up without a restart.

gRPC asks before every handshake whether there is something newer, and keeps what it has where we
answer "no". The files are compared by identity and time, because a Secret's mount replaces all of
them at once by swapping the link ``..data``. Only a set that fits together is handed on: the key must
be the certificate's, and the CA must be readable. A half-written or wrong set is reported once and the
old one stays.
"""

import asyncio
import dataclasses
import logging
import os
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

_log = logging.getLogger(__name__)

CA_FILE: Final = "ca.crt"
CERTIFICATE_FILE: Final = "tls.crt"
KEY_FILE: Final = "tls.key"
_FILES: Final = (CA_FILE, CERTIFICATE_FILE, KEY_FILE)

_LOOK_SECONDS: Final = 1.0
_SWAPPED: Final = "..data"
"""The link to the current set in a mount of a Secret."""

Mark = tuple[tuple[int, int, int, int], ...]


class CertificatesError(Exception):
    """The directory holds no set of certificates that can be used; the message says why."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSet:
    """One set that fits together, as PEM, and the mark by which a newer one is told apart."""

    ca: bytes
    certificate: bytes
    key: bytes = dataclasses.field(repr=False)
    mark: Mark

    @property
    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The set as gRPC wants it."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], root_certificates=self.ca)


def mark_of(directory: Path) -> Mark:
    """Return what tells this set of files from any other, without reading them.

    Raises:
        CertificatesError: a file is missing.
    """
    marks = []
    for name in _FILES:
        try:
            status = (directory / name).stat()
        except OSError as error:
            raise CertificatesError(f"{directory / name}: {error.strerror}") from error
        marks.append((status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(marks)


def read(directory: Path) -> CertificateSet:
    """Read one set from one moment, and check that it fits together.

    Raises:
        CertificatesError: a file is missing or unreadable, or they do not belong together.
    """
    mark = mark_of(directory)
    # Resolved once: a swap of the link between two reads would give us a certificate and another one's key.
    place = Path(os.path.realpath(directory / _SWAPPED)) if (directory / _SWAPPED).is_dir() else directory
    try:
        ca, certificate, key = ((place / name).read_bytes() for name in _FILES)
    except OSError as error:
        raise CertificatesError(f"{error.filename}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(place / CERTIFICATE_FILE, place / KEY_FILE)
    except (OSError, ValueError) as error:
        raise CertificatesError(f"{CERTIFICATE_FILE} and {KEY_FILE} in {directory} do not fit: {error}") from error
    try:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as error:
        raise CertificatesError(f"{CA_FILE} in {directory} holds no certificate: {error}") from error
    if mark_of(directory) != mark:
        raise CertificatesError(f"the files in {directory} are being replaced")
    return CertificateSet(ca=ca, certificate=certificate, key=key, mark=mark)


class Certificates:
    """The newest usable set in a directory.

    ``fetch`` is called by gRPC's own threads, one handshake each, hence the lock.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._used: Mark | None = None
        self._refused: Mark | None = None

    async def wait(self, *, waiting: Callable[[str], None], every: float = _LOOK_SECONDS) -> CertificateSet:
        """Return the first usable set, looking every ``every`` seconds for as long as it takes.

        ``waiting`` is told the reason each time it changes.
        """
        told = ""
        while True:
            try:
                first = read(self._directory)
            except CertificatesError as error:
                if (reason := str(error)) != told:
                    told = reason
                    _log.warning("waiting for certificates", extra={"reason": reason})
                    waiting(reason)
                await asyncio.sleep(every)
            else:
                self._used = first.mark
                return first

    def credentials(self, first: CertificateSet) -> grpc.ServerCredentials:
        """Return credentials that begin with ``first``, demand a client's certificate and follow the files."""
        return grpc.dynamic_ssl_server_credentials(
            first.configuration,
            self.fetch,  # type: ignore[arg-type] # the stub forgets that None means "nothing newer"
            require_client_authentication=True,
        )

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the newer set where there is one, ``None`` to go on with the present one. Never raises.

        A set that cannot be used is reported once, and looked at again only when its files have changed.
        """
        with self._lock:
            mark: Mark = ()
            try:
                mark = mark_of(self._directory)
                if mark in (self._used, self._refused):
                    return None
                newer = read(self._directory)
            except CertificatesError as error:
                if mark != self._refused:
                    _log.warning(
                        "new certificates cannot be used: keeping the present ones", extra={"reason": str(error)}
                    )
                self._refused = mark
                return None
            self._used, self._refused = newer.mark, None
        _log.info("took up new certificates", extra={"directory": str(self._directory)})
        return newer.configuration
