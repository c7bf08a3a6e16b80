"""Whom each serving instance calls: the remote addresses that its processes keep connections to (docs/rootcause.md).

Cost: every 10 s it asks sock_diag(7) about each network namespace of an instance, in 1 ms of CPU for 100 connections that were opened
from it and 5 ms for 1,000; up to three times as much where one is new, for then it lists the open files of the instances' processes.
Of a namespace that it may not enter, without CAP_SYS_ADMIN, it reads /proc/PID/net every minute: 11 ms where it is empty, 50 ms for 1,000.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from trimtab.agent.connections import Connections, connections
from trimtab.agent.inet_diag import Endpoint
from trimtab.agent.processes import sockets, tree
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.wire.calls import CALLEES_MAX, pack

# Ten windows of a second, less what the loop may be early.
LOOK_SECONDS = 9.9
"""Between two looks into a network namespace."""
COSTLY_LOOK_SECONDS = 59.0
"""The same where a look costs much."""
LOOKS_MIN = 2
"""Seen so often, a remote is called again and again: what is talked to once is no dependency, and would change the schema."""
REMEMBER_SECONDS = 600.0
"""What was not seen for so long is not called any more."""
REMEMBERED_MAX = 1024
"""Remotes of one instance."""
_IPV4 = bytes(10) + b"\xff\xff"


@dataclass(slots=True)
class _Remote:
    looks: int
    seen_at: float


@dataclass(slots=True)
class _Called:
    """By one instance; in the order in which they were first seen, so that of too many the same are told."""

    remotes: dict[str, _Remote] = field(default_factory=dict)
    looks: int = 0
    crowded_out: int = 0
    """In the last look."""
    is_known: bool = False
    """Whether the last look could see its connections."""

    def add(self, seen: set[str], now: float) -> None:
        self.looks += 1
        self.is_known = True
        self.remotes = {name: r for name, r in self.remotes.items() if now - r.seen_at <= REMEMBER_SECONDS}
        for name in seen & self.remotes.keys():
            self.remotes[name] = _Remote(self.remotes[name].looks + 1, now)
        new = sorted(seen - self.remotes.keys())
        # Who was met once makes room.
        once = [name for name, r in self.remotes.items() if r.looks < LOOKS_MIN]
        for name in once[: max(0, len(self.remotes) + len(new) - REMEMBERED_MAX)]:
            del self.remotes[name]
        room = REMEMBERED_MAX - len(self.remotes)
        self.remotes |= {name: _Remote(1, now) for name in new[:room]}
        self.crowded_out = max(0, len(new) - room)

    def kept(self) -> list[str]:
        return [name for name, remote in self.remotes.items() if remote.looks >= LOOKS_MIN]


@dataclass(frozen=True, slots=True)
class _Holders:
    """Which instance of a network namespace holds what, as it was found when a socket was new."""

    running: frozenset[tuple[str, int, float]]
    by_inode: dict[int, str]
    """Of the connections that were opened; empty for those of nobody."""
    ports: dict[str, frozenset[int]]
    """By instance, those of the ones that could be looked into: the ports it listens on."""


class Calls:
    """A connection whose own port nobody listens on was opened from here. Connections within an instance are left out."""

    name = "calls"
    signals = (
        Signal("callees", "1", "remote addresses that its processes keep calling, of the last ten minutes", "instance"),
        Signal("callees_left_out", "1", f"of them, those that are not told: beyond {CALLEES_MAX}", "instance"),
        Signal(
            "connections_left_out",
            "1",
            "connections from the network namespaces of the instances that were not looked at, as there were too many",
            "node",
        ),
    )

    def open(self, host: Host) -> None:
        self._node, self._clock = host.node, host.clock
        self._looked_at = -math.inf
        self._called: dict[str, _Called] = {}
        self._holders: dict[int, _Holders] = {}
        self._due_at: dict[int, float] = {}
        """By network namespace."""
        self._left_out: int | None = None

    def read(self, reading: Reading) -> None:
        now = self._clock.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._look(reading.instances, now)
        for instance in reading.instances:
            called = self._called.get(instance.id)
            if called is not None and called.looks >= LOOKS_MIN:
                self._tell(reading, instance.id, called)
        reading.set("node", self._node, "connections_left_out", self._left_out)

    def close(self) -> None:
        pass

    def _tell(self, reading: Reading, id_: str, called: _Called) -> None:
        kept = called.kept()
        reading.label("instance", id_, **pack(kept))
        if called.is_known:
            reading.set("instance", id_, "callees", len(kept) + called.crowded_out)
            reading.set("instance", id_, "callees_left_out", max(0, len(kept) - CALLEES_MAX) + called.crowded_out)

    def _look(self, instances: Sequence[Instance], now: float) -> None:
        self._called = {i.id: self._called.get(i.id) or _Called() for i in instances}
        self._left_out = None
        by_netns: dict[int, list[Instance]] = {}
        for instance in instances:
            if instance.netns:
                by_netns.setdefault(instance.netns, []).append(instance)
        self._holders = {netns: holders for netns, holders in self._holders.items() if netns in by_netns}
        self._due_at = {netns: due for netns, due in self._due_at.items() if netns in by_netns and due > now}
        for netns in by_netns.keys() - self._due_at.keys():
            for instance in by_netns[netns]:
                self._called[instance.id].is_known = False
            with contextlib.suppress(OSError, ValueError):  # it has ended, or is not ours to look at: unknown
                self._look_into(netns, by_netns[netns], now)

    def _look_into(self, netns: int, instances: Sequence[Instance], now: float) -> None:
        found = connections(instances[0].pid, netns)
        opened = found.opened
        if found.is_costly:
            self._due_at[netns] = now + COSTLY_LOOK_SECONDS
        self._left_out = (self._left_out or 0) + found.left_out
        holders, running = self._holders.get(netns), frozenset((i.id, i.pid, i.started) for i in instances)
        # To list the files of a process costs more than all else: only where there is a socket that was not there before.
        if holders is None or holders.running != running or not opened.keys() <= holders.by_inode.keys():
            holders = self._holders[netns] = _find_holders(instances, found)
        seen: dict[str, set[Endpoint]] = {id_: set() for id_ in holders.ports}
        for inode, (local, remote) in opened.items():
            caller = holders.by_inode[inode]
            is_own = local.address == remote.address and remote.port in holders.ports.get(caller, ())
            if caller and not is_own:
                seen[caller].add(remote)
        for id_, remotes in seen.items():
            self._called[id_].add(set(map(_text, remotes)), now)


def _find_holders(instances: Sequence[Instance], found: Connections) -> _Holders:
    trees = [(instance.id, [member.pid for member in tree(instance.pid)]) for instance in instances]
    owners: dict[int, str] = {}
    # One that another one has started is the smaller tree, and its sockets are its own.
    for id_, pids in sorted(trees, key=lambda each: -len(each[1])):
        for pid in pids:
            with contextlib.suppress(OSError):  # it ended, or is not ours to look at
                owners |= dict.fromkeys(sockets(pid), id_)
    listened = {id_: set[int]() for id_ in set(owners.values())}
    for port, inodes in found.listening.items():
        for inode in inodes & owners.keys():
            listened[owners[inode]].add(port)
    return _Holders(
        running=frozenset((i.id, i.pid, i.started) for i in instances),
        by_inode={inode: owners.get(inode, "") for inode in found.opened},
        ports={id_: frozenset(ports) for id_, ports in listened.items()},
    )


def _text(endpoint: Endpoint) -> str:
    if endpoint.address.startswith(_IPV4):
        return f"{socket.inet_ntop(socket.AF_INET, endpoint.address[12:])}:{endpoint.port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, endpoint.address)}]:{endpoint.port}"


COLLECTOR = Calls
