"""A process and its descendants, by the `children` files of procfs: the cost grows with the instance, not with the host."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from itertools import islice

import psutil

from trimtab.agent import procfs

PROCESSES_MAX = 512
"""Descendants of one process that are looked at."""
DESCRIPTORS_MAX = 65536
"""Open files of one process that are looked at."""
CHILDREN_FILES = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110
"""Whether the kernel has them (CONFIG_PROC_CHILDREN); psutil looks at every process of the host instead."""


@dataclass(frozen=True, slots=True)
class Member:
    """One process of a tree."""

    pid: int
    threads: tuple[str, ...]


def alive(pid: int, started: float) -> bool:
    """Whether this very process still runs."""
    try:
        stat = procfs.process_stat(procfs.read(f"/proc/{pid}/stat"))
    except (OSError, ValueError):
        return False
    return stat.started == started and stat.state not in {"Z", "X"}


def sockets(pid: int) -> set[int]:
    """The inodes of the sockets that the process holds. Raises OSError."""
    held: set[int] = set()
    with os.scandir(f"/proc/{pid}/fd") as entries:
        for entry in islice(entries, DESCRIPTORS_MAX):
            with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
                target = os.readlink(entry.path)  # noqa: PTH115
                if target.startswith("socket:["):
                    held.add(int(target[8:-1]))
    return held


def tree(root: int) -> list[Member]:
    """The process and all below it, the process first. What ends meanwhile is left out."""
    out: list[Member] = []
    waiting = [root]
    seen = {root}
    while waiting and len(out) < PROCESSES_MAX:
        pid = waiting.pop(0)
        try:
            member = Member(pid, tuple(os.listdir(f"/proc/{pid}/task")))  # noqa: PTH208
        except OSError:
            continue
        out.append(member)
        children = _children(member) - seen
        seen |= children
        waiting.extend(sorted(children))
    return out


def _children(member: Member) -> set[int]:
    if not CHILDREN_FILES:
        try:
            return {child.pid for child in psutil.Process(member.pid).children()}
        except psutil.Error:
            return set()
    out: set[int] = set()
    for thread in member.threads:
        try:
            out.update(map(int, procfs.read(f"/proc/{member.pid}/task/{thread}/children").split()))
        except OSError:
            continue
    return out
