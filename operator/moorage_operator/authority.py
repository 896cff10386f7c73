"""Our own certificate authority, as a function of what is stored and what time it is.

``plan`` looks at the contents of the two Secrets and says what they should hold and why, or that
all is well. It reads no clock and writes nothing, so every age and every kind of damage is a test
case. A plan carried out and looked at again needs no plan: that is what makes it safe to be
interrupted anywhere.

An authority lives ten years, a leaf ninety days, renewed after two thirds. An authority is replaced
in three steps, so that nobody ever meets a certificate of an authority it has not heard of:

1. a year before its end a new authority is made and added to every ``ca.crt`` beside the old one;
2. ``SPREAD`` later, when the kubelets have brought the new ``ca.crt`` to every node, it signs, and
   the leaves are made anew by it;
3. the old one leaves ``ca.crt`` when it ends.

Imports ``cryptography`` (some 10 MB): import this module only where certificates are judged or made.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moorage_csi.contract import NODE_SERVER_NAME, OPERATOR_CLIENT_NAME

AUTHORITY_LIFE: Final = timedelta(days=3650)
LEAF_LIFE: Final = timedelta(days=90)
REPLACE_BEFORE: Final = timedelta(days=365)
SPREAD: Final = timedelta(days=1)
BACKDATE: Final = timedelta(minutes=5)
"""Certificates begin a little before they are made, for nodes whose clocks are behind."""

MAX_AUTHORITIES: Final = 4
"""More in one ``ca.crt`` come from damage, not from us."""

UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What damaged or foreign certificates and keys make the library raise."""

CA_CRT: Final = "ca.crt"
CA_KEY: Final = "ca.key"
NEXT_KEY: Final = "next.key"
CLIENT_CRT: Final = "client.crt"
CLIENT_KEY: Final = "client.key"
TLS_CRT: Final = "tls.crt"
TLS_KEY: Final = "tls.key"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Contents:
    """What the two Secrets hold; an absent Secret holds nothing.

    Attributes:
        authority: ``ca.crt ca.key client.crt client.key``, and ``next.key`` while one authority follows another.
        node: ``ca.crt tls.crt tls.key``.
    """

    authority: Mapping[str, bytes] = field(default_factory=dict)
    node: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan:
    """What the Secrets should hold.

    Attributes:
        contents: all of it, whether changed or not.
        reasons: one sentence for each change; empty when nothing is to be done.
    """

    contents: Contents
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True, repr=False)
class _Issuer:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class _Role:
    """One leaf: the name it speaks for, and what it may be used for."""

    name: str
    usage: x509.ObjectIdentifier


_CLIENT: Final = _Role(name=OPERATOR_CLIENT_NAME, usage=ExtendedKeyUsageOID.CLIENT_AUTH)
_NODE: Final = _Role(name=NODE_SERVER_NAME, usage=ExtendedKeyUsageOID.SERVER_AUTH)


def plan(held: Contents, *, now: datetime) -> Plan:
    """What the Secrets should hold at ``now`` (aware of its time zone), given what they hold."""
    reasons: list[str] = []
    issuer, following, bundle = _authorities(held.authority, now=now, reasons=reasons)
    ca_crt = b"".join(_pem(certificate) for certificate in bundle)
    if ca_crt != held.authority.get(CA_CRT) and not reasons:
        reasons.append("the list of authorities is put in order")
    client = _leaf(
        _CLIENT, held.authority.get(CLIENT_CRT), held.authority.get(CLIENT_KEY), issuer, now=now, reasons=reasons
    )
    node = _leaf(_NODE, held.node.get(TLS_CRT), held.node.get(TLS_KEY), issuer, now=now, reasons=reasons)
    if ca_crt != held.node.get(CA_CRT):
        reasons.append("the nodes are given the list of authorities")
    authority = {CA_CRT: ca_crt, CA_KEY: _key_pem(issuer.key), CLIENT_CRT: client[0], CLIENT_KEY: client[1]}
    if following is not None:
        authority[NEXT_KEY] = _key_pem(following.key)
    if not reasons:
        return Plan(contents=held, reasons=())
    return Plan(
        contents=Contents(authority=authority, node={CA_CRT: ca_crt, TLS_CRT: node[0], TLS_KEY: node[1]}),
        reasons=tuple(reasons),
    )


def _authorities(
    held: Mapping[str, bytes], *, now: datetime, reasons: list[str]
) -> tuple[_Issuer, _Issuer | None, list[x509.Certificate]]:
    """Who signs, who follows, and whom to trust (the signer first)."""
    known = [one for one in _certificates(held.get(CA_CRT, b"")) if _is_authority(one)]
    alive = [certificate for certificate in known if now < certificate.not_valid_after_utc][:MAX_AUTHORITIES]
    if len(alive) < len(known):
        reasons.append("an authority that has ended is no longer trusted")
    issuer = _issuer(alive, held.get(CA_KEY))
    following = _issuer(alive, held.get(NEXT_KEY))
    if issuer is None:
        reasons.append(f"there is no usable authority ({_authority_fault(held, known, alive)}): a new one is made")
        issuer, following = _new_authority(now), None
    elif following is None and NEXT_KEY in held:
        reasons.append("the following authority's key fits no certificate: it is dropped")
    if following is None and now >= issuer.certificate.not_valid_after_utc - REPLACE_BEFORE:
        reasons.append(
            f"the authority ends on {issuer.certificate.not_valid_after_utc:%Y-%m-%d}: its successor is made"
        )
        following = _new_authority(now)
    elif following is not None and now >= following.certificate.not_valid_before_utc + BACKDATE + SPREAD:
        reasons.append("the following authority is known everywhere: it signs from now on")
        issuer, following = following, None
    ours = [one.certificate for one in (issuer, following) if one is not None]
    return issuer, following, ours + [other for other in alive if other not in ours]


def _authority_fault(held: Mapping[str, bytes], known: list[x509.Certificate], alive: list[x509.Certificate]) -> str:
    if not held:
        return "none was made yet"
    if not known:
        return f"{CA_CRT} holds no certificate"
    if not alive:
        return f"all of {CA_CRT} has ended"
    return f"{CA_KEY} is not the key of a certificate in {CA_CRT}"


def _issuer(alive: list[x509.Certificate], key_pem: bytes | None) -> _Issuer | None:
    key = _private_key(key_pem)
    if key is None:
        return None
    return next((_Issuer(one, key) for one in alive if _belongs(one, key)), None)


def _belongs(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    try:
        return certificate.public_key() == key.public_key()
    except UNREADABLE:
        return False


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(certificate)
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, x509.ExtensionNotFound, *UNREADABLE):
        return False


def _leaf(
    role: _Role,
    certificate_pem: bytes | None,
    key_pem: bytes | None,
    issuer: _Issuer,
    *,
    now: datetime,
    reasons: list[str],
) -> tuple[bytes, bytes]:
    """The leaf as it is when it is good, else a new one; certificate and key as PEM."""
    fault = _leaf_fault(role, certificate_pem, key_pem, issuer, now=now)
    if fault is None and certificate_pem is not None and key_pem is not None:
        return certificate_pem, key_pem
    reasons.append(f"the certificate of {role.name} {fault}: a new one is made")
    return _new_leaf(role, issuer, now=now)


def _leaf_fault(
    role: _Role, certificate_pem: bytes | None, key_pem: bytes | None, issuer: _Issuer, *, now: datetime
) -> str | None:
    """What is wrong with a stored leaf, to follow on "the certificate of NAME"; None when it is good."""
    if not certificate_pem or not key_pem:
        return "is not there"
    certificate = next(iter(_certificates(certificate_pem)), None)
    if certificate is None:
        return "cannot be read"
    key = _private_key(key_pem)
    if key is None or not _belongs(certificate, key):
        return "and its key do not belong together"
    return _purpose_fault(role, certificate, issuer) or _age_fault(certificate, now=now)


def _purpose_fault(role: _Role, certificate: x509.Certificate, issuer: _Issuer) -> str | None:
    try:
        certificate.verify_directly_issued_by(issuer.certificate)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (InvalidSignature, *UNREADABLE):
        return "is not signed by the present authority"
    except x509.ExtensionNotFound:
        return "does not say what it is for"
    if names.get_values_for_type(x509.DNSName) != [role.name] or role.usage not in usage:
        return "is made for something else"
    return None


def _age_fault(certificate: x509.Certificate, *, now: datetime) -> str | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < begin:
        return f"begins only on {begin:%Y-%m-%d}"
    if now >= begin + (end - begin) * 2 / 3:
        return f"ends on {end:%Y-%m-%d}"
    return None


def _new_authority(now: datetime) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # The serial number in the name keeps two authorities in one ca.crt apart.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"moorage authority {serial:x}"[:64])])
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _begun(subject=name, issuer=name, key=key, serial=serial, now=now, end=now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return _Issuer(certificate, key)


def _new_leaf(role: _Role, issuer: _Issuer, *, now: datetime) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begun(
            subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role.name)]),
            issuer=issuer.certificate.subject,
            key=key,
            serial=x509.random_serial_number(),
            now=now,
            end=min(now + LEAF_LIFE, issuer.certificate.not_valid_after_utc),
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(role.name)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([role.usage]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )
    return _pem(certificate), _key_pem(key)


def _begun(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    serial: int,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _certificates(pem: bytes) -> list[x509.Certificate]:
    """All certificates in it; none when it is damaged anywhere, which the library notices only on reading."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        for one in certificates:
            _ = (one.subject, one.issuer, one.extensions, one.public_key())
            _ = (one.version, one.not_valid_before_utc, one.not_valid_after_utc, one.signature_hash_algorithm)
    except UNREADABLE:
        return []
    return certificates


def _private_key(pem: bytes | None) -> ec.EllipticCurvePrivateKey | None:
    try:
        key = serialization.load_pem_private_key(pem or b"", password=None)
    except UNREADABLE:
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey) else None


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
