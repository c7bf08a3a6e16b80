"""A real collector and a real agent, started for a measurement; how long the agent took until its first window."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import stop_group
from tests.e2e.services import Installation, install
from trimtab import TrimtabError

_READY_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Running:
    """An agent that has put its first window into its spool."""

    process: subprocess.Popen[bytes]
    first_window_seconds: float
    """From exec until it said that it was ready."""
    state: Path

    def stop(self) -> None:
        """As an operator does it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(_READY_SECONDS)


@contextmanager
def collector(directory: Path) -> Iterator[Installation]:
    """One that takes what agents send, and the settings for them."""
    directory.mkdir(parents=True, exist_ok=True)
    installation = install(directory, directory / "no-haproxy")
    with installation.run("collector"):
        yield installation


@contextmanager
def agent(installation: Installation, *nginx_ports: int) -> Iterator[Running]:
    """The agent with its default settings. `nginx_ports`: where an nginx is an instance to it, as soon as there is one.

    Raises TrimtabError when it ends or is not ready in time.
    """
    module = "tests.bench.watching" if nginx_ports else "trimtab"
    command = [
        sys.executable,
        "-m",
        module,
        "--config",
        str(installation.config),
        "agent",
        "--state",
        str(installation.state),
    ]
    address = installation.state / f"notify-{time.monotonic_ns()}"
    log = installation.state / "agent.log"
    with ExitStack() as stack, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind(str(address))
        ready.settimeout(_READY_SECONDS)
        out = stack.enter_context(log.open("ab"))
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, "BENCH_PORT": ",".join(map(str, nginx_ports)), "NOTIFY_SOCKET": str(address)},
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        stack.callback(stop_group, process)
        try:
            while b"READY=1" not in ready.recv(4096):
                continue
        except TimeoutError:
            lines = log.read_text(errors="replace").splitlines() or ["it logged nothing"]
            raise TrimtabError(f"the agent has no window after {_READY_SECONDS:.0f} s: {lines[-1][:300]}") from None
        seconds = time.monotonic() - begun
        ready.close()  # nobody reads it from here on, and a full one would hold up whoever writes to it
        yield Running(process, seconds, installation.state)
