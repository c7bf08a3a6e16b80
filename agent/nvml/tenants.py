"""Who shares a GPU: the processes that compute on it, the serving instances they belong to, and the MIG instances it is split into."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.agent.nvml.library import Device, Lost, call
from trimtab.agent.nvml.slow import SLOW_SECONDS
from trimtab.agent.processes import tree
from trimtab.agent.registry import Reading, Signal
from trimtab.agent.wire.columns import TEXT_MAX

SIGNALS = (
    Signal("mig_instances", "1", "MIG instances on it", "gpu"),
    Signal("processes", "1", "processes that compute on it", "gpu"),
    Signal("processes_memory_bytes", "bytes", "its memory that those processes use", "gpu"),
    Signal("gpu_memory_used_bytes", "bytes", "memory that the instance uses on all GPUs together", "instance"),
)
MIG_MAX = 16
"""MIG instances of one GPU; NVIDIA allows 7."""
UNKNOWN_BYTES = (1 << 64) - 1
"""What the driver says instead of a size that it does not know."""


def processes(device: Device) -> dict[int, float | None] | None:
    """The bytes each process that computes on it uses there, by pid; None for what is not known. Raises Lost."""
    found: dict[int, float | None] = {}
    answers = [
        call("nvmlDeviceGetComputeRunningProcesses", device.handle),
        call("nvmlDeviceGetMPSComputeRunningProcesses", device.handle),
    ]
    for one in (one for answer in answers for one in answer or ()):
        found[one.pid] = None if one.usedGpuMemory in (None, UNKNOWN_BYTES) else float(one.usedGpuMemory)
    return None if answers == [None, None] else found


def mig_devices(device: Device) -> tuple[Device, ...]:
    """The MIG instances on it. Raises Lost."""
    mode = call("nvmlDeviceGetMigMode", device.handle)
    if mode is None or not mode[0]:
        return ()
    count = min(call("nvmlDeviceGetMaxMigDeviceCount", device.handle) or 0, MIG_MAX)
    out = []
    for index in range(count):
        handle = call("nvmlDeviceGetMigDeviceHandleByIndex", device.handle, index)
        uuid = None if handle is None else call("nvmlDeviceGetUUID", handle)
        if uuid is not None:
            out.append(Device(handle, index, uuid, call("nvmlDeviceGetName", handle) or device.name, device.address))
    return tuple(out)


class Tenants:
    """Who is on the GPUs, as it was found last: every `SLOW_SECONDS`, and at once when the serving instances change."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._due_at = -math.inf
        self._running: frozenset[tuple[str, int, float]] = frozenset()
        self._found = Reading((), math.nan)

    def read(self, reading: Reading, devices: Sequence[Device], now: float) -> None:
        """Fill in what is known of these GPUs, after looking anew where it is time."""
        running = frozenset((one.id, one.pid, one.started) for one in reading.instances)
        if now >= self._due_at or running != self._running:
            self._due_at, self._running = now + SLOW_SECONDS, running
            self._found = Reading(reading.instances, reading.seconds)
            self._look(self._found, devices)
        answer = {self._subject(device) for device in devices}
        for (kind, subject, name), value in self._found.values.items():
            above = self._found.labels.get((kind, subject), {}).get("parent", subject)
            if kind != "gpu" or above in answer:
                reading.set(kind, subject, name, value)
        for (kind, subject), labels in self._found.labels.items():
            reading.label(kind, subject, **labels)

    def _subject(self, device: Device) -> str:
        return f"{self._node}/gpu/{device.uuid}"

    def _look(self, found: Reading, devices: Sequence[Device]) -> None:
        owners = {member.pid: one.id for one in found.instances for member in tree(one.pid)}
        for device in devices:
            try:
                parts = mig_devices(device)
                found.set("gpu", self._subject(device), "mig_instances", float(len(parts)))
                # The whole tells of the processes of its parts too: they are counted once.
                self._look_at(found, device, owners, counted=not parts)
                for part in parts:
                    self._describe(found, part, device)
                    self._look_at(found, part, owners, counted=True)
            except Lost:
                continue  # the next window tells of it

    def _describe(self, found: Reading, part: Device, whole: Device) -> None:
        subject = self._subject(part)
        label = {"index": f"{whole.index}:{part.index}", "name": part.name, "parent": self._subject(whole)}
        found.label("gpu", subject, **label)
        memory = call("nvmlDeviceGetMemoryInfo", part.handle)
        if memory is not None:
            found.set("gpu", subject, "memory_used_bytes", memory.used)
            found.set("gpu", subject, "memory_total_bytes", memory.total)

    def _look_at(self, found: Reading, device: Device, owners: Mapping[int, str], counted: bool) -> None:
        subject = self._subject(device)
        pids = processes(device)
        if pids is None:
            return
        here = sorted({owners[pid] for pid in pids if pid in owners})
        found.label("gpu", subject, instances=",".join(here)[:TEXT_MAX])
        found.set("gpu", subject, "processes", float(len(pids)))
        # One whose memory is not known makes the sum unknown.
        found.set("gpu", subject, "processes_memory_bytes", sum(math.nan if b is None else b for b in pids.values()))
        for pid in pids.keys() & owners.keys() if counted else ():
            size = pids[pid]
            before = found.values.get(("instance", owners[pid], "gpu_memory_used_bytes"), 0.0)
            found.set("instance", owners[pid], "gpu_memory_used_bytes", before + (math.nan if size is None else size))
