"""CPU limits of cgroups, v1 and v2: the quota, and how often it was reached. A limit on a parent holds for the child."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from trimtab.agent import procfs

DEPTH_MAX = 32


@dataclass(frozen=True, slots=True)
class Mount:
    """Where the hierarchy that carries the CPU controller is mounted, and which cgroup is seen there."""

    version: int
    point: PurePosixPath
    root: PurePosixPath


@dataclass(frozen=True, slots=True)
class Throttling:
    """How many enforcement periods there were in which the group wanted to run, and in how many its quota ended."""

    periods: int
    throttled: int


def cpu_mount(mountinfo: str) -> Mount | None:
    """From /proc/self/mountinfo; v1 wins on a hybrid host, for v2 has no CPU controller then. Raises ValueError."""
    found: dict[int, Mount] = {}
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        before, after = left.split(), right.split()
        if not separator or len(before) < 5 or len(after) < 3:
            raise ValueError(f"mountinfo: {line[:80]!r}")
        version = {"cgroup": 1, "cgroup2": 2}.get(after[0], 0)
        if version == 2 or (version == 1 and "cpu" in after[2].split(",")):
            found.setdefault(version, Mount(version, PurePosixPath(before[4]), PurePosixPath(before[3])))
    return found.get(1) or found.get(2)


def directories(mount: Mount, membership: str) -> tuple[str, ...]:
    """The cgroup of a process (text of /proc/PID/cgroup) and all above it, leaf first; empty where it cannot be seen from here."""
    for line in membership.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if (mount.version == 1 and "cpu" in controllers.split(",")) or (mount.version == 2 and not controllers):
            return _upwards(mount, PurePosixPath(path))
    return ()


def _upwards(mount: Mount, path: PurePosixPath) -> tuple[str, ...]:
    if ".." in path.parts or not path.is_relative_to(mount.root):
        return ()
    leaf = mount.point / path.relative_to(mount.root)
    depth = len(leaf.parts) - len(mount.point.parts)
    return tuple(map(str, (leaf, *leaf.parents)[: min(depth, DEPTH_MAX) + 1]))


def throttling(directory: str) -> Throttling:
    """Both 0 where the group has no CPU controller and so no quota. Raises OSError, ValueError."""
    stat = procfs.counters(procfs.read(f"{directory}/cpu.stat"))
    return Throttling(stat.get("nr_periods", 0), stat.get("nr_throttled", 0))


def limit_cores(mount: Mount, directory: str) -> float:
    """The group's own quota; infinite without one. Raises OSError, ValueError."""
    try:
        if mount.version == 2:
            return quota_cores(procfs.read(f"{directory}/cpu.max"))
        quota = procfs.read(f"{directory}/cpu.cfs_quota_us").strip()
        return quota_cores(f"{'max' if quota == '-1' else quota} {procfs.read(f'{directory}/cpu.cfs_period_us')}")
    except FileNotFoundError:  # the root, and groups without the controller
        return float("inf")


def quota_cores(text: str) -> float:
    """cpu.max: "QUOTA PERIOD" or "max PERIOD", microseconds."""
    quota, _, period = text.strip().partition(" ")
    period_us = procfs.whole(period.strip())
    if not period_us:
        raise ValueError("cpu.max: the period is 0")
    return float("inf") if quota == "max" else procfs.whole(quota) / period_us
