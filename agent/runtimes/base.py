"""What a serving runtime is to trimtab. One file below agent/runtimes, which ends with `RUNTIME = TheClass`."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass
from typing import Protocol

from trimtab.agent import procfs
from trimtab.agent.registry import Instance
from trimtab.agent.wire.columns import TEXT_MAX

FILE_BYTES_MAX = 64 << 10
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What "every address" is called when it is listened on, and the loopback address that then reaches it."""


class NoAnswer(Exception):
    """The runtime's own API did not answer in time, or not as its protocol has it."""


@dataclass(frozen=True, slots=True)
class Worker:
    """One process of the runtime that runs a model."""

    id: str
    """Stays the same when the process is replaced."""
    pid: int | None
    ready: bool


@dataclass(frozen=True, slots=True)
class Vitals:
    """What a runtime says of itself. None is unknown. The totals count since the runtime started."""

    models: tuple[str, ...] | None = None
    """Sorted."""
    workers: tuple[Worker, ...] | None = None
    queue_depth: int | None = None
    """Requests that wait for a worker."""
    predictions: float | None = None
    inference_seconds: float | None = None
    """Total over all predictions, without the queue."""
    queue_seconds: float | None = None
    """Total over all predictions."""
    errors: float | None = None
    """Answers 5xx."""
    client_errors: float | None = None
    """Answers 4xx."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process, and what can be seen of it from outside. Whatever reads more than its command raises OSError."""

    pid: int
    started: float
    command: tuple[str, ...]

    def environment(self, name: str) -> str | None:
        """A variable of its environment, as it was when it started."""
        prefix = f"{name}="
        found = (v for v in procfs.read(f"/proc/{self.pid}/environ").split("\0") if v.startswith(prefix))
        return next(found, prefix).removeprefix(prefix) or None

    def text(self, path: str, follow: bool = True) -> str:
        """A regular file under the name that the process knows it by, its first 64 KiB. `follow`: also if it is a link."""
        seen = f"/proc/{self.pid}/root{path}" if path.startswith("/") else f"/proc/{self.pid}/cwd/{path}"
        # Not to wait for ever where the name is a pipe's.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(seen, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(f"{path} is no regular file")
            return os.read(descriptor, FILE_BYTES_MAX).decode(errors="replace")
        finally:
            os.close(descriptor)

    def netns(self) -> int:
        """Inode of its network namespace."""
        return os.stat(f"/proc/{self.pid}/ns/net").st_ino  # noqa: PTH116

    def addresses(self, ipv6: bool) -> set[str]:
        """The addresses of its network namespace."""
        found = procfs.local_ipv4(procfs.read(f"/proc/{self.pid}/net/fib_trie"))
        if ipv6:
            found |= procfs.global_ipv6(procfs.read(f"/proc/{self.pid}/net/if_inet6"))
        return found

    def listeners(self) -> dict[int, str]:
        """The address it listens on, by port: only sockets that this process itself holds."""
        held = set()
        with os.scandir(f"/proc/{self.pid}/fd") as entries:
            for entry in entries:
                target = os.readlink(entry.path)  # noqa: PTH115
                if target.startswith("socket:["):
                    held.add(int(target[8:-1]))
        out: dict[int, str] = {}
        for table in ("tcp6", "tcp"):
            try:
                sockets = procfs.listeners(procfs.read(f"/proc/{self.pid}/net/{table}"))
            except FileNotFoundError:  # a host without IPv6
                continue
            out |= {port: address for inode, (address, port) in sockets.items() if inode in held}
        return out


class Runtime(Protocol):
    """A kind of model server: how it is known, where it listens, what it says."""

    name: str

    def matches(self, process: ProcessInfo) -> bool:
        """Whether the command is that of such a server. Looks at nothing else: every new process of the host is asked about."""

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        """The instance, or None while it does not listen yet. Raises OSError."""

    def scrape(self, instance: Instance) -> Vitals:
        """Ask its API, within a second. Raises NoAnswer, and nothing else. Called from several threads."""


def own_netns() -> int:
    """Inode of the network namespace that the agent is in."""
    return os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116


def reachable(process: ProcessInfo, address: str, port: int) -> tuple[str, ...]:
    """Where balancers reach its listener: "host:port", as many as one label can hold; loopback only within our own namespace."""
    ours = process.netns() == own_netns()
    local = process.addresses(ipv6=address == "::") if address in WILDCARDS else {address}
    hosts = sorted(map(ipaddress.ip_address, local), key=lambda a: (not a.is_loopback, a.version, int(a)))
    out: list[str] = []
    for host in hosts:
        text = f"[{host}]:{port}" if host.version == 6 else f"{host}:{port}"
        if (ours or not host.is_loopback) and len(",".join([*out, text])) <= TEXT_MAX:
            out.append(text)
    return tuple(out)
