"""The certificate files of this host, which may be replaced while it runs: the last that fit together are the ones in force."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls

log = logging.getLogger(__name__)

_State = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM: the authority, this host's key, and its certificate."""

    ca: bytes
    key: bytes
    certificate: bytes


class CertificateFiles:
    """What `tls` names. Safe to use from several threads. Raises TrimtabError when the files cannot be used to begin with.

    Replace them in any order: until key and certificate belong together again, the old ones stay in force.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        self._refusal = ""
        self.renewed = 0
        """How often new files were taken up."""
        self.refused = 0
        """How often changed files were found that could not be used."""
        try:
            self._seen = _state(tls)
            self.current = _load(tls)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise TrimtabError(_words(tls, error), Exit.SETTINGS) from error

    def refresh(self) -> bool:
        """Look at the files again; whether `current` is new. Costs three calls of stat(2) while they stay as they are."""
        with self._lock:
            try:
                state = _state(self._tls)
                if state == self._seen:
                    return False
                self._seen = state
                fresh = _load(self._tls)
                if _state(self._tls) != state:  # they are being written: what was read may be of two minds
                    self._seen = ()
                    return False
            except (OSError, ssl.SSLError, ValueError) as error:
                self._refuse(_words(self._tls, error))
                return False
            self._refusal = ""
            if fresh == self.current:
                return False
            self.current = fresh
            self.renewed += 1
            log.info("tls: new certificates are in force: %s", self._tls.certificate)
            return True

    def _refuse(self, why: str) -> None:
        if why != self._refusal:
            self._refusal = why
            self.refused += 1
            log.warning("%s; the certificates from before stay in force", why)


def _state(tls: Tls) -> _State:
    """Changes whenever a file does. Raises OSError."""
    found = [Path(path).stat() for path in (tls.ca, tls.key, tls.certificate)]
    return tuple((one.st_ino, one.st_mtime_ns, one.st_size) for one in found)


def _load(tls: Tls) -> Certificates:
    """Raises OSError, and ssl.SSLError or ValueError where the files are not what they should be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=tls.ca)
    # Without a password here an encrypted key would ask for one on the terminal.
    context.load_cert_chain(tls.certificate, tls.key, password="")
    ca, key, certificate = (Path(path).read_bytes() for path in (tls.ca, tls.key, tls.certificate))
    return Certificates(ca, key, certificate)


def _words(tls: Tls, error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"tls.key {tls.key} is not the key of tls.certificate {tls.certificate}"
        if error.reason == "NO_CERTIFICATE_OR_CRL_FOUND":
            return f"tls.ca {tls.ca} holds no certificate"
        return f"tls: {tls.ca}, {tls.certificate} or {tls.key} is damaged, or no PEM file without a password"
    if isinstance(error, OSError):
        return f"tls: {error.filename or tls.certificate}: {error.strerror}"
    return f"tls: {tls.certificate}: {error}"
