"""A real Envoy, with the bootstrap of docs/routing.md but for its ports."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.actuator.conftest import free_port, requests, until
from trimtab.agent.settings import Tls

ROUTING = Path(__file__).resolve().parents[2] / "docs" / "routing.md"
_FLAGS = ["--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id", "--disable-hot-restart"]


def bootstrap() -> str:
    """As the docs have it."""
    [text] = re.findall(r"^```yaml\n(.*?)^```", ROUTING.read_text(), re.DOTALL | re.MULTILINE)
    return str(text)


def with_tls(tls: Tls) -> dict[str, str]:
    """The change that the docs want where Envoy is on another host."""
    [lines] = re.findall(r"^  ```yaml\n(.*?)^  ```", ROUTING.read_text(), re.DOTALL | re.MULTILINE)
    for name, path in (("host.pem", tls.certificate), ("host.key", tls.key), ("ca.pem", tls.ca)):
        assert f"/etc/envoy/{name}" in lines
        lines = lines.replace(f"/etc/envoy/{name}", path)
    return {"- name: trimtab\n": f"- name: trimtab\n{lines}"}


class Envoy:
    """Listens on `port`, and asks on `xds_port`. `changes`: what is otherwise than in the docs."""

    def __init__(self, directory: Path, xds_port: int, changes: dict[str, str] | None = None) -> None:
        program = shutil.which("envoy")
        if not program:
            pytest.skip("no envoy here: `make test` brings one")
        text = bootstrap()
        self.port = free_port()
        swift = {"port_value: 10000": f"port_value: {self.port}", "port_value: 7475": f"port_value: {xds_port}"}
        swift |= {"interval: 1s,": "interval: 0.1s,", "unhealthy_threshold: 2": "unhealthy_threshold: 1"}
        for old, new in (swift | (changes or {})).items():
            assert old in text, f"the docs no longer have {old}"
            text = text.replace(old, new)
        file = directory / f"envoy-{self.port}.yaml"
        file.write_text(text)
        self._command = [program, "-c", str(file), *_FLAGS]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def serves(self) -> bool:
        try:
            return requests(self.port, 1, threads=1).keys().isdisjoint({"503", "404"})
        except OSError:
            return False

    def wait(self) -> Envoy:
        until(self.serves, 15, "Envoy answers")
        return self
