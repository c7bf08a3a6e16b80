"""Who was killed because memory ran out, told by the kernel as it happens (docs/host-signals.md)."""

from __future__ import annotations

from collections import OrderedDict

from trimtab.agent.bpf.host import HOST_PROGRAM, hooks_of
from trimtab.agent.bpf.oom import Journal, Victim, journal_of
from trimtab.agent.probes import Probe
from trimtab.agent.registry import Host, Instance, Reading, Signal

REMEMBERED_MAX = 256
"""Victims and instances of the past: a victim may be marked twice, and an instance is gone when its main process was killed."""


class Oom:
    """Each kill is an event of the instance that the victim was of, else of the node."""

    name = "oom"
    signals = (
        Signal("oom_victims", "1", "processes killed for want of memory since the agent started", "node"),
        Signal("oom_victims_lost", "1", "of these, how many more there were than the kernel could remember", "node"),
    )

    def open(self, host: Host) -> None:
        self._host = host
        self._program = HOST_PROGRAM.open("oom")
        self._journal = Journal(journal_of(self._program))
        self._probe = Probe("oom", self._program, hooks_of("oom"))
        host.probes.add(self._probe)
        self._victims = 0
        self._killed: OrderedDict[tuple[int, int], None] = OrderedDict()
        self._instances: OrderedDict[int, str] = OrderedDict()

    def read(self, reading: Reading) -> None:
        for instance in reading.instances:
            self._remember(instance)
        for victim in self._journal.victims():
            if self._is_new(victim):
                self._victims += 1
                self._tell(reading, victim)
        if self._probe.whole():
            reading.set("node", self._host.node, "oom_victims", self._victims + self._journal.lost)
            reading.set("node", self._host.node, "oom_victims_lost", self._journal.lost)

    def close(self) -> None:
        self._host.probes.remove(self._probe)
        del self._journal
        HOST_PROGRAM.close(self._program, "oom")

    def _remember(self, instance: Instance) -> None:
        self._instances[instance.pid] = instance.id
        self._instances.move_to_end(instance.pid)
        if len(self._instances) > REMEMBERED_MAX:
            self._instances.popitem(last=False)

    def _is_new(self, victim: Victim) -> bool:
        """Whether it was not told before: the kernel may mark a second thread of a process that is slow to die."""
        key = (victim.pid, victim.started_ns)
        if key in self._killed:
            return False
        self._killed[key] = None
        if len(self._killed) > REMEMBERED_MAX:
            self._killed.popitem(last=False)
        return True

    def _tell(self, reading: Reading, victim: Victim) -> None:
        line = (victim.pid, *victim.ancestors)
        owner = next((self._instances[pid] for pid in line if pid in self._instances), None)
        parts = [f"pid {victim.pid}", *([victim.name] if victim.name else [])]
        detail = " ".join(parts) + (f" in cgroup {victim.cgroup}" if victim.cgroup else "")
        if owner is None:
            reading.event("node", self._host.node, "oom_kill", detail=detail)
        else:
            reading.event("instance", owner, "oom_kill", detail=detail)


COLLECTOR = Oom
