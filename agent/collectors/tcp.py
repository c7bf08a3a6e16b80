"""Round trips and resets of the connections to each serving instance, measured in the kernel (docs/host-signals.md)."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf.histogram import grown
from trimtab.agent.bpf.host import HOST_PROGRAM
from trimtab.agent.bpf.tcp import ENDPOINTS_MAX, Connections, Endpoint
from trimtab.agent.probes import Probe
from trimtab.agent.registry import Host, Instance, Reading, Signal

log = logging.getLogger(__name__)

_RATES = {"tcp_resets_sent_per_second": "resets_sent", "tcp_resets_received_per_second": "resets_received"}


class Tcp:
    """Watches the port of every instance. An instance is known from the second reading that names it."""

    name = "tcp"
    signals = (
        Signal(
            "tcp_rtt",
            "s",
            "smoothed round-trip time of its connections, at one in 16 of its reads; includes delayed ACKs of the client",
            "instance",
            sketch=True,
        ),
        Signal(
            "tcp_handshake_rtt",
            "s",
            "round-trip time of the handshake, once a connection; without delayed ACKs",
            "instance",
            sketch=True,
        ),
        Signal("tcp_resets_sent_per_second", "1/s", "connections that it or its kernel cut off", "instance", rate=True),
        Signal(
            "tcp_resets_received_per_second", "1/s", "connections that the other side cut off", "instance", rate=True
        ),
    )

    def open(self, host: Host) -> None:
        self._host = host
        self._program = HOST_PROGRAM.open("tcp")
        self._connections = Connections(self._program)
        self._of_connections = Probe(
            "tcp", self._program, ("inet_sock_set_state", "tcp_send_reset", "tcp_receive_reset")
        )
        self._of_reads = Probe("tcp rtt", self._program, ("tcp_rcv_space_adjust",))
        host.probes.add(self._of_connections, self._of_reads)
        self._before: dict[Endpoint, NDArray[np.void]] = {}
        self._full = False

    def read(self, reading: Reading) -> None:
        watched = {(instance.netns, instance.port): instance for instance in reading.instances}
        left_out = self._connections.watch(set(watched))
        if left_out and not self._full:
            log.warning("tcp: only %d instances are watched; unknown for the rest", ENDPOINTS_MAX)
        self._full = bool(left_out)
        now = {endpoint: self._connections.read(endpoint) for endpoint in watched.keys() - left_out}
        connections, reads = self._of_connections.whole(), self._of_reads.whole()
        for endpoint in now.keys() & self._before.keys():
            before, after = self._before[endpoint], now[endpoint]
            if connections:
                _fill(reading, watched[endpoint], before, after)
            if reads and (rtt := grown(after["rtt"], before["rtt"])) is not None:
                reading.sketch("instance", watched[endpoint].id, "tcp_rtt", rtt)
        self._before = now

    def close(self) -> None:
        self._host.probes.remove(self._of_connections, self._of_reads)
        self._connections.watch(set())
        del self._connections
        HOST_PROGRAM.close(self._program, "tcp")


def _fill(reading: Reading, instance: Instance, before: NDArray[np.void], now: NDArray[np.void]) -> None:
    for signal, field in _RATES.items():
        reading.set("instance", instance.id, signal, int(now[field] - before[field]) / reading.seconds)
    if (handshake := grown(now["handshake"], before["handshake"])) is not None:
        reading.sketch("instance", instance.id, "tcp_handshake_rtt", handshake)


COLLECTOR = Tcp
