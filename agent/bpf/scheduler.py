"""The maps of scheduler.c, seen from here: which processes are watched for which instance, and what was counted for each."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.agent import procfs
from trimtab.agent.bpf import syscall
from trimtab.agent.bpf.histogram import HISTOGRAM, view
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.source import Source

SCHEDULED = np.dtype(
    [
        ("on_cpu_ns", "<u8"),
        ("uninterruptible_ns", "<u8"),
        ("preemptions", "<u8"),
        ("migrations", "<u8"),
        ("lost", "<u8"),
        ("run_queue", HISTOGRAM),
        ("off_cpu", HISTOGRAM),
    ]
)
"""`struct scheduled` of scheduler.c. Everything in it only grows."""

SCHEDULED_MAX = 64
"""How many instances are watched at once on one host."""

_CORE = np.dtype([("since_ns", "<u8"), ("instance", "<u4"), ("tid", "<u4")])
_POSSIBLE = Path("/sys/devices/system/cpu/possible")
_PROCESSES_MAX = 8192


def source() -> Source:
    """What the loader must know of scheduler.c."""
    return Source(
        file="scheduler.c",
        maps=("processes", "cores", "scheduled", "valid_from"),
        # The switch first: what another hook sees before it is there would never be finished.
        typed_tracepoints=(
            "sched_switch",
            "sched_wakeup",
            "sched_wakeup_new",
            "sched_process_fork",
            "sched_migrate_task",
        ),
        offsets={
            "TASK_PID": ("task_struct.pid",),
            "TASK_TGID": ("task_struct.tgid",),
            "TASK_STATE": ("task_struct.__state",),
        },
        flags={"SCHEDULED_MAX": str(SCHEDULED_MAX), "CPUS": str(cpus()), "PROCESSES_MAX": str(_PROCESSES_MAX)},
    )


def cpus() -> int:
    """One more than the highest number that a core of this host can have; 1 where the kernel does not say."""
    try:
        return procfs.whole(procfs.read(str(_POSSIBLE)).strip().replace("-", ",").split(",")[-1]) + 1
    except (OSError, ValueError):
        return 1


class Schedule:
    """What the kernel counts for the processes that are watched."""

    def __init__(self, program: Program) -> None:
        self._processes_fd = program.maps["processes"]
        self._valid_from_fd = program.maps["valid_from"]
        self._scheduled = view(program.maps["scheduled"], SCHEDULED, SCHEDULED_MAX)
        self._cores = view(program.maps["cores"], _CORE, cpus())

    def forget(self, now_ns: int) -> None:
        """Use no time of before `now_ns` (monotonic): threads moved on unseen. Raises OSError."""
        syscall.map_update(self._valid_from_fd, struct.pack("<I", 0), struct.pack("<Q", now_ns))

    def watch(self, processes: Mapping[int, int]) -> None:
        """Watch these processes too, given with their slots, and what they start from now on. Raises OSError."""
        for pid, slot in processes.items():
            syscall.map_update(self._processes_fd, struct.pack("<I", pid), struct.pack("<I", slot))

    def watched(self) -> dict[int, int]:
        """The slot of each process that is watched now, by pid. Raises OSError."""
        out: dict[int, int] = {}
        for pids, slots in syscall.map_lookup_batch(self._processes_fd, 4, 4, _PROCESSES_MAX):
            out |= zip(np.frombuffer(pids, "<u4").tolist(), np.frombuffer(slots, "<u4").tolist(), strict=True)
        return out

    def unwatch(self, slots: Iterable[int]) -> None:
        """Watch the processes of these slots no longer. Raises OSError."""
        gone = set(slots)
        self.end(pid for pid, slot in self.watched().items() if slot in gone)

    def end(self, pids: Iterable[int]) -> None:
        """Watch these processes no longer. Raises OSError."""
        for pid in list(pids):
            with contextlib.suppress(FileNotFoundError):  # it has just ended
                syscall.map_delete(self._processes_fd, struct.pack("<I", pid))

    def read(self, slot: int) -> NDArray[np.void]:
        """A copy of what is counted for a slot: SCHEDULED, no dimensions."""
        copy: NDArray[np.void] = self._scheduled[slot].copy()
        return copy

    def running_ns(self, now_ns: int) -> dict[int, int]:
        """For how long the threads that are on a core now have been there, by slot: it is not yet in `on_cpu_ns`."""
        out: dict[int, int] = {}
        for core in self._cores[self._cores["since_ns"] > 0]:
            slot = int(core["instance"])
            out[slot] = out.get(slot, 0) + max(0, now_ns - int(core["since_ns"]))
        return out
