"""How long each disk takes, request by request, measured in the kernel (docs/host-signals.md)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf.block import Blocks, Device
from trimtab.agent.bpf.histogram import grown
from trimtab.agent.bpf.host import HOST_PROGRAM, hooks_of
from trimtab.agent.disks import Hardware
from trimtab.agent.probes import Probe
from trimtab.agent.registry import Host, Reading, Signal

_SKETCHES = {"block_io_latency": "io", "block_flush_latency": "flush"}
_RATES = {
    "block_reads_per_second": "reads",
    "block_writes_per_second": "writes",
    "block_flushes_per_second": "flushes",
    "block_errors_per_second": "errors",
}


class BlockIo:
    """Watches the disks that are hardware. A disk is known from the second reading."""

    name = "block_io"
    signals = (
        Signal(
            "block_io_latency", "s", "a read or write is handed to the disk's queue → it is done", "disk", sketch=True
        ),
        Signal("block_flush_latency", "s", "a flush of its cache is asked for → it is done", "disk", sketch=True),
        Signal("block_reads_per_second", "1/s", "reads done", "disk", rate=True),
        Signal("block_writes_per_second", "1/s", "writes done", "disk", rate=True),
        Signal("block_flushes_per_second", "1/s", "flushes of its cache done, as for each fsync", "disk", rate=True),
        Signal("block_errors_per_second", "1/s", "reads, writes and flushes that failed", "disk", rate=True),
    )

    def open(self, host: Host) -> None:
        self._host = host
        self._program = HOST_PROGRAM.open("block")
        self._blocks = Blocks(self._program)
        self._hardware = Hardware()
        self._probe = Probe("block io", self._program, hooks_of("block"))
        host.probes.add(self._probe)
        self._before: dict[Device, NDArray[np.void]] = {}

    def read(self, reading: Reading) -> None:
        disks = {device: name for name, device in self._hardware.find().items()}
        left_out = self._blocks.watch(set(disks))
        now = {device: self._blocks.read(device) for device in disks.keys() - left_out}
        for device in now.keys() & self._before.keys() if self._probe.whole() else ():
            self._fill(reading, disks[device], self._before[device], now[device])
        self._before = now

    def close(self) -> None:
        self._host.probes.remove(self._probe)
        self._blocks.watch(set())
        del self._blocks
        HOST_PROGRAM.close(self._program, "block")

    def _fill(self, reading: Reading, disk: str, before: NDArray[np.void], now: NDArray[np.void]) -> None:
        subject = f"{self._host.node}/disk/{disk}"
        for signal, field in _RATES.items():
            reading.set("disk", subject, signal, int(now[field] - before[field]) / reading.seconds)
        for signal, field in _SKETCHES.items():
            if (sketch := grown(now[field], before[field])) is not None:
                reading.sketch("disk", subject, signal, sketch)


COLLECTOR = BlockIo
