"""Certificate authorities and what they issue, made by openssl; good for two days."""

import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple


class Issued(NamedTuple):
    """A certificate with its key, PEM."""

    certificate: Path
    key: Path

    def joined(self) -> str:
        """Key and certificate in one, as Java's PEM key stores have it."""
        return self.key.read_text() + self.certificate.read_text()


class Authority:
    """Who trusts it trusts what it issues."""

    def __init__(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._count = folder, name, 0
        self.certificate = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        _openssl(self.certificate, self._key, name, "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign")

    def issue(self, name: str, *, password: str | None = None) -> Issued:
        """A certificate for this machine's loopback under a common name, of both ends of a connection."""
        self._count += 1
        issued = Issued(self._folder / f"{self._name}-{self._count}.crt", self._folder / f"{self._name}-{self._count}.key")
        signed = ["-CA", str(self.certificate), "-CAkey", str(self._key)]
        alternatives = "subjectAltName=DNS:localhost,IP:127.0.0.1"
        _openssl(
            *issued, name, alternatives, "keyUsage=critical,digitalSignature", "basicConstraints=CA:FALSE", more=signed, password=password
        )
        return issued

    def asking(self, served: Issued) -> ssl.SSLContext:
        """Of a server with that certificate which lets nobody in without one of this authority."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.certificate))
        context.load_cert_chain(served.certificate, served.key)
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def _openssl(certificate: Path, key: Path, name: str, *extensions: str, more: list[str] | None = None, password: str | None = None) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2", "-subj", f"/CN={name}"]
    command += ["-noenc"] if password is None else ["-passout", f"pass:{password}"]
    # Of its own it would add basicConstraints, and the last one wins only in newer releases.
    command += ["-config", "/dev/null", "-keyout", str(key), "-out", str(certificate), *(more or [])]
    command += [word for extension in extensions for word in ("-addext", extension)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
