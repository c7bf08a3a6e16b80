"""The maps of latency.c, seen from here: which ports it watches, what it is told, and what it has counted for each.

All but the names of the ports goes through shared memory: no system call, and no copy but of the instances that are asked for.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.layout import INSTANCES_MAX
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.slots import Slots
from trimtab.agent.sketch.loglinear import BUCKETS

Endpoint = tuple[int, int]
"""Inode of the network namespace (0: any) and port."""

_COUNTS = (
    *("answered", "aborted", "dropped", "started", "connections", "retransmits", "errors", "client_errors"),
    *("unmeasured", "http2", "tls", "other", "generation"),
    *("latency_sum_ns", "queue_sum_ns", "duration_sum_ns"),
)
INSTANCE = np.dtype(
    [("counts", [(name, "<u8") for name in _COUNTS])]
    + [(name, "<u4", (BUCKETS,)) for name in ("latency", "queue", "duration")]
)
"""`struct instance` of connection.c. Everything in it only grows, the buckets modulo 2^32."""

CONTROL = np.dtype(
    [("sample_below", "<u8"), ("queue_since_ns", "<u8"), ("epoch", "<u8"), ("tracked", "<i8"), ("untracked", "<u8")]
)
"""`struct control` of connection.c."""

_PORTS = 65536
_BY_NAMESPACE = 0xFFFFFFFE
"""BY_NAMESPACE of connection.c."""


class Counters:
    """What the kernel counts for the endpoints that are watched."""

    def __init__(self, program: Program) -> None:
        self._watched_fd = program.maps["watched"]
        self._instances = _shared(program.maps["instances"], INSTANCE, INSTANCES_MAX)
        self._control = _shared(program.maps["controls"], CONTROL, 1)[0]
        self._ports = _shared(program.maps["ports"], np.dtype("u1"), _PORTS // 8)
        self._slots: Slots[Endpoint] = Slots(INSTANCES_MAX)
        self._left_over: dict[Endpoint, int] = {}
        self._in_kernel: dict[Endpoint, int] = {}

    def watch(self, endpoints: set[Endpoint]) -> set[Endpoint]:
        """Watch these and no others; the ones that found no room are returned. Raises OSError."""
        come, gone = self._slots.watch(endpoints)
        for slot in gone.values():
            # Its connections are strangers from here on, whoever is given the slot.
            self._instances["counts"]["generation"][slot] += 1
        for endpoint, slot in come.items():
            # What they left behind, in flight for ever.
            self._left_over[endpoint] = _in_flight(self._instances[slot])
        slots = self._slots.of()
        # The kernel looks for the port first, and reads the namespace only of sockets that have it.
        wanted = {(0, port): _BY_NAMESPACE for _, port in slots} | slots
        for endpoint, slot in wanted.items() - self._in_kernel.items():
            syscall.map_update(self._watched_fd, struct.pack("<II", *endpoint), struct.pack("<I", slot))
        bits = np.zeros(_PORTS, dtype=bool)
        bits[[port for _, port in slots]] = True
        self._ports[:] = np.packbits(bits, bitorder="little")
        for endpoint in self._in_kernel.keys() - wanted.keys():
            syscall.map_delete(self._watched_fd, struct.pack("<II", *endpoint))
        self._in_kernel = wanted
        return endpoints - slots.keys()

    def forget(self) -> None:
        """Watch nothing. Connections that are open now are strangers from here on: what happened on them was not seen.

        Raises OSError.
        """
        self.watch(set())
        self._control["epoch"] += 1
        self._control["tracked"] = 0

    def sample(self, probability: float) -> None:
        """Let a part of the requests that end from now on enter the sketches."""
        self._control["sample_below"] = round(probability * 2**32)

    def queue_since(self, monotonic_ns: int) -> None:
        """Leave the waiting of the requests that arrived before out of the sketches."""
        self._control["queue_since_ns"] = monotonic_ns

    def read(self, endpoint: Endpoint) -> NDArray[np.void]:
        """A copy of what is counted for a watched endpoint: INSTANCE, no dimensions."""
        copy: NDArray[np.void] = self._instances[self._slots.of()[endpoint]].copy()
        return copy

    @staticmethod
    def counts(counted: NDArray[np.void]) -> dict[str, int]:
        """The plain counts in such a copy, by name."""
        return dict(zip(_COUNTS, counted["counts"].item(), strict=True))

    def in_flight(self, endpoint: Endpoint, counted: NDArray[np.void]) -> int:
        """How many of the requests in such a copy have not ended."""
        return max(0, _in_flight(counted) - self._left_over[endpoint])

    def untracked(self) -> int:
        """How many connections found no room, ever."""
        return int(self._control["untracked"])

    def slots(self) -> Mapping[Endpoint, int]:
        """By what number the kernel knows each endpoint that is watched."""
        return self._slots.of()


def _in_flight(counted: NDArray[np.void]) -> int:
    counts = Counters.counts(counted)
    return counts["started"] - counts["answered"] - counts["aborted"] - counts["dropped"]


def _shared(map_fd: int, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    memory = mmap.mmap(map_fd, count * dtype.itemsize, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(memory, dtype, count)
