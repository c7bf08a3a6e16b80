"""Confines an instance, to a cgroup or to CPUs, and puts it back exactly where it was."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.e2e.fleet import Instance
from trimtab import Exit, TrimtabError

_MEMORY_HOME = "fleet-memory-"


@contextmanager
def own_cgroup(instance: Instance) -> Iterator[Path]:
    """A cgroup of its own that holds the whole instance; on the way out everything is back where it was."""
    before = {process.pid: _cgroup(process.pid, "cpu") for process in instance.tree()}
    home = before[instance.process.pid]
    group = _delegating(home, "cpu") / f"fleet-fault-{instance.process.pid}"
    try:
        group.mkdir()
    except OSError as error:
        raise TrimtabError(
            f"cgroup {group}: {error.strerror}; the quota fault needs root and a CPU cgroup", Exit.STATE
        ) from error
    try:
        for pid in before:
            _move(pid, group)
        yield group
    finally:
        # More than once: a process may have forked meanwhile.
        for _ in range(10):
            for pid in map(int, (group / "cgroup.procs").read_text().split()):
                _move(pid, before.get(pid, home))
        group.rmdir()


@contextmanager
def memory_homes() -> Iterator[Callable[[int], None]]:
    """Puts each process that it is told of into a memory cgroup of its own, without a limit, until the way out.

    What the process has taken before stays with the group that it came from. By the way out all of them must have ended.
    """
    homes: list[Path] = []

    def move(pid: int) -> None:
        home = _delegating(_cgroup(pid, "memory"), "memory") / f"{_MEMORY_HOME}{pid}"
        home.mkdir()
        homes.append(home)
        _move(pid, home)

    try:
        yield move
    finally:
        for home in homes:
            _remove(home)


def memory_cgroup(instance: Instance) -> Path:
    """The one that `memory_homes` gave it. Raises TrimtabError when it has none: a limit would be others' too."""
    group = _cgroup(instance.process.pid, "memory")
    if not group.name.startswith(_MEMORY_HOME):
        raise TrimtabError(f"{instance.name} has no memory cgroup of its own, but is in {group}", Exit.STATE)
    return group


@contextmanager
def pinned(instance: Instance, cpus: set[int]) -> Iterator[None]:
    """All threads of the instance on `cpus`; those that live on go back to where they were, new ones to where all were."""
    before = {thread: os.sched_getaffinity(thread) for thread in _threads(instance)}
    home = before[instance.process.pid]
    try:
        for thread in before:
            _pin(thread, cpus)
        yield
    finally:
        for thread in _threads(instance):
            _pin(thread, before.get(thread, home))


@contextmanager
def apart(instance: Instance, peers: Sequence[Instance]) -> Iterator[None]:
    """Give the instance one CPU and its peers the others, so that what happens to its CPU happens to it alone."""
    cpus = os.sched_getaffinity(0)
    if len(cpus) < 2:
        raise TrimtabError("this fault needs two CPUs: one for the instance, one for its peers", Exit.SETTINGS)
    with ExitStack() as stack:
        stack.enter_context(pinned(instance, {max(cpus)}))
        for peer in peers:
            stack.enter_context(pinned(peer, cpus - {max(cpus)}))
        yield


def _cgroup(pid: int, controller: str) -> Path:
    """The cgroup directory by which `controller` governs a process: of v1 where it has the controller, else of v2."""
    rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in rows:
        if controller in controllers.split(","):
            return Path(f"/sys/fs/cgroup/{controllers}{path}")
    return Path(f"/sys/fs/cgroup{next(path for number, _, path in rows if number == '0')}")


def _delegating(group: Path, controller: str) -> Path:
    """The nearest cgroup, from `group` up, whose children can be limited: v2 forbids it where processes live."""
    if not (group / "cgroup.subtree_control").exists():
        return group
    for candidate in (group, *group.parents):
        if controller in (candidate / "cgroup.subtree_control").read_text().split():
            return candidate
        if candidate == Path("/sys/fs/cgroup"):
            break
    raise TrimtabError(
        f"no cgroup above the instance hands on the {controller} controller: "
        f"echo +{controller} > /sys/fs/cgroup/cgroup.subtree_control"
    )


def _remove(group: Path) -> None:
    """A process that has just ended holds its cgroup for a moment."""
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _move(pid: int, group: Path) -> None:
    with suppress(ProcessLookupError):
        (group / "cgroup.procs").write_text(str(pid))


def _threads(instance: Instance) -> list[int]:
    found = []
    for process in instance.tree():
        with suppress(FileNotFoundError, ProcessLookupError):
            found += [int(entry.name) for entry in Path(f"/proc/{process.pid}/task").iterdir()]
    return found


def _pin(thread: int, cpus: set[int]) -> None:
    with suppress(ProcessLookupError):
        os.sched_setaffinity(thread, cpus)
