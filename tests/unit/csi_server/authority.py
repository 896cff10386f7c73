"""A throw-away CA, and the files of a Secret mount that its certificates come in."""

import dataclasses
import datetime as dt
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclasses.dataclass(frozen=True)
class Leaf:
    certificate: bytes
    key: bytes


class Authority:
    """A CA that signs whatever a test asks for."""

    def __init__(self, name: str = "test CA") -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self._name, self._key, alternatives=(), authority=True)

    def leaf(self, *names: str, valid: bool = True) -> Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        certificate = self._sign(subject, key, alternatives=names, authority=False, valid=valid)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Leaf(certificate=certificate, key=private)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        alternatives: tuple[str, ...],
        authority: bool,
        valid: bool = True,
    ) -> bytes:
        now = dt.datetime.now(dt.UTC)
        end = now + dt.timedelta(days=1) if valid else now - dt.timedelta(minutes=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if alternatives:
            names = [x509.DNSName(name) for name in alternatives]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


class SecretMount:
    """A directory that the kubelet fills: files are links through ``..data``, which is swapped at once."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._generation = 0

    def put(self, *, ca: bytes, leaf: Leaf) -> None:
        self._generation += 1
        name = f"..{self._generation:04}"
        folder = self.directory / name
        folder.mkdir(parents=True)
        contents = {"ca.crt": ca, "tls.crt": leaf.certificate, "tls.key": leaf.key}
        for file, content in contents.items():
            (folder / file).write_bytes(content)
        link = self.directory / "..data"
        before = link.readlink() if link.is_symlink() else None
        (self.directory / "..new").symlink_to(name)
        (self.directory / "..new").rename(link)
        for file in contents:
            if not (self.directory / file).is_symlink():
                (self.directory / file).symlink_to(Path("..data") / file)
        if before is not None:
            shutil.rmtree(self.directory / before)
