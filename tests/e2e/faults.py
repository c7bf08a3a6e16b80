"""Faults of one instance, each a context manager that undoes exactly what it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

import psutil

from tests.e2e.confine import own_cgroup, pinned
from tests.e2e.fleet import Instance


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to go bad: what it does, in words, and the mechanisms that a good diagnosis names."""

    description: str
    mechanisms: tuple[str, ...]
    apply: Callable[[Instance], AbstractContextManager[None]]
    harm: Literal["p99_seconds", "error_ratio"] = "p99_seconds"
    """What clients notice of it."""
    rate: float = 30
    """Requests a second that hurt three instances on two cores under this fault, and that two healthy ones can bear."""
    apart: bool = False
    """Whether the instance must have a CPU of its own (`apart`) for the fault to be its alone."""


@contextmanager
def quota(instance: Instance, share: float = 0.1) -> Iterator[None]:
    """Allow the instance `share` of one core, by the CPU quota of a cgroup."""
    with own_cgroup(instance) as group:
        period_us = 100_000
        if (group / "cpu.max").exists():
            (group / "cpu.max").write_text(f"{round(share * period_us)} {period_us}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(period_us))
            (group / "cpu.cfs_quota_us").write_text(str(round(share * period_us)))
        yield


@contextmanager
def hog(instance: Instance, hogs: int = 6) -> Iterator[None]:
    """Pin the instance to one CPU of those it may use, and `hogs` busy processes to the same."""
    cpu = max(os.sched_getaffinity(instance.process.pid))
    busy: list[subprocess.Popen[bytes]] = []
    with pinned(instance, {cpu}):
        try:
            for _ in range(hogs):
                # It ends with its parent, even if that is killed.
                spin = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
                # A session each: the kernel shares a CPU out among sessions (autogroups), and all of one would count as one.
                busy.append(subprocess.Popen([sys.executable, "-c", spin], start_new_session=True))
            yield
        finally:
            for process in busy:
                process.kill()
            for process in busy:
                process.wait()


@contextmanager
def pause(instance: Instance, stopped_seconds: float = 8.5, every_seconds: float = 10.0) -> Iterator[None]:
    """Stop the instance with SIGSTOP for `stopped_seconds` of every `every_seconds`."""

    def bursts(stop: threading.Event) -> None:
        while not stop.is_set():
            _signal(instance, signal.SIGSTOP)
            stop.wait(stopped_seconds)
            _signal(instance, signal.SIGCONT)
            stop.wait(every_seconds - stopped_seconds)

    with _thread(bursts):
        yield


@contextmanager
def errors(instance: Instance) -> Iterator[None]:
    """Let the handler answer 500 at once."""
    instance.fail.touch()
    try:
        yield
    finally:
        instance.fail.unlink()


@contextmanager
def slow(instance: Instance, seconds: float = 0.05) -> Iterator[None]:
    """Let the handler wait for `seconds` before each answer."""
    new = instance.delay.with_suffix(".new")
    new.write_text(str(seconds))
    new.rename(instance.delay)
    try:
        yield
    finally:
        instance.delay.unlink()


@contextmanager
def crash(instance: Instance, every_seconds: float = 0.5) -> Iterator[None]:
    """Kill the worker with SIGKILL, and every one that TorchServe starts in its place."""

    def kills(stop: threading.Event) -> None:
        while not stop.is_set():
            for worker in instance.workers():
                with suppress(psutil.Error):
                    worker.kill()
            stop.wait(every_seconds)

    with _thread(kills):
        yield


FAULTS = {
    "quota": Fault("a cgroup CPU quota of 10 % of a core", ("cgroup CPU quota",), quota),
    "hog": Fault("six busy processes on its CPU", ("CPU contention",), hog, rate=20, apart=True),
    "pause": Fault("stopped for 8.5 s of every 10 s (SIGSTOP)", ("server stalled",), pause),
    "errors": Fault("its handler answers 500 at once", ("fail-fast errors",), errors, "error_ratio"),
    "crash": Fault("its worker is killed again and again (SIGKILL)", ("worker crash loop",), crash, "error_ratio"),
}


def _signal(instance: Instance, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(instance.process.pid, number)


@contextmanager
def _thread(work: Callable[[threading.Event], None]) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
