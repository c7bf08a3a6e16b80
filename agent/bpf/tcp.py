"""The maps of tcp.c, seen from here: which ports are watched, and what was counted for each."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.histogram import HISTOGRAM, view
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.slots import Slots
from trimtab.agent.bpf.source import Source

Endpoint = tuple[int, int]
"""Inode of the network namespace (0: any) and port."""

CONNECTIONS = np.dtype(
    [("resets_sent", "<u8"), ("resets_received", "<u8"), ("rtt", HISTOGRAM), ("handshake", HISTOGRAM)]
)
"""`struct connections` of tcp.c. Everything in it only grows."""

ENDPOINTS_MAX = 64
"""How many instances are watched at once on one host."""

READS_A_SAMPLE = 16
"""One in so many readings by a server looks at the connection's round-trip time."""

_NOWHERE = 0xFFFFFFFF
"""No slot: the port is watched in some network namespaces only."""


def source() -> Source:
    """What the loader must know of tcp.c."""
    return Source(
        file="tcp.c",
        maps=("endpoints", "tcp"),
        raw_tracepoints=("inet_sock_set_state", "tcp_send_reset", "tcp_receive_reset", "tcp_rcv_space_adjust"),
        offsets={
            "SOCK_PORT": ("sock.__sk_common.skc_num",),
            "SOCK_STATE": ("sock.__sk_common.skc_state",),
            "SOCK_NET": ("sock.__sk_common.skc_net.net",),
            "NET_INODE": ("net.ns.inum",),
            "INET_SPORT": ("inet_sock.inet_sport",),
            "TCP_SRTT": ("tcp_sock.srtt_us",),
        },
        flags={"ENDPOINTS_MAX": str(ENDPOINTS_MAX), "READS_A_SAMPLE": str(READS_A_SAMPLE)},
    )


class Connections:
    """What the kernel counts for the endpoints that are watched."""

    def __init__(self, program: Program) -> None:
        self._endpoints_fd = program.maps["endpoints"]
        self._tcp = view(program.maps["tcp"], CONNECTIONS, ENDPOINTS_MAX)
        self._slots: Slots[Endpoint] = Slots(ENDPOINTS_MAX)
        self._in_kernel: dict[Endpoint, int] = {}

    def watch(self, endpoints: set[Endpoint]) -> set[Endpoint]:
        """Watch these and no others; the ones that found no room are returned. Raises OSError."""
        self._slots.watch(endpoints)
        slots = self._slots.of()
        # The kernel looks for the port first, and reads the namespace only of sockets that have it.
        wanted = {(0, port): _NOWHERE for _, port in slots} | slots
        for endpoint, slot in wanted.items() - self._in_kernel.items():
            syscall.map_update(self._endpoints_fd, struct.pack("<II", *endpoint), struct.pack("<I", slot))
        for gone in self._in_kernel.keys() - wanted.keys():
            syscall.map_delete(self._endpoints_fd, struct.pack("<II", *gone))
        self._in_kernel = wanted
        return endpoints - slots.keys()

    def read(self, endpoint: Endpoint) -> NDArray[np.void]:
        """A copy of what is counted for a watched endpoint: CONNECTIONS, no dimensions."""
        copy: NDArray[np.void] = self._tcp[self._slots.of()[endpoint]].copy()
        return copy
