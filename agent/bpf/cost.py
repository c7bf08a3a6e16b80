"""What the kernel says that programs cost: their run time, which it counts while someone asks it to.

Counting costs two readings of the clock a run, so it is asked for one window in ten. It needs CAP_SYS_ADMIN; without it the cost is
estimated from how often the host does what the probes hang on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from trimtab.agent import procfs
from trimtab.agent.bpf import syscall
from trimtab.agent.probes import Probe

NOMINAL: dict[str, tuple[str, float]] = {
    "requests": ("segments", 120e-9),
    "request queue": ("segments", 40e-9),
    "tcp rtt": ("segments", 40e-9),
    "scheduler": ("switches", 300e-9),
}
"""By probe, the host's counter that it follows, and CPU seconds for each count."""


def run_seconds(probes: Iterable[Probe]) -> dict[str, float]:
    """CPU seconds of each probe's programs, counted while `counting()` was open. Raises OSError."""
    return {
        probe.name: sum(
            syscall.program_run_ns(fd) for hook, fd in probe.program.programs.items() if hook in probe.hooks
        )
        / 1e9
        for probe in probes
    }


def counting() -> int | None:
    """A descriptor while which is open the kernel counts; None where this process may not ask for it."""
    try:
        return syscall.count_run_time()
    except OSError:
        return None


def nominal_seconds(probes: Iterable[Probe]) -> dict[str, float]:
    """CPU seconds that the probes should have cost since the host started, by its own counters. Raises OSError, ValueError."""
    counts = {
        "switches": procfs.context_switches(procfs.read("/proc/stat")),
        "segments": procfs.tcp_segments(procfs.read("/proc/net/snmp")),
    }
    known = ((probe.name, NOMINAL[probe.name]) for probe in probes if probe.name in NOMINAL)
    return {name: counts[counter] * seconds for name, (counter, seconds) in known}


def close(descriptor: int) -> None:
    """Let the kernel stop counting."""
    os.close(descriptor)
