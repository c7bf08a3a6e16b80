"""Physical disks, from /proc/diskstats. Cost: 0.2 ms a window.

Loop, RAM and device-mapper disks are left out: their work shows on the disk below.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from trimtab.agent.counters import Rise
from trimtab.agent.registry import Host, Reading, Signal

BLOCK_DEVICES = Path("/sys/block")


class Disk:
    """The busiest and the slowest disk, and how much all of them moved."""

    name = "disk"
    signals = (
        Signal("disk_busy_ratio", "1", "share of the window in which the busiest disk had work", "node"),
        Signal(
            "disk_await_seconds",
            "s",
            "mean time of a read or write on the slowest disk; unknown if there was none",
            "node",
        ),
        Signal("disk_read_bytes_per_second", "bytes/s", "read from all disks", "node", rate=True),
        Signal("disk_write_bytes_per_second", "bytes/s", "written to all disks", "node", rate=True),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._rise: Rise[tuple[str, str]] = Rise()
        self._names: frozenset[str] = frozenset()
        self._physical: frozenset[str] = frozenset()

    def read(self, reading: Reading) -> None:
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False)
        if counters.keys() != self._names:
            self._names = frozenset(counters)
            self._physical = frozenset(name for name in self._names if (BLOCK_DEVICES / name / "device").exists())
        rose = self._rise.since(
            {
                (disk, name): value
                for disk in self._physical
                for name, value in {
                    "operations": counters[disk].read_count + counters[disk].write_count,
                    "wait": (counters[disk].read_time + counters[disk].write_time) / 1000,
                    "busy": counters[disk].busy_time / 1000,
                    "read": counters[disk].read_bytes,
                    "write": counters[disk].write_bytes,
                }.items()
            }
        )
        by_name = {
            name: {disk: value for (disk, of), value in rose.items() if of == name}
            for name in ("operations", "wait", "busy", "read", "write")
        }
        if by_name["busy"]:
            reading.set(
                "node", self._node, "disk_busy_ratio", min(1.0, max(by_name["busy"].values()) / reading.seconds)
            )
            for name in ("read", "write"):
                total = sum(by_name[name].values())
                reading.set("node", self._node, f"disk_{name}_bytes_per_second", total / reading.seconds)
        waits = [
            by_name["wait"][disk] / n for disk, n in by_name["operations"].items() if n and disk in by_name["wait"]
        ]
        reading.set("node", self._node, "disk_await_seconds", max(waits, default=None))

    def close(self) -> None:
        pass


COLLECTOR = Disk
