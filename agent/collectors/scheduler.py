"""How the threads of each serving instance got on with the cores, measured in the kernel at every switch (docs/host-signals.md)."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf.histogram import grown
from trimtab.agent.bpf.host import HOST_PROGRAM, hooks_of
from trimtab.agent.bpf.scheduler import SCHEDULED_MAX, Schedule
from trimtab.agent.bpf.slots import Slots
from trimtab.agent.probes import Hooks, Probe
from trimtab.agent.processes import alive, tree
from trimtab.agent.registry import Host, Instance, Reading, Signal, Unavailable

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 60.0
"""When the processes of all instances are looked up again. The kernel follows forks by itself; this mends what it may have missed."""

_LOOKS_MAX = 3
_PID_NAMESPACE = Path("/proc/self/ns/pid")
_HOST_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of every kernel
_SKETCHES = {"run_queue_latency": "run_queue", "off_cpu_time": "off_cpu"}
_RATES = {"cpu_preemptions_per_second": "preemptions", "cpu_migrations_per_second": "migrations"}

Process = tuple[int, float]
"""Pid and start time of the process that listens."""


class SchedulerProbe(Probe):
    """Forgets, when it is switched on, what it knew of the threads: they moved on unseen."""

    def __init__(self, program: Hooks, schedule: Schedule, host: Host) -> None:
        super().__init__("scheduler", program, hooks_of("scheduler"))
        self._schedule = schedule
        self._clock = host.clock

    def switch(self, on: bool) -> None:
        if on:
            self._schedule.forget(round(self._clock.monotonic() * 1e9))
        super().switch(on)


class Scheduler:
    """Watches the processes of every instance. An instance is known from the second reading that names it."""

    name = "scheduler"
    signals = (
        Signal("run_queue_latency", "s", "a thread of it is ready to run → it runs", "instance", sketch=True),
        Signal("off_cpu_time", "s", "a thread of it goes to sleep → it is woken", "instance", sketch=True),
        Signal("cpu_on_cores", "cores", "cores that its threads held, as the scheduler saw it", "instance", rate=True),
        Signal(
            "cpu_uninterruptible_ratio",
            "1",
            "seconds that its threads slept for a disk or a driver (state D), per second; of the sleeps that ended",
            "instance",
            rate=True,
        ),
        Signal("cpu_preemptions_per_second", "1/s", "its threads that lost their core unasked", "instance", rate=True),
        Signal("cpu_migrations_per_second", "1/s", "its threads that went to another core", "instance", rate=True),
    )

    def open(self, host: Host) -> None:
        if _PID_NAMESPACE.stat().st_ino != _HOST_PID_NAMESPACE:
            raise Unavailable("the agent runs in a pid namespace of its own", "run it in that of the host")
        self._host = host
        self._program = HOST_PROGRAM.open("scheduler")
        self._schedule = Schedule(self._program)
        self._probe = SchedulerProbe(self._program, self._schedule, host)
        self._schedule.forget(self._now_ns())
        host.probes.add(self._probe)
        self._slots: Slots[Process] = Slots(SCHEDULED_MAX)
        self._before: dict[Process, tuple[NDArray[np.void], int]] = {}
        self._look_at = -math.inf
        self._full = False

    def read(self, reading: Reading) -> None:
        instances = {(i.pid, i.started): i for i in reading.instances if alive(i.pid, i.started)}
        self._watch(set(instances))
        whole = self._probe.whole()
        if not whole and self._probe.on:
            self._look_at = -math.inf  # forks went unseen until now
        running_ns = self._schedule.running_ns(self._now_ns())
        now = {
            process: (self._schedule.read(slot), running_ns.get(slot, 0)) for process, slot in self._slots.of().items()
        }
        for process in now.keys() & self._before.keys() if whole else ():
            _fill(reading, instances[process], self._before[process], now[process])
        self._before = now

    def close(self) -> None:
        self._host.probes.remove(self._probe)
        self._schedule.unwatch(self._slots.of().values())
        del self._schedule
        HOST_PROGRAM.close(self._program, "scheduler")

    def _now_ns(self) -> int:
        return round(self._host.clock.monotonic() * 1e9)

    def _watch(self, processes: set[Process]) -> None:
        come, gone = self._slots.watch(processes)
        if gone:
            self._schedule.unwatch(gone.values())
        full = len(self._slots.of()) < len(processes)
        if full and not self._full:
            log.warning("scheduler: only %d instances are watched; unknown for the rest", SCHEDULED_MAX)
        self._full = full
        now = self._host.clock.monotonic()
        if come or now >= self._look_at:
            self._look_at = now + LOOK_AGAIN_SECONDS
            self._adopt()

    def _adopt(self) -> None:
        """Watch all processes of the instances; again until none is new, for one may fork between our look and the kernel's."""
        for _ in range(_LOOKS_MAX):
            watched = self._schedule.watched()
            found = _processes(self._slots.of())
            new = {pid: slot for pid, slot in found.items() if watched.get(pid) != slot}
            if not new:
                break
            self._schedule.watch(new)
        self._schedule.end([pid for pid in watched.keys() - found if not Path(f"/proc/{pid}").exists()])


def _processes(slots: dict[Process, int]) -> dict[int, int]:
    """The slot of each process; one below two instances belongs to the smaller."""
    trees = [([m.pid for m in tree(pid)], slot) for (pid, started), slot in slots.items() if alive(pid, started)]
    return {pid: slot for pids, slot in sorted(trees, key=lambda t: -len(t[0])) for pid in pids}


def _fill(
    reading: Reading, instance: Instance, before: tuple[NDArray[np.void], int], now: tuple[NDArray[np.void], int]
) -> None:
    (was, ran_ns), (is_, runs_ns) = before, now
    for signal, field in _RATES.items():
        reading.set("instance", instance.id, signal, int(is_[field] - was[field]) / reading.seconds)
    held_ns = int(is_["on_cpu_ns"] - was["on_cpu_ns"]) + runs_ns - ran_ns
    reading.set("instance", instance.id, "cpu_on_cores", max(0, held_ns) / 1e9 / reading.seconds)
    if is_["lost"] != was["lost"]:
        return  # some waits are not known
    slept_ns = int(is_["uninterruptible_ns"] - was["uninterruptible_ns"])
    reading.set("instance", instance.id, "cpu_uninterruptible_ratio", slept_ns / 1e9 / reading.seconds)
    for signal, field in _SKETCHES.items():
        if (sketch := grown(is_[field], was[field])) is not None:
            reading.sketch("instance", instance.id, signal, sketch)


COLLECTOR = Scheduler
