"""The TCP connections that were opened from one network namespace: by sock_diag(7), or by /proc where it cannot be entered."""

from __future__ import annotations

import ipaddress
from collections.abc import Set
from dataclasses import dataclass

from trimtab.agent import procfs
from trimtab.agent.inet_diag import CONNECTIONS_MAX, Connection, Endpoint, SocketDiag
from trimtab.agent.runtimes.netns import inside


@dataclass(frozen=True, slots=True)
class Connections:
    """Those of one network namespace."""

    listening: dict[int, Set[int]]
    """By port, the inodes of the sockets that listen there."""
    opened: dict[int, Connection]
    """By the inode of their socket: the established ones whose own port nobody listens on."""
    left_out: int
    """How many more there are; at least so many where /proc was cut off."""
    is_costly: bool = False
    """Whether the kernel walked the tables of all namespaces for it, in text."""


def connections(pid: int, netns: int) -> Connections:
    """Of namespace `netns`, which must be that of process `pid`. Raises OSError, ValueError."""
    try:
        asked = inside(pid, netns, SocketDiag)
    except PermissionError:  # without CAP_SYS_ADMIN
        return of_proc(pid)
    try:
        listeners = asked.listeners()
        opened, beyond = asked.opened(listeners)
    finally:
        asked.close()
    return Connections({port: listener.inodes for port, listener in listeners.items()}, opened, beyond)


def of_proc(pid: int) -> Connections:
    """Of the process's namespace, from its /proc/PID/net. Raises OSError, ValueError."""
    listening: dict[int, Set[int]] = {}
    established: dict[int, Connection] = {}
    left_out = 0
    for table in ("tcp", "tcp6"):
        try:
            text = procfs.read(f"/proc/{pid}/net/{table}")
        except FileNotFoundError:  # a host without IPv6
            continue
        whole, _, rest = text.rpartition("\n")
        left_out += bool(rest)
        for inode, (_, port) in procfs.listeners(whole).items():
            listening[port] = listening.get(port, frozenset()) | {inode}
        for inode, (local, remote) in procfs.established(whole).items():
            established[inode] = Connection(_endpoint(*local), _endpoint(*remote))
    opened = {inode: c for inode, c in established.items() if c.local.port not in listening}
    kept = dict(list(opened.items())[:CONNECTIONS_MAX])
    return Connections(listening, kept, left_out + len(opened) - len(kept), is_costly=True)


def _endpoint(address: str, port: int) -> Endpoint:
    ip = ipaddress.ip_address(address)
    return Endpoint(ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed, port)
