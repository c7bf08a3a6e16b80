"""A real HAProxy in front of the fleet."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.fleet import Instance
from tests.e2e.processes import free_ports, is_free, stop_group
from trimtab import Exit, TrimtabError

BACKEND = "models"
NEUTRAL = 100
_SOCKET_PATH_MAX = 90
"""HAProxy binds under a longer name first; Linux takes 107 bytes."""
_CONFIG = """\
global
  stats socket {socket} mode 600 level admin
  maxconn 4000
  nbthread 1
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout queue 60s
  http-reuse always
frontend clients
  bind 127.0.0.1:{port}
  http-response set-header x-server %s
  default_backend {backend}
backend {backend}
  balance {balance}
{servers}
"""


@dataclass(frozen=True, slots=True)
class HAProxy:
    """A running HAProxy. `socket` is its Runtime API."""

    port: int
    socket: Path
    process: subprocess.Popen[bytes]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(self, command: str) -> str:
        """The answer of the Runtime API. Raises OSError."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            connection.sendall(command.encode() + b"\n")
            return b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    def weights(self) -> dict[str, int]:
        """The weight in force of each server, by its name."""
        rows = [line.split() for line in self.ask(f"show servers state {BACKEND}").splitlines()[1:]]
        names = rows[0][1:]
        records = [dict(zip(names, row, strict=False)) for row in rows[1:] if row]
        return {r["srv_name"]: int(r["srv_uweight"]) for r in records}


def runtime_api(directory: Path) -> Path:
    """The socket of the HAProxy that is started in `directory`; elsewhere, where its path would be longer than a socket's may be."""
    path = directory / "haproxy.sock"
    if len(str(path)) <= _SOCKET_PATH_MAX:
        return path
    return Path(tempfile.gettempdir()) / f"haproxy-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.sock"


@contextmanager
def haproxy(
    directory: Path,
    instances: Sequence[Instance],
    balance: str = "random(2)",
    port: int | None = None,
    server_options: str = "",
) -> Iterator[HAProxy]:
    """HAProxy that spreads requests over `instances` at equal weights. It checks them by TCP: a request would be load."""
    binary = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if binary is None:
        raise TrimtabError("haproxy is not installed: apt-get install haproxy", Exit.SETTINGS)
    port = port or free_ports(1)
    if not is_free(port):
        raise TrimtabError(f"port {port} is taken: choose another", Exit.LISTEN)
    config, log, control = directory / "haproxy.cfg", directory / "haproxy.log", runtime_api(directory)
    options = f"weight {NEUTRAL} check inter 1s {server_options}"
    servers = "\n".join(f"  server {i.name} {i.address} {options}" for i in instances)
    config.write_text(_CONFIG.format(socket=control, port=port, backend=BACKEND, balance=balance, servers=servers))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [binary, "-db", "-f", str(config)], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
        )
    try:
        proxy = HAProxy(port, control, process)
        _wait(proxy, log)
        yield proxy
    finally:
        stop_group(process)


def _wait(proxy: HAProxy, log: Path) -> None:
    deadline = time.monotonic() + 10
    while is_free(proxy.port) or not proxy.socket.exists():
        if proxy.process.poll() is not None or time.monotonic() > deadline:
            last = log.read_text().strip().splitlines()[-1:] or ["no message"]
            raise TrimtabError(f"HAProxy did not start: {last[0]}", Exit.LISTEN)
        time.sleep(0.02)
