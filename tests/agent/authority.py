"""An authority that signs certificates for tests: good ones, expired ones, and those of a stranger."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trimtab.agent.settings import Tls

# Of this host, and yet no loopback address to trimtab: so TLS is what it speaks there.
ADDRESS = "0.0.0.0"
_DAY = datetime.timedelta(days=1)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _pem_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption())


class Authority:
    """`pem` is its certificate."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        authority = x509.BasicConstraints(ca=True, path_length=None)
        builder = self._builder(self._name, self._key, 0.0).add_extension(authority, critical=True)
        self.pem = builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def pair(self, expired_days: float = 0.0) -> tuple[bytes, bytes]:
        """Key and certificate of a host, PEM; the certificate ended `expired_days` ago, or ends in ten days."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))])
        builder = self._builder(_name("host"), key, expired_days).add_extension(names, critical=False)
        return _pem_key(key), builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, directory: Path, expired_days: float = 0.0) -> Tls:
        """Files of a host, with this authority's certificate; those that are there are replaced."""
        directory.mkdir(exist_ok=True)
        tls = Tls(
            ca=str(directory / "ca.pem"), certificate=str(directory / "host.pem"), key=str(directory / "host.key")
        )
        key, certificate = self.pair(expired_days)
        for path, content in ((tls.ca, self.pem), (tls.key, key), (tls.certificate, certificate)):
            Path(path).write_bytes(content)
        return tls

    def _builder(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, expired_days: float
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        end = now - expired_days * _DAY if expired_days else now + 10 * _DAY
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(end - 20 * _DAY)
            .not_valid_after(end)
        )
