"""Ports and process groups of this machine."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from contextlib import suppress

import psutil

from trimtab import Exit, TrimtabError


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row, below those that the kernel gives to clients."""
    draw = random.Random(os.getpid() ^ time.monotonic_ns())
    for _ in range(1000):
        first = draw.randrange(20_000, 32_000 - count)
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise TrimtabError(f"no {count} free ports in a row between 20000 and 32000", Exit.LISTEN)


def is_free(port: int) -> bool:
    """Whether one could listen there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def stop_group(process: subprocess.Popen[bytes], seconds: float = 8.0) -> None:
    """End the process group that `process` leads: politely, then not."""
    deadline = time.monotonic() + seconds
    for number in (signal.SIGCONT, signal.SIGTERM):
        signal_group(process.pid, number)
    while time.monotonic() < deadline and members(process.pid):
        process.poll()
        time.sleep(0.05)
    signal_group(process.pid, signal.SIGKILL)
    process.wait()
    while members(process.pid):
        time.sleep(0.01)


def members(group: int) -> list[psutil.Process]:
    """Processes of the group, without those that only wait for their parent to take note of their end."""
    found = []
    for pid in psutil.pids():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(pid) == group and (process := psutil.Process(pid)).status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def signal_group(group: int, number: signal.Signals) -> None:
    """To every process of the group; to none if it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def holder(port: int) -> str:
    """Who listens at a port, in words."""
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port == port and connection.pid:
            with suppress(psutil.Error):
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return "another process"
