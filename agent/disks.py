"""The disks of this host that are hardware, and the kernel's count of what they did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.agent import procfs

BLOCK_DEVICES = Path("/sys/block")
DISKS_MAX = 64
"""Those beyond, by name, are not looked at."""
_SECTOR_BYTES = 512  # in /proc/diskstats, whatever the disk's own


@dataclass(frozen=True, slots=True)
class DiskStats:
    """A row of /proc/diskstats; all but the requests in flight since boot."""

    reads: int
    read_bytes: int
    read_seconds: float
    writes: int
    write_bytes: int
    write_seconds: float
    in_flight: int
    busy_seconds: float


def diskstats(text: str) -> dict[str, DiskStats]:
    """/proc/diskstats, by disk or partition. Garbage raises ValueError."""
    out = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 14:
            raise ValueError(f"/proc/diskstats: {line[:80]!r}")
        reads, _, read, read_ms, writes, _, written, write_ms, in_flight, busy_ms = map(procfs.whole, fields[3:13])
        out[fields[2]] = DiskStats(
            reads,
            read * _SECTOR_BYTES,
            read_ms / 1000,
            writes,
            written * _SECTOR_BYTES,
            write_ms / 1000,
            in_flight,
            busy_ms / 1000,
        )
    return out


class Hardware:
    """Which disks are hardware. Loop, RAM and device-mapper disks are not: their work shows on the disk below."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._found: dict[str, tuple[int, int]] = {}

    def find(self) -> dict[str, tuple[int, int]]:
        """Major and minor number of each, by name. Raises OSError, ValueError."""
        names = frozenset(entry.name for entry in BLOCK_DEVICES.iterdir())
        if names != self._names:
            known = sorted(name for name in names if (BLOCK_DEVICES / name / "device").exists())
            self._found = {name: _numbers(name) for name in known[:DISKS_MAX]}
            self._names = names
        return self._found


def _numbers(name: str) -> tuple[int, int]:
    major, _, minor = procfs.read(str(BLOCK_DEVICES / name / "dev")).strip().partition(":")
    return procfs.whole(major), procfs.whole(minor)
