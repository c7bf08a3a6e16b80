"""The maps of block.c, seen from here: which disks are watched, and what was counted for each."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.histogram import HISTOGRAM, view
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.slots import Slots
from trimtab.agent.bpf.source import Source

Device = tuple[int, int]
"""Major and minor number."""

BLOCK = np.dtype(
    [
        ("reads", "<u8"),
        ("writes", "<u8"),
        ("flushes", "<u8"),
        ("errors", "<u8"),
        ("io", HISTOGRAM),
        ("flush", HISTOGRAM),
    ]
)
"""`struct block` of block.c. Everything in it only grows."""

DISKS_MAX = 64
"""How many disks are watched at once on one host."""


def source() -> Source:
    """What the loader must know of block.c."""
    return Source(
        file="block.c",
        maps=("devices", "blocks"),
        typed_tracepoints=("block_rq_complete",),
        offsets={
            "RQ_FLAGS": ("request.cmd_flags",),
            "RQ_BYTES": ("request.__data_len",),
            "RQ_STARTED": ("request.start_time_ns",),
            "RQ_QUEUE": ("request.q",),
            "QUEUE_DISK": ("request_queue.disk",),
            "DISK_MAJOR": ("gendisk.major",),
            "DISK_MINOR": ("gendisk.first_minor",),
        },
        flags={"DISKS_MAX": str(DISKS_MAX)},
    )


class Blocks:
    """What the kernel counts for the disks that are watched."""

    def __init__(self, program: Program) -> None:
        self._devices_fd = program.maps["devices"]
        self._blocks = view(program.maps["blocks"], BLOCK, DISKS_MAX)
        self._slots: Slots[Device] = Slots(DISKS_MAX)

    def watch(self, devices: set[Device]) -> set[Device]:
        """Watch these and no others; the ones that found no room are returned. Raises OSError."""
        come, gone = self._slots.watch(devices)
        for device in gone:
            syscall.map_delete(self._devices_fd, struct.pack("<II", *device))
        for device, slot in come.items():
            syscall.map_update(self._devices_fd, struct.pack("<II", *device), struct.pack("<I", slot))
        return devices - self._slots.of().keys()

    def read(self, device: Device) -> NDArray[np.void]:
        """A copy of what is counted for a watched disk: BLOCK, no dimensions."""
        copy: NDArray[np.void] = self._blocks[self._slots.of()[device]].copy()
        return copy
