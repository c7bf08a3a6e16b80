"""Network cards of the host and its TCP, from /proc/net. Cost: 0.2 ms a window."""

from __future__ import annotations

from pathlib import Path

import psutil

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.registry import Host, Reading, Signal

INTERFACES = Path("/sys/class/net")


class Network:
    """All physical cards together; without any (in a container) every interface but loopback."""

    name = "network"
    signals = (
        Signal("network_receive_bytes_per_second", "bytes/s", "received by the network cards", "node", rate=True),
        Signal("network_transmit_bytes_per_second", "bytes/s", "sent by the network cards", "node", rate=True),
        Signal("network_errors_per_second", "1/s", "packets that the cards found broken, both ways", "node", rate=True),
        Signal("network_drops_per_second", "1/s", "packets that were dropped, both ways", "node", rate=True),
        Signal(
            "tcp_retransmits_per_second",
            "1/s",
            "TCP segments sent again, all connections of the host",
            "node",
            rate=True,
        ),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._rise: Rise[tuple[str, str]] = Rise()
        self._names: frozenset[str] = frozenset()
        self._counted: frozenset[str] = frozenset()

    def read(self, reading: Reading) -> None:
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        if counters.keys() != self._names:
            self._names = frozenset(counters)
            physical = frozenset(name for name in self._names if (INTERFACES / name / "device").exists())
            self._counted = physical or self._names - {"lo"}
        now: dict[tuple[str, str], float] = {("", "tcp_retransmits"): _retransmits()}
        for card in self._counted:
            now[card, "network_receive_bytes"] = counters[card].bytes_recv
            now[card, "network_transmit_bytes"] = counters[card].bytes_sent
            now[card, "network_errors"] = counters[card].errin + counters[card].errout
            now[card, "network_drops"] = counters[card].dropin + counters[card].dropout
        totals: dict[str, float] = {}
        for (_, name), value in self._rise.since(now).items():
            totals[name] = totals.get(name, 0.0) + value
        for name, value in totals.items():
            reading.set("node", self._node, f"{name}_per_second", value / reading.seconds)

    def close(self) -> None:
        pass


def _retransmits() -> int:
    return procfs.tcp_retransmits(procfs.read("/proc/net/snmp"))


COLLECTOR = Network
