"""The journal of oom.c, seen from here: who was killed because memory ran out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf.histogram import view
from trimtab.agent.bpf.loader import Program
from trimtab.agent.bpf.source import Source

VICTIMS_MAX = 64
"""How many the kernel remembers; a power of two. What is not read before as many others are killed is lost, and counted."""

_ANCESTORS_MAX = 8
_CGROUP_DEPTH_MAX = 6
_CGROUP_NAME_BYTES = 96
_VICTIM = np.dtype(
    [
        ("started_ns", "<u8"),
        ("pid", "<u4"),
        ("ancestors", "<u4", (_ANCESTORS_MAX,)),
        ("padding", "<u4"),
        ("comm", "S16"),
        ("cgroup", f"S{_CGROUP_NAME_BYTES}", (_CGROUP_DEPTH_MAX,)),
    ]
)
JOURNAL = np.dtype([("total", "<u8"), ("last", _VICTIM, (VICTIMS_MAX,))])
"""`struct journal` of oom.c: how many there have been, each at its number modulo `VICTIMS_MAX`."""


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that the kernel has marked to be killed for want of memory."""

    pid: int
    started_ns: int
    """After the boot, suspend included; with the pid it names a process for good. 0 where the kernel does not tell."""
    ancestors: tuple[int, ...]
    """The pids above it, its parent first."""
    name: str
    """As in /proc/PID/comm; empty where it is not known."""
    cgroup: str
    """The last levels of its memory cgroup's path; empty where it is not known."""


def source() -> Source:
    """What the loader must know of oom.c."""
    return Source(
        file="oom.c",
        maps=("journal",),
        raw_tracepoints=("mark_victim",),
        offsets={
            "TASK_TGID": ("task_struct.tgid",),
            "TASK_COMM": ("task_struct.comm",),
            "TASK_LEADER": ("task_struct.group_leader",),
            "TASK_PARENT": ("task_struct.real_parent",),
            "TASK_STARTED": ("task_struct.start_boottime",),
            "TASK_CGROUPS": ("task_struct.cgroups",),
            "CSS_SET_SUBSYS": ("css_set.subsys",),
            "CSS_SUBSYS": ("cgroup_subsys_state.ss",),
            "CSS_CGROUP": ("cgroup_subsys_state.cgroup",),
            "SUBSYS_NAME": ("cgroup_subsys.name",),
            "CGROUP_NODE": ("cgroup.kn",),
            "NODE_NAME": ("kernfs_node.name",),
        },
        flags={
            "VICTIMS_MAX": str(VICTIMS_MAX),
            "ANCESTORS_MAX": str(_ANCESTORS_MAX),
            "CGROUP_DEPTH_MAX": str(_CGROUP_DEPTH_MAX),
            "CGROUP_NAME_BYTES": str(_CGROUP_NAME_BYTES),
        },
    )


def journal_of(program: Program) -> NDArray[np.void]:
    """The journal as the kernel writes it: JOURNAL, [1]."""
    return view(program.maps["journal"], JOURNAL, 1)


class Journal:
    """The victims since this was made, each of them given once."""

    def __init__(self, journal: NDArray[np.void]) -> None:
        self._journal = journal
        self._read = int(journal["total"][0])
        self.lost = 0
        """How many were overwritten before they were read."""

    def victims(self) -> list[Victim]:
        """Those since the last call, in their order."""
        total = int(self._journal["total"][0])
        first = max(self._read, total - VICTIMS_MAX)
        self.lost += first - self._read
        self._read = total
        return [_victim(self._journal["last"][0][number % VICTIMS_MAX]) for number in range(first, total)]


def _victim(record: np.void) -> Victim:
    ancestors = [int(pid) for pid in record["ancestors"]]
    levels = [bytes(name).decode(errors="replace") for name in record["cgroup"]]
    return Victim(
        pid=int(record["pid"]),
        started_ns=int(record["started_ns"]),
        ancestors=tuple(ancestors[: ancestors.index(0)] if 0 in ancestors else ancestors),
        name=bytes(record["comm"]).decode(errors="replace"),
        cgroup="/".join(reversed([level for level in levels if level])),
    )
