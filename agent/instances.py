"""Finds the serving instances of this node by themselves: no list of them is ever written down."""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace

from trimtab.agent import procfs, runtimes
from trimtab.agent.processes import alive
from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import Runtime
from trimtab.agent.runtimes.process import ProcessInfo, own_netns

INSTANCES_MAX = 64
SCAN_SECONDS = 2.0
STRANGER_SECONDS = 10.0
"""When a process that is no server is looked at again: it may have become one by exec()."""
INSTANCE_SECONDS = 60.0
"""When an instance is looked at again: it may have new keys and addresses. For that the kernel walks all of its sockets."""

log = logging.getLogger(__name__)


def known_runtimes() -> Iterator[Runtime]:
    """One of each, by name."""
    for module in sorted(pkgutil.iter_modules(runtimes.__path__), key=lambda m: m.name):
        runtime = getattr(importlib.import_module(f"{runtimes.__name__}.{module.name}"), "RUNTIME", None)
        if runtime is not None:
            yield runtime()


class Discovery:
    """Lists /proc every two seconds, and looks only at the processes that it has not seen lately."""

    def __init__(self, node: str, runtimes: Sequence[Runtime] | None = None) -> None:
        self._node = node
        self._runtimes = tuple(known_runtimes() if runtimes is None else runtimes)
        self._known: dict[int, Instance] = {}
        self._look_at: dict[int, float] = {}
        self._scan_at = float("-inf")
        self._told: set[str] = set()

    def find(self, now_monotonic: float) -> tuple[Instance, ...]:
        """The instances that run now, by id; their ids are unique."""
        for pid in [pid for pid, i in self._known.items() if not alive(pid, i.started)]:
            del self._known[pid]
            self._look_at.pop(pid, None)
        if now_monotonic >= self._scan_at:
            self._scan_at = now_monotonic + SCAN_SECONDS
            self._scan(now_monotonic)
        return tuple(sorted(self._known.values(), key=lambda i: i.id))

    def _scan(self, now_monotonic: float) -> None:
        pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208
        self._look_at = {pid: at for pid, at in self._look_at.items() if pid in pids and at > now_monotonic}
        for pid in sorted(pids - self._look_at.keys()):
            process = _look(pid)
            runtime = next((r for r in self._runtimes if process and r.matches(process)), None)
            if process is None or runtime is None:
                self._look_at[pid] = now_monotonic + STRANGER_SECONDS
                continue
            # One that has just started opens its ports one after the other.
            again = INSTANCE_SECONDS if pid in self._known else STRANGER_SECONDS
            self._add(process, runtime)
            if pid in self._known:
                self._look_at[pid] = now_monotonic + again

    def _add(self, process: ProcessInfo, runtime: Runtime) -> None:
        if process.pid not in self._known and len(self._known) >= INSTANCES_MAX:
            self._tell(f"more than {INSTANCES_MAX} serving instances on this node; the others are not watched")
            return
        try:
            instance = runtime.instance(process, self._node)
        except PermissionError as error:
            self._tell(
                f"{runtime.name}, pid {process.pid}: {error}; the agent needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH"
            )
            return
        except (OSError, ValueError):  # it ended, or changed while we looked; the next scan looks again
            return
        if instance is None:
            return
        if instance.netns not in {0, own_netns()}:  # where the same port may be taken too
            instance = replace(instance, id=f"{instance.id}@{instance.netns}")
        if instance.id in {i.id for pid, i in self._known.items() if pid != process.pid}:
            self._tell(f"{instance.id}: pid {process.pid} listens on that port too; not watched while the other runs")
            return
        self._known[process.pid] = instance

    def _tell(self, message: str) -> None:
        if message not in self._told and len(self._told) < INSTANCES_MAX:
            self._told.add(message)
            log.warning("%s", message)


def _look(pid: int) -> ProcessInfo | None:
    """None where it has ended, or is a thread of the kernel."""
    try:
        command = procfs.read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
        if command == [""]:
            return None
        return ProcessInfo(pid, procfs.process_stat(procfs.read(f"/proc/{pid}/stat")).started, tuple(command))
    except (OSError, ValueError):
        return None
