"""A process of the host, as a serving runtime is recognised by it."""

from __future__ import annotations

import ipaddress
import os
import stat
from dataclasses import dataclass
from itertools import pairwise

from trimtab.agent import procfs
from trimtab.agent.processes import sockets, tree
from trimtab.agent.wire.columns import TEXT_MAX

FILE_BYTES_MAX = 64 << 10
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""What "every address" is called when it is listened on, and the loopback address that then reaches it."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """A process, and what can be seen of it from outside. Whatever reads more than its command raises OSError."""

    pid: int
    started: float
    command: tuple[str, ...]

    def option(self, *names: str) -> str | None:
        """The value of a command-line option, given as "--name value" or "--name=value"; the last one counts."""
        found = [value for name, value in pairwise(self.command) if name in names]
        joined = (part.partition("=") for part in self.command)
        found += [value for name, equals, value in joined if equals and name in names]
        return found[-1] if found else None

    def environment(self, name: str) -> str | None:
        """A variable of its environment, as it was when it started."""
        prefix = f"{name}="
        found = (v for v in procfs.read(f"/proc/{self.pid}/environ").split("\0") if v.startswith(prefix))
        return next(found, prefix).removeprefix(prefix) or None

    def forked(self) -> bool:
        """Whether its parent runs the same command: it is then a part of that server, though it may hold its sockets too."""
        stat = procfs.read(f"/proc/{self.pid}/stat")
        parent = stat[stat.rfind(")") + 1 :].split()[1]
        try:
            return procfs.read(f"/proc/{parent}/cmdline").rstrip("\0").split("\0") == list(self.command)
        except FileNotFoundError:
            return False

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
        held = sockets(self.pid)
        out: dict[int, str] = {}
        for table in ("tcp6", "tcp"):
            try:
                found = procfs.listeners(procfs.read(f"/proc/{self.pid}/net/{table}"))
            except FileNotFoundError:  # a host without IPv6
                continue
            out |= {port: address for inode, (address, port) in found.items() if inode in held}
        return out


def own_netns() -> int:
    """Inode of the network namespace that the agent is in."""
    return os.stat("/proc/self/ns/net").st_ino  # noqa: PTH116


def url(address: str, port: int) -> str:
    """Where a listener on `address` is asked from its own host."""
    host = WILDCARDS.get(address, address)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


def host_pid(root: int, named: int) -> int | None:
    """The process at or below `root` that calls itself `named` in the innermost of its pid namespaces; None where there is none."""
    for member in tree(root):
        try:
            status = procfs.read(f"/proc/{member.pid}/status")
        except OSError:
            continue
        pids = status.partition("\nNSpid:")[2].partition("\n")[0].split()
        if (pids[-1] if pids else str(member.pid)) == str(named):
            return member.pid
    return None


def resident_bytes(pid: int) -> int | None:
    """None where it has ended."""
    try:
        seen = procfs.process_stat(procfs.read(f"/proc/{pid}/stat"))
    except (OSError, ValueError):
        return None
    return None if seen.state in {"Z", "X"} else seen.resident_bytes
