"""Memory of the host, from /proc/meminfo and /proc/vmstat. Cost: 0.3 ms a window."""

from __future__ import annotations

import psutil

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.registry import Host, Reading, Signal

_COUNTERS = ("pswpin ", "pgmajfault ", "oom_kill ")
"""How their lines in /proc/vmstat begin; nearly two hundred others are not looked at."""


class Memory:
    """How much is left, and what running short of it costs."""

    name = "memory"
    signals = (
        Signal("memory_available_bytes", "bytes", "memory that programs could still get without swapping", "node"),
        Signal("memory_total_bytes", "bytes", "memory of the host", "node"),
        Signal("swap_in_bytes_per_second", "bytes/s", "memory read back from swap", "node", rate=True),
        Signal("major_faults_per_second", "1/s", "page faults that had to wait for a disk", "node", rate=True),
        Signal("oom_kills_per_second", "1/s", "processes that the kernel killed for want of memory", "node", rate=True),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._probes = host.probes
        self._rise: Rise[str] = Rise()

    def read(self, reading: Reading) -> None:
        memory = psutil.virtual_memory()
        reading.set("node", self._node, "memory_available_bytes", memory.available)
        reading.set("node", self._node, "memory_total_bytes", memory.total)
        lines = procfs.read("/proc/vmstat").splitlines()
        rose = self._rise.since(procfs.counters("\n".join(line for line in lines if line.startswith(_COUNTERS))))
        for name, counter, unit in (
            ("swap_in_bytes_per_second", "pswpin", procfs.PAGE_BYTES),
            ("major_faults_per_second", "pgmajfault", 1),
            ("oom_kills_per_second", "oom_kill", 1),
        ):
            if counter in rose:
                reading.set("node", self._node, name, rose[counter] * unit / reading.seconds)
        told = any(probe.name == "oom" and probe.on for probe in self._probes.all())
        if rose.get("oom_kill") and not told:  # by the collector that knows the victim
            reading.event("node", self._node, "oom_kill", rose["oom_kill"])

    def close(self) -> None:
        pass


COLLECTOR = Memory
