"""The keys of a throw-away cluster: one CA, the API server's and its client certificate, the service-account key."""

from __future__ import annotations

import datetime as dt
import ipaddress
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LIFETIME = dt.timedelta(days=3650)
CLOCK_SKEW = dt.timedelta(hours=1)


def write_all(directory: Path, *, names: Sequence[str], addresses: Sequence[str]) -> None:
    """Write ca.crt, apiserver.{crt,key}, kubelet-client.{crt,key} and service-account.{key,pub} into a folder.

    Files that exist are kept: a control plane that starts again must still accept the tokens it signed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "complete").exists():
        return
    authority_key = _key()
    authority = _sign(_name("moorage test CA"), authority_key, issuer=None, issuer_key=authority_key, extensions=[])
    (directory / "ca.crt").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    alternatives = x509.SubjectAlternativeName(
        [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
    )
    wanted = (
        ("apiserver", _name("kube-apiserver"), [alternatives, _usage(ExtendedKeyUsageOID.SERVER_AUTH)]),
        (
            "kubelet-client",
            _name("kube-apiserver-kubelet-client", "system:masters"),
            [_usage(ExtendedKeyUsageOID.CLIENT_AUTH)],
        ),
    )
    for stem, subject, extensions in wanted:
        key = _key()
        leaf = _sign(subject, key, issuer=authority, issuer_key=authority_key, extensions=extensions)
        (directory / f"{stem}.crt").write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        _write_private(directory / f"{stem}.key", key)
    signer = _key()
    _write_private(directory / "service-account.key", signer)
    (directory / "service-account.pub").write_bytes(
        signer.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    (directory / "complete").touch()


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str, organization: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _usage(purpose: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([purpose])


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: Sequence[x509.ExtensionType],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _write_private(file: Path, key: ec.EllipticCurvePrivateKey) -> None:
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
