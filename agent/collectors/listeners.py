"""Connections that wait to be accepted by each serving instance, from the kernel's sock_diag(7). Cost: 0.1 ms a window.

For each network namespace that is not the agent's own it asks once more. Entering one needs CAP_SYS_ADMIN and CAP_SYS_PTRACE.
"""

from __future__ import annotations

import contextlib

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.inet_diag import Listener, SocketDiag
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.runtimes.netns import inside
from trimtab.agent.runtimes.process import own_netns


class Listeners:
    """Asks within the namespace of each instance. Where it may not enter, the drops are those of the namespace."""

    name = "listeners"
    signals = (
        Signal("accept_queue_depth", "1", "connections that are made and that it has not accepted", "instance"),
        Signal("accept_queue_max", "1", "how many may wait; then attempts are dropped", "instance"),
        Signal(
            "listen_drops_per_second",
            "1/s",
            "attempts to connect that were dropped, mostly as the queue was full",
            "instance",
            rate=True,
        ),
        Signal(
            "listen_overflows_per_second",
            "1/s",
            "attempts to connect that met a full queue, all listeners of the agent's network namespace",
            "node",
            rate=True,
        ),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._own = own_netns()
        self._asking: dict[int, SocketDiag] = {}
        self._rise: Rise[tuple[str, str]] = Rise()

    def read(self, reading: Reading) -> None:
        by_netns: dict[int, list[Instance]] = {}
        for instance in reading.instances:
            by_netns.setdefault(instance.netns, []).append(instance)
        for gone in self._asking.keys() - by_netns.keys():
            self._asking.pop(gone).close()
        drops: dict[tuple[str, str], float] = {}
        for netns, instances in by_netns.items():
            drops |= self._look(reading, netns, instances)
        drops["", ""] = _of_namespace(procfs.read("/proc/net/netstat"), "ListenOverflows")
        for (instance_id, _), rose in self._rise.since(drops).items():
            if instance_id:
                reading.set("instance", instance_id, "listen_drops_per_second", rose / reading.seconds)
            else:
                reading.set("node", self._node, "listen_overflows_per_second", rose / reading.seconds)

    def close(self) -> None:
        for asking in self._asking.values():
            asking.close()

    def _look(self, reading: Reading, netns: int, instances: list[Instance]) -> dict[tuple[str, str], float]:
        """Sets the queues; the drops since its start, by instance."""
        listeners = self._ask(netns, instances[0])
        drops: dict[tuple[str, str], float] = {}
        for instance in instances:
            # What is counted must be the same thing at both ends of a window.
            key = (instance.id, f"{instance.pid} {instance.started} {listeners is None}")
            if listeners is None:
                with contextlib.suppress(OSError, ValueError):  # it ended, or is not ours to look at
                    drops[key] = _of_namespace(procfs.read(f"/proc/{instance.pid}/net/netstat"), "ListenDrops")
            elif instance.port in listeners:
                listener = listeners[instance.port]
                reading.set("instance", instance.id, "accept_queue_depth", listener.queued)
                reading.set("instance", instance.id, "accept_queue_max", listener.queue_max)
                drops[key] = listener.drops
        return drops

    def _ask(self, netns: int, instance: Instance) -> dict[int, Listener] | None:
        """None where the namespace cannot be entered, or is not known."""
        try:
            if netns not in self._asking:
                if netns == 0:
                    return None
                self._asking[netns] = inside(instance.pid, netns, SocketDiag)
            return self._asking[netns].listeners()
        except OSError:
            if netns in self._asking:
                self._asking.pop(netns).close()
            return None


def _of_namespace(text: str, counter: str) -> int:
    """/proc/PID/net/netstat: a counter of TCP in its network namespace. Garbage raises ValueError."""
    rows = [line.split() for line in text.splitlines() if line.startswith("TcpExt:")]
    if len(rows) != 2 or counter not in rows[0] or len(rows[0]) != len(rows[1]):
        raise ValueError(f"netstat: no TcpExt {counter}")
    return procfs.whole(rows[1][rows[0].index(counter)])


COLLECTOR = Listeners
