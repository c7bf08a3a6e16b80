"""The processes of each serving instance: the server and its workers, and the CPU limits that hold for any of them.

Cost: 1 ms a window for an instance with 30 threads. Memory shared among its processes is counted once for each.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from trimtab.agent import cgroup, procfs
from trimtab.agent.processes import Member, alive, tree
from trimtab.agent.registry import Host, Instance, Reading, Signal

K = TypeVar("K", bound=Hashable)

REMEMBERED_MAX = 256
"""Instances, of now and of the past, whose restarts are counted."""


@dataclass(slots=True)
class Sample:
    """One look at a process tree; the counters by process, thread or cgroup."""

    started: tuple[int, float]
    looked_at: float
    """Seconds from the boot, before anything was read."""
    cpu_seconds: dict[tuple[int, float], float] = field(default_factory=dict)
    major_faults: dict[tuple[int, float], float] = field(default_factory=dict)
    run_queue_seconds: dict[tuple[int, str], float] = field(default_factory=dict)
    throttling: dict[str, cgroup.Throttling] = field(default_factory=dict)
    resident_bytes: int = 0
    threads: int = 0
    stopped: int = 0
    limit_cores: float = float("inf")


class Process:
    """Adds up the tree; of limits and throttling it takes the worst, for the slowest worker sets the pace."""

    name = "process"
    signals = (
        Signal("cpu_other_cores", "cores", "cores busy with anything but the serving instances", "node", rate=True),
        Signal("cpu_used_cores", "cores", "CPU time of its processes", "instance", rate=True),
        Signal(
            "cpu_run_queue_ratio", "1", "seconds that its threads waited for a core, per second", "instance", rate=True
        ),
        Signal(
            "cpu_throttled_ratio",
            "1",
            "share of the periods in which its CPU quota ended early; the worst cgroup",
            "instance",
        ),
        Signal("cpu_limit_cores", "cores", "cores it may use: the least of quota, affinity and the host's", "instance"),
        Signal("memory_resident_bytes", "bytes", "memory of its processes that is in RAM", "instance"),
        Signal(
            "major_faults_per_second",
            "1/s",
            "page faults of its processes that waited for a disk",
            "instance",
            rate=True,
        ),
        Signal("threads", "1", "threads of its processes", "instance"),
        Signal("processes_stopped", "1", "its processes that are stopped: by SIGSTOP or by a debugger", "instance"),
        Signal(
            "process_restarts", "1", "how often the process behind the port changed since the agent started", "instance"
        ),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._clock = host.clock
        self._mount = cgroup.cpu_mount(procfs.read("/proc/self/mountinfo"))
        self._before: dict[str, Sample] = {}
        self._busy_before: float | None = None
        self._restarts: dict[str, tuple[tuple[int, float], int]] = {}

    def read(self, reading: Reading) -> None:
        samples = {instance.id: self._sample(instance) for instance in reading.instances}
        used = [self._report(reading, id_, sample) for id_, sample in samples.items()]
        busy = procfs.host_cpu(procfs.read("/proc/stat")).busy
        known = [cores for cores in used if cores is not None]
        if self._busy_before is not None and len(known) == len(used):
            total = (busy - self._busy_before) / reading.seconds
            reading.set("node", self._node, "cpu_other_cores", max(0.0, total - sum(known)))
        self._busy_before = busy
        self._before = samples
        for instance in reading.instances:
            self._count_restarts(reading, instance)

    def close(self) -> None:
        pass

    def _sample(self, instance: Instance) -> Sample:
        sample = Sample((instance.pid, instance.started), self._clock.boottime_ns() / 1e9)
        for member in tree(instance.pid) if alive(instance.pid, instance.started) else ():
            try:
                stat = procfs.process_stat(procfs.read(f"/proc/{member.pid}/stat"))
                sample.limit_cores = min(sample.limit_cores, len(os.sched_getaffinity(member.pid)))
            except OSError:  # it ended
                continue
            self._add_cgroups(sample, member.pid)
            process = (member.pid, stat.started)
            sample.cpu_seconds[process] = stat.cpu_seconds
            sample.major_faults[process] = stat.major_faults
            sample.resident_bytes += stat.resident_bytes
            sample.threads += stat.threads
            sample.stopped += stat.state in {"T", "t"}
            sample.run_queue_seconds.update(_run_queue(member))
        return sample

    def _add_cgroups(self, sample: Sample, pid: int) -> None:
        if self._mount is None:
            return
        with contextlib.suppress(OSError):  # it ended, or the agent may not look; what is not read stays unknown
            for directory in cgroup.directories(self._mount, procfs.read(f"/proc/{pid}/cgroup")):
                if directory not in sample.throttling:
                    sample.throttling[directory] = cgroup.throttling(directory)
                    sample.limit_cores = min(sample.limit_cores, cgroup.limit_cores(self._mount, directory))

    def _report(self, reading: Reading, id_: str, now: Sample) -> float | None:
        """Sets the signals of one instance; its used cores, or None while unknown."""
        if not now.cpu_seconds:
            return None
        reading.set("instance", id_, "memory_resident_bytes", now.resident_bytes)
        reading.set("instance", id_, "threads", now.threads)
        reading.set("instance", id_, "processes_stopped", now.stopped)
        reading.set("instance", id_, "cpu_limit_cores", now.limit_cores)
        before = self._before.get(id_)
        if before is None or before.started != now.started:
            return None
        reading.set("instance", id_, "cpu_throttled_ratio", _throttled(now.throttling, before.throttling))
        if _missed(now, before):
            return None
        used = _grown(now.cpu_seconds, before.cpu_seconds) / reading.seconds
        reading.set("instance", id_, "cpu_used_cores", used)
        faults = _grown(now.major_faults, before.major_faults)
        reading.set("instance", id_, "major_faults_per_second", faults / reading.seconds)
        if now.run_queue_seconds:
            waited = _grown(now.run_queue_seconds, before.run_queue_seconds)
            reading.set("instance", id_, "cpu_run_queue_ratio", waited / reading.seconds)
        return used

    def _count_restarts(self, reading: Reading, instance: Instance) -> None:
        now = (instance.pid, instance.started)
        before, count = self._restarts.pop(instance.id, (now, 0))
        if before != now:
            count += 1
            reading.event("instance", instance.id, "process_restart", detail=f"pid {before[0]} became {now[0]}")
        self._restarts[instance.id] = (now, count)
        if len(self._restarts) > REMEMBERED_MAX:
            del self._restarts[next(iter(self._restarts))]
        reading.set("instance", instance.id, "process_restarts", count)


def _run_queue(member: Member) -> dict[tuple[int, str], float]:
    out = {}
    for thread in member.threads:
        try:
            text = procfs.read(f"/proc/{member.pid}/task/{thread}/schedstat")
        except OSError:  # it ended, or the kernel has no CONFIG_SCHED_INFO
            continue
        out[member.pid, thread] = procfs.run_queue_seconds(text)
    return out


def _missed(now: Sample, before: Sample) -> bool:
    """Whether a process was there at the look before but not seen: what its counters rose by since then is unknown."""
    latest = before.looked_at - 1 / procfs.TICKS_PER_SECOND  # start times are rounded down
    return any(started < latest for pid, started in now.cpu_seconds.keys() - before.cpu_seconds.keys())


def _grown(now: Mapping[K, float], before: Mapping[K, float]) -> float:
    """By how much the counters rose. What is new began within this window, at 0."""
    return sum(value - (was if (was := before.get(key, 0.0)) <= value else 0.0) for key, value in now.items())


def _throttled(now: dict[str, cgroup.Throttling], before: dict[str, cgroup.Throttling]) -> float | None:
    """The worst of the cgroups seen in both looks; 0 for one that had no period to be throttled in; None without any."""
    shares = []
    for directory, group in now.items():
        if directory in before:
            periods = group.periods - before[directory].periods
            throttled = group.throttled - before[directory].throttled
            shares.append(min(1.0, max(0.0, throttled / periods)) if periods > 0 else 0.0)
    return max(shares, default=None)


COLLECTOR = Process
