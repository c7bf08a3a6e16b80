"""Real processes that a real memory limit kills, and whom they are said to belong to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.agent.fakes import until
from trimtab.agent import procfs
from trimtab.agent.bpf import oom as journal
from trimtab.agent.bpf.host import HOST_PROGRAM
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors import memory
from trimtab.agent.collectors.oom import Oom
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Host, Instance, Reading, Unavailable

# Starts a child at each line, waits for its end, and says which signal it was.
SERVER = """
import os, sys
for line in sys.stdin:
    child = os.fork()
    if not child:
        open("/proc/self/comm", "w").write("greedy worker")
        hoard = bytearray(200 << 20)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), child, flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """The program stays loaded between the tests, for compiling it takes a second."""
    try:
        program = HOST_PROGRAM.open("tcp")
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield
    HOST_PROGRAM.close(program, "tcp")


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup with room for 24 MiB."""
    mounts = [line.split() for line in procfs.read("/proc/mounts").splitlines()]
    of_memory = [m[1] for m in mounts if m[2] == "cgroup" and "memory" in m[3].split(",")]
    unified = [m[1] for m in mounts if m[2] == "cgroup2"]
    if os.geteuid() != 0 or not (of_memory or unified):
        pytest.skip("no cgroup of ours can be made here")
    root = Path((of_memory or unified)[0])
    if not of_memory and "memory" in procfs.read(f"{root}/cgroup.controllers").split():
        (root / "cgroup.subtree_control").write_text("+memory")
    group = root / f"trimtab-oom-{os.getpid()}"
    group.mkdir()
    try:
        limit = group / ("memory.limit_in_bytes" if of_memory else "memory.max")
        if not limit.exists():
            pytest.skip("this cgroup has no memory controller")
        limit.write_text(str(24 << 20))
        # Where the machine has swap, it is no way out.
        for name, room in (("memory.memsw.limit_in_bytes", 24 << 20), ("memory.swap.max", 0)):
            if (group / name).exists():
                (group / name).write_text(str(room))
        yield group
    finally:
        until(lambda: not procfs.read(f"{group}/cgroup.procs"))
        group.rmdir()


@pytest.fixture
def server(limited: Path) -> Iterator[subprocess.Popen[str]]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    (limited / "cgroup.procs").write_text(str(server.pid))
    yield server
    server.kill()
    server.communicate()


class Watch:
    """The collector, read by hand, and the one that counts kills without knowing whose."""

    def __init__(self) -> None:
        probes = Probes()
        host = Host("n", SystemClock(), probes)
        self.collector, self.memory = Oom(), memory.COLLECTOR()
        self.collector.open(host)
        self.memory.open(host)

    def read(self, *instances: Instance) -> Reading:
        reading = Reading(instances, 1.0)
        self.collector.read(reading)
        self.memory.read(reading)
        return reading


@pytest.fixture
def watch() -> Iterator[Watch]:
    try:
        watch = Watch()
    except Unavailable as reason:
        pytest.skip(str(reason))
    watch.read()
    yield watch
    watch.collector.close()


def kill(server: subprocess.Popen[str], times: int) -> list[int]:
    """The pids of the children that were killed."""
    pids = []
    for _ in range(times):
        server.stdin.write("\n")
        code, pid = map(int, server.stdout.readline().split())
        assert code == -9
        pids.append(pid)
    return pids


def instance_of(process: subprocess.Popen[str]) -> Instance:
    started = procfs.process_stat(procfs.read(f"/proc/{process.pid}/stat")).started
    return Instance("n/80", "torchserve", process.pid, started, 80, 0, ())


def test_five_kills_are_five_events_of_the_node(watch: Watch, server: subprocess.Popen[str], limited: Path) -> None:
    watch.read()
    pids = kill(server, 5)
    reading = watch.read()
    expected = [f"pid {pid} greedy worker in cgroup {limited.name}" for pid in pids]
    assert reading.events == [("node", "n", "oom_kill", 1.0, detail) for detail in expected]
    assert reading.values["node", "n", "oom_victims"] == 5
    assert reading.values["node", "n", "oom_victims_lost"] == 0
    assert reading.values["node", "n", "oom_kills_per_second"] == 5
    assert watch.read().events == []


def test_a_worker_that_was_killed_is_its_instance_s(watch: Watch, server: subprocess.Popen[str]) -> None:
    instance = instance_of(server)
    watch.read(instance)
    kill(server, 3)
    # The instance itself may be gone by the time it is read.
    events = watch.read().events
    assert [event[:3] for event in events] == [("instance", "n/80", "oom_kill")] * 3


class Kernel:
    """The journal of a kernel that kills whom it is told to."""

    def __init__(self, total: int) -> None:
        self.journal = np.zeros(1, journal.JOURNAL)
        self.journal["total"] = total

    def kill(self, *pids: int) -> None:
        for pid in pids:
            number = int(self.journal["total"][0])
            self.journal["last"][0][number % journal.VICTIMS_MAX]["pid"] = pid
            self.journal["total"] += 1


def test_more_than_the_kernel_remembers_are_counted_as_lost(watch: Watch) -> None:
    kernel = Kernel(7)
    watch.collector._journal = journal.Journal(kernel.journal)
    kernel.kill(*range(100, 100 + journal.VICTIMS_MAX + 3))
    reading = watch.read()
    told = [event[4] for event in reading.events]
    assert told == [f"pid {pid}" for pid in range(103, 103 + journal.VICTIMS_MAX)]
    assert reading.values["node", "n", "oom_victims"] == journal.VICTIMS_MAX + 3
    assert reading.values["node", "n", "oom_victims_lost"] == 3
    assert watch.read().events == []


def test_a_second_mark_of_the_same_process_is_not_a_second_kill(watch: Watch) -> None:
    kernel = Kernel(0)
    watch.collector._journal = journal.Journal(kernel.journal)
    kernel.kill(77, 77, 78)
    assert [event[4] for event in watch.read().events] == ["pid 77", "pid 78"]


def test_without_the_probe_the_node_still_says_that_there_were_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    collector = memory.COLLECTOR()
    collector.open(Host("n", SystemClock()))
    counts = iter([3, 5])
    monkeypatch.setattr(procfs, "read", lambda path: f"oom_kill {next(counts)}\n")
    collector.read(Reading((), 1.0))
    reading = Reading((), 1.0)
    collector.read(reading)
    assert reading.events == [("node", "n", "oom_kill", 2, "")]
