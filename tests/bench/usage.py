"""CPU time and memory of a process and its descendants, as the kernel accounts them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

MEGABYTE = 1e6
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of 10^6 bytes, summed over the processes."""

    resident_mb: float
    proportional_mb: float
    """What is shared with other processes is divided among them (PSS)."""
    peak_mb: float
    """Sum of the peaks, which need not have been at one time."""


def tree(pid: int) -> list[int]:
    """The process and its descendants that run now."""
    with suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def cpu_seconds(pid: int) -> float:
    """CPU time of one process, all threads that it ever had, without its children; nanoseconds are exact.

    It is the process's CPU clock of clock_gettime(2), whose identifier is made from the pid. Raises OSError when it has ended.
    """
    return time.clock_gettime_ns((~pid << 3) | 2) / 1e9


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process, of its descendants, and of those that ended and were waited for."""
    total = 0.0
    for member in tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += cpu_seconds(member) + (int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND
    return total


def memory(pid: int) -> Memory:
    """Of a process and its descendants."""
    resident = proportional = peak = 0
    for member in tree(pid):
        with suppress(OSError):
            status = _kilobytes(f"/proc/{member}/status")
            proportional += _kilobytes(f"/proc/{member}/smaps_rollup").get("Pss", 0)
            resident += status.get("VmRSS", 0)
            peak += status.get("VmHWM", 0)
    return Memory(*(value * 1024 / MEGABYTE for value in (resident, proportional, peak)))


def _kilobytes(path: str) -> dict[str, int]:
    rows = (line.split() for line in Path(path).read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if len(row) == 3 and row[2] == "kB"}
