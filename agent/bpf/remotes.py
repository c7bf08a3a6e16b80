"""The map "remotes" of the request probes: what they count for each remote side of each instance.

One collector loads the probes and offers the map, another reads it, each in its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import syscall

ENTRIES_MAX = 8192
"""Of the map; beyond, those that were quiet for longest make room."""
KEY = np.dtype([("slot", "<u4"), ("address", "V16")])
"""`struct remote` of connection.c. IPv4 is ::ffff:a.b.c.d."""
VALUE = np.dtype([("answered", "<u8"), ("errors", "<u8"), ("latency_sum_ns", "<u8")])
"""Everything in it only grows, until its remote makes room for another."""


@dataclass(frozen=True, slots=True)
class Look:
    """The map as it was at one time."""

    stretch: int
    """Which stretch without an interruption counted this: counts of another one cannot be compared."""
    endpoints: dict[int, tuple[int, int]]
    """By slot: inode of the network namespace, and port."""
    keys: NDArray[np.bytes_]
    """S20 [n]: KEY as bytes, rising."""
    values: NDArray[np.void]
    """VALUE [n]."""


class Remotes:
    """The place where the map is offered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._map_fd: int | None = None
        self._stretch = 0
        self._endpoints: dict[int, tuple[int, int]] = {}

    def offer(self, map_fd: int, slots: Mapping[tuple[int, int], int]) -> None:
        """The map, and the slot of each endpoint (inode of the network namespace, port); again when these have changed."""
        with self._lock:
            self._map_fd = map_fd
            self._endpoints = {slot: endpoint for endpoint, slot in slots.items()}

    def withdraw(self) -> None:
        """Before the map is closed, and where the probes have missed something: what is offered next counts anew."""
        with self._lock:
            self._map_fd = None
            self._stretch += 1

    def look(self) -> Look | None:
        """None while no map is offered. Raises OSError."""
        # Held for the milliseconds that a look takes, so that the descriptor stays that of the map.
        with self._lock:
            if self._map_fd is None:
                return None
            found = list(syscall.map_lookup_batch(self._map_fd, KEY.itemsize, VALUE.itemsize, ENTRIES_MAX))
            stretch, endpoints = self._stretch, self._endpoints
        # Of equal length, so that the zeros which numpy leaves out at the end do not matter.
        keys = np.frombuffer(b"".join(keys for keys, _ in found), f"S{KEY.itemsize}")
        values = np.frombuffer(b"".join(values for _, values in found), VALUE)
        order = np.argsort(keys)
        return Look(stretch, endpoints, keys[order], values[order])


def growth(before: Look, now: Look) -> NDArray[np.void]:
    """VALUE [n]: by how much each remote of `now` rose. One that made room and came back counts from 0 again."""
    known = np.isin(now.keys, before.keys, assume_unique=True)
    old = np.zeros_like(now.values)
    old[known] = before.values[np.searchsorted(before.keys, now.keys[known])]
    old[old["answered"] > now.values["answered"]] = 0
    rise = np.empty_like(now.values)
    for field in VALUE.names or ():
        rise[field] = now.values[field] - np.minimum(old[field], now.values[field])
    return rise
