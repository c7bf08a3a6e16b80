"""The maps of latency.c, seen from here: which ports it watches, and what it has counted for each.

The counts are read through shared memory: no system call, and no copy but of the instances that are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections import deque

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.capability import SENT_KPROBE, TRACEPOINTS, sent_hook
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.source import Source
from trimtab.agent.sketch.loglinear import BUCKETS

Endpoint = tuple[int, int]
"""Inode of the network namespace (0: any) and port."""

INSTANCE = np.dtype(
    [
        ("answered", "<u8"),
        ("aborted", "<u8"),
        ("started", "<u8"),
        ("connections", "<u8"),
        ("retransmits", "<u8"),
        ("latency_sum_ns", "<u8"),
        ("queue_sum_ns", "<u8"),
        ("latency", "<u4", (BUCKETS,)),
        ("queue", "<u4", (BUCKETS,)),
    ]
)
"""`struct instance` of latency.c. Everything in it only grows, the buckets modulo 2^32."""

INSTANCES_MAX = 128
"""How many instances are watched at once on one host."""

_OFFSETS = {
    "SOCK_PORT": ("sock.__sk_common.skc_num",),
    "SOCK_NET": ("sock.__sk_common.skc_net.net",),
    "NET_INODE": ("net.ns.inum",),
    "TCP_WRITE_SEQ": ("tcp_sock.write_seq",),
    "TCP_RCV_NXT": ("tcp_sock.rcv_nxt",),
    "TCP_COPIED_SEQ": ("tcp_sock.copied_seq",),
    "SKB_END_SEQ": ("sk_buff.cb", "tcp_skb_cb.end_seq"),
    "SKB_FLAGS": ("sk_buff.cb", "tcp_skb_cb.tcp_flags"),
}
_BY_NAMESPACE = 0xFFFFFFFE
"""BY_NAMESPACE of latency.c."""


def source(sampling_probability: float) -> Source:
    """latency.c, with the best hook that this host has for the answer. Raises OSError without the rights to look."""
    sent = sent_hook() or SENT_KPROBE
    is_kprobe = sent == SENT_KPROBE
    return Source(
        file="latency.c",
        maps=("watched", "instances"),
        raw_tracepoints=TRACEPOINTS if is_kprobe else (*TRACEPOINTS, sent),
        kprobes=(sent,) if is_kprobe else (),
        offsets=_OFFSETS,
        flags={
            f"SENT_BY_{sent.upper()}": "1",
            "SAMPLE_BELOW": f"{round(sampling_probability * 2**32)}ULL",
            "INSTANCES_MAX": str(INSTANCES_MAX),
        },
    )


class Counters:
    """What the kernel counts for the endpoints that are watched."""

    def __init__(self, program: Program) -> None:
        self._watched_fd = program.maps["watched"]
        memory = mmap.mmap(
            program.maps["instances"], INSTANCES_MAX * INSTANCE.itemsize, mmap.MAP_SHARED, mmap.PROT_READ
        )
        self._instances = np.frombuffer(memory, INSTANCE, INSTANCES_MAX)
        self._slots: dict[Endpoint, int] = {}
        # The slot that was given up longest ago is taken first: connections of its old owner are gone by then.
        self._free = deque(range(INSTANCES_MAX))
        self._in_kernel: dict[Endpoint, int] = {}

    def watch(self, endpoints: set[Endpoint]) -> set[Endpoint]:
        """Watch these and no others; the ones that found no room are returned. Raises OSError."""
        for gone in self._slots.keys() - endpoints:
            self._free.append(self._slots.pop(gone))
        for endpoint in sorted(endpoints - self._slots.keys())[: len(self._free)]:
            self._slots[endpoint] = self._free.popleft()
        # The kernel looks for the port first, and reads the namespace only of sockets that have it.
        wanted = {(0, port): _BY_NAMESPACE for _, port in self._slots} | self._slots
        for endpoint, slot in wanted.items() - self._in_kernel.items():
            syscall.map_update(self._watched_fd, struct.pack("<II", *endpoint), struct.pack("<I", slot))
        for gone in self._in_kernel.keys() - wanted.keys():
            syscall.map_delete(self._watched_fd, struct.pack("<II", *gone))
        self._in_kernel = wanted
        return endpoints - self._slots.keys()

    def read(self, endpoint: Endpoint) -> NDArray[np.void]:
        """A copy of what is counted for a watched endpoint: INSTANCE, no dimensions."""
        copy: NDArray[np.void] = self._instances[self._slots[endpoint]].copy()
        return copy
