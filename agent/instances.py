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
from trimtab.agent.runtimes.base import ProcessInfo, Runtime

INSTANCES_MAX = 64
SCAN_SECONDS = 2.0
REVIEW_SECONDS = 10.0
"""How often every process is looked at afresh: it may have become a server by exec(), or have new models' keys and addresses."""

log = logging.getLogger(__name__)


def known_runtimes() -> Iterator[Runtime]:
    """One of each, by name."""
    for module in sorted(pkgutil.iter_modules(runtimes.__path__), key=lambda m: m.name):
        runtime = getattr(importlib.import_module(f"{runtimes.__name__}.{module.name}"), "RUNTIME", None)
        if runtime is not None:
            yield runtime()


class Discovery:
    """Looks through /proc every two seconds, and reads the command only of processes that it has not seen lately."""

    def __init__(self, node: str, runtimes: Sequence[Runtime] | None = None) -> None:
        self._node = node
        self._runtimes = tuple(known_runtimes() if runtimes is None else runtimes)
        self._known: dict[int, Instance] = {}
        self._strangers: set[int] = set()
        self._scan_at = self._review_at = float("-inf")
        self._told: set[str] = set()

    def find(self, now_monotonic: float) -> tuple[Instance, ...]:
        """The instances that run now, by id; their ids are unique."""
        self._known = {pid: i for pid, i in self._known.items() if alive(pid, i.started)}
        if now_monotonic >= self._scan_at:
            self._scan_at = now_monotonic + SCAN_SECONDS
            review = now_monotonic >= self._review_at
            if review:
                self._review_at = now_monotonic + REVIEW_SECONDS
                self._strangers.clear()
            self._scan(review)
        return tuple(sorted(self._known.values(), key=lambda i: i.id))

    def _scan(self, review: bool) -> None:
        pids = {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208
        self._strangers &= pids
        for pid in sorted(pids - self._strangers - (set() if review else self._known.keys())):
            process = _look(pid)
            runtime = next((r for r in self._runtimes if process and r.matches(process)), None)
            if process is None or runtime is None:
                self._strangers.add(pid)
            else:
                self._add(process, runtime)

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
        if instance.id in {i.id for pid, i in self._known.items() if pid != process.pid}:
            # The same port in another network namespace.
            instance = replace(instance, id=f"{instance.id}@{instance.netns}")
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
