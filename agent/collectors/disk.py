"""Disks of the host, from /proc/diskstats. Cost: 0.1 ms a window.

Loop, RAM and device-mapper disks are left out: their work shows on the disk below.
"""

from __future__ import annotations

from trimtab.agent import procfs
from trimtab.agent.counters import Rise
from trimtab.agent.disks import DiskStats, Hardware, diskstats
from trimtab.agent.registry import Host, Reading, Signal

_RATES = {
    "read_bytes_per_second": "read_bytes",
    "write_bytes_per_second": "write_bytes",
    "reads_per_second": "reads",
    "writes_per_second": "writes",
}


class Disk:
    """Each disk; and of the node the busiest and the slowest one, and how much all of them moved."""

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
        Signal("busy_ratio", "1", "share of the window in which it had work", "disk"),
        Signal("await_seconds", "s", "mean time of a read or write; unknown if there was none", "disk"),
        Signal("in_flight", "1", "requests that it has not done yet", "disk"),
        Signal("read_bytes_per_second", "bytes/s", "read from it", "disk", rate=True),
        Signal("write_bytes_per_second", "bytes/s", "written to it", "disk", rate=True),
        Signal("reads_per_second", "1/s", "reads that it has done", "disk", rate=True),
        Signal("writes_per_second", "1/s", "writes that it has done", "disk", rate=True),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._hardware = Hardware()
        self._rise: Rise[tuple[str, str]] = Rise()

    def read(self, reading: Reading) -> None:
        found = diskstats(procfs.read("/proc/diskstats"))
        stats = {name: found[name] for name in self._hardware.find() if name in found}
        rose = self._rise.since(
            {(disk, counter): value for disk, one in stats.items() for counter, value in _counters(one).items()}
        )
        seen = [disk for disk in stats if (disk, "busy") in rose]
        for disk, one in stats.items():
            reading.set("disk", f"{self._node}/disk/{disk}", "in_flight", one.in_flight)
        for disk in seen:
            self._report(reading, disk, {counter: rose[disk, counter] for counter in _counters(stats[disk])})
        if seen:
            self._sum_up(reading, [f"{self._node}/disk/{disk}" for disk in seen])

    def close(self) -> None:
        pass

    def _report(self, reading: Reading, disk: str, rose: dict[str, float]) -> None:
        subject = f"{self._node}/disk/{disk}"
        reading.set("disk", subject, "busy_ratio", min(1.0, rose["busy"] / reading.seconds))
        operations = rose["reads"] + rose["writes"]
        reading.set("disk", subject, "await_seconds", rose["wait"] / operations if operations else None)
        for signal, counter in _RATES.items():
            reading.set("disk", subject, signal, rose[counter] / reading.seconds)

    def _sum_up(self, reading: Reading, subjects: list[str]) -> None:
        def of(signal: str) -> list[float]:
            return [v for s in subjects if (v := reading.values.get(("disk", s, signal))) is not None]

        reading.set("node", self._node, "disk_busy_ratio", max(of("busy_ratio")))
        reading.set("node", self._node, "disk_await_seconds", max(of("await_seconds"), default=None))
        for signal in ("read_bytes_per_second", "write_bytes_per_second"):
            reading.set("node", self._node, f"disk_{signal}", sum(of(signal)))


def _counters(stats: DiskStats) -> dict[str, float]:
    return {
        "busy": stats.busy_seconds,
        "wait": stats.read_seconds + stats.write_seconds,
        **{counter: getattr(stats, counter) for counter in _RATES.values()},
    }


COLLECTOR = Disk
