"""A certificate is good for the host that it names, and for no other one: certificates made by openssl itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.agent.authority import ADDRESS
from tests.agent.fakes import until
from tests.agent.test_tls import SETTINGS, Host
from tests.collector.sender import CLOCK, Recording
from trimtab.agent.settings import Tls
from trimtab.collector.server import Collector


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class OpenSsl:
    """An authority in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ca, self._key = directory / "ca.pem", directory / "ca.key"
        new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        openssl(*new, "-subj", "/CN=authority", "-keyout", str(self._key), "-out", str(self.ca))

    def issue(self, name: str, host: str) -> Tls:
        """A pair for a host."""
        key, asked, signed = (self._directory / f"{name}.{end}" for end in ("key", "csr", "pem"))
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}")
        openssl(*new, "-addext", f"subjectAltName={host}", "-keyout", str(key), "-out", str(asked))
        sign = ("x509", "-req", "-in", str(asked), "-CA", str(self.ca), "-CAkey", str(self._key), "-CAcreateserial")
        openssl(*sign, "-copy_extensions", "copy", "-days", "1", "-out", str(signed))
        return Tls(ca=str(self.ca), certificate=str(signed), key=str(key))


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
@pytest.mark.parametrize("host", ["DNS:elsewhere.example", "IP:192.0.2.1"])
def test_a_collector_that_shows_another_hosts_certificate_gets_nothing(tmp_path: Path, host: str) -> None:
    authority = OpenSsl(tmp_path)
    shown = authority.issue("collector", host)
    collector = Collector(SETTINGS, shown, tmp_path / "collector", CLOCK, Recording())
    collector.start()
    agent = Host(tmp_path / "agent", collector.port, authority.issue("host", f"IP:{ADDRESS}"))
    try:
        agent.append(3)
        agent.publisher.start()
        until(lambda: agent.publisher._failures >= 2)
        assert agent.spool.waiting == 3
        assert agent.vitals.streams == 0
        # It is the name: with its own certificate it is trusted, without a restart.
        own = authority.issue("right", f"IP:{ADDRESS}")
        Path(shown.key).write_bytes(Path(own.key).read_bytes())
        Path(shown.certificate).write_bytes(Path(own.certificate).read_bytes())
        until(agent.delivered)
    finally:
        agent.close()
        collector.stop()
