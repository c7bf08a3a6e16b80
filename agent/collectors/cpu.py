"""CPU time of the host, from /proc/stat. Cost: 0.1 ms a window."""

from __future__ import annotations

import os

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.registry import Host, Reading, Signal


class Cpu:
    """How busy the cores are, and what keeps them from running."""

    name = "cpu"
    signals = (
        Signal("cpu_cores", "cores", "cores that are online", "node"),
        Signal("cpu_busy_cores", "cores", "cores that ran something", "node", rate=True),
        Signal(
            "cpu_iowait_cores", "cores", "cores that idled while a task of theirs waited for a disk", "node", rate=True
        ),
        Signal("cpu_steal_cores", "cores", "cores that the hypervisor gave to another machine", "node", rate=True),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._rise: Rise[str] = Rise()

    def read(self, reading: Reading) -> None:
        now = procfs.host_cpu(procfs.read("/proc/stat"))
        rose = self._rise.since({"busy": now.busy, "iowait": now.iowait, "steal": now.steal})
        reading.set("node", self._node, "cpu_cores", os.sysconf("SC_NPROCESSORS_ONLN"))
        for name, seconds in rose.items():
            reading.set("node", self._node, f"cpu_{name}_cores", seconds / reading.seconds)

    def close(self) -> None:
        pass


COLLECTOR = Cpu
