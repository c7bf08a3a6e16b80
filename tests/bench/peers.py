"""The agents that trimtab's is held against, as Debian ships them: prometheus-node-exporter scraped once a second, and Netdata."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.bench.packages import program
from tests.e2e.processes import free_ports, holder, is_free, stop_group
from trimtab import Exit, TrimtabError

NETDATA_PORT = 19999
_READY_SECONDS = 20.0
_WARM_SECONDS = 20.0
# A process of its own: what it costs is not the exporter's.
_SCRAPER = """
import http.client, sys, time
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
due = time.monotonic()
while True:
    connection.request("GET", "/metrics")
    connection.getresponse().read()
    due += 1.0
    time.sleep(max(0.0, due - time.monotonic()))
"""


@dataclass(frozen=True, slots=True)
class Peers:
    """Both of them, running."""

    pids: dict[str, int]
    started: float

    def warm_up(self) -> None:
        """Wait until what they do once, at their start, is over: Netdata's first quarter of a minute costs four times the rest."""
        time.sleep(max(0.0, self.started + _WARM_SECONDS - time.monotonic()))


@contextmanager
def peers() -> Iterator[Peers]:
    """Both answer when this returns. Raises TrimtabError."""
    if not is_free(NETDATA_PORT):
        message = f"port {NETDATA_PORT} is taken by {holder(NETDATA_PORT)}: stop it, so that Netdata can be measured"
        raise TrimtabError(message, Exit.LISTEN)
    port = free_ports(1)
    with ExitStack() as stack:
        # Their units' own command lines, without the units: nothing outlives the measurement.
        exporter = stack.enter_context(
            _running([program("prometheus-node-exporter"), f"--web.listen-address=127.0.0.1:{port}"])
        )
        netdata = stack.enter_context(_running([program("netdata"), "-D"]))
        _wait("prometheus-node-exporter", exporter, port)
        _wait("netdata", netdata, NETDATA_PORT)
        stack.enter_context(_running([sys.executable, "-c", _SCRAPER, str(port)]))
        yield Peers({"node-exporter": exporter.pid, "netdata": netdata.pid}, time.monotonic())


def netdata_charts() -> int:
    """How many charts it fills: what its cost is for."""
    connection = http.client.HTTPConnection("127.0.0.1", NETDATA_PORT, timeout=10)
    connection.request("GET", "/api/v1/charts")
    return connection.getresponse().read().count(b'"chart_type"')


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        yield process
    finally:
        stop_group(process, 5)


def _wait(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TrimtabError(f"{name} did not start")
