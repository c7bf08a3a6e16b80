"""Process trees and their CPU limits, against loads of known size on this kernel."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from trimtab.agent import cgroup, procfs
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.process import COLLECTOR
from trimtab.agent.processes import alive, tree
from trimtab.agent.registry import Host, Instance, Reading

BURN = "while True: pass"
NEST = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'while True: pass']); input()"
# Touches 100 pages of a file that is not in memory, one by one, whenever it gets a line.
FAULT = """
import mmap, os, sys
with open(sys.argv[1], "w+b") as file:
    file.write(os.urandom(100 * 4096)); file.flush(); os.fsync(file.fileno())
    pages = mmap.mmap(file.fileno(), 0)
    pages.madvise(mmap.MADV_RANDOM)
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    print("ready", flush=True)
    for line in sys.stdin:
        total = sum(pages[at] for at in range(0, len(pages), 4096))
        print("done", flush=True)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., psutil.Popen]]:
    """Starts Python code; all of it is gone after the test."""
    with ExitStack() as stack:

        def run(code: str, *arguments: str) -> psutil.Popen:
            process = psutil.Popen(
                [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(stop, process)
            return process

        yield run


def stop(process: psutil.Popen) -> None:
    if process.poll() is None:
        for each in [*process.children(recursive=True), process]:
            each.kill()
    process.communicate()


def instance_of(process: psutil.Popen, port: int = 80) -> Instance:
    started = procfs.process_stat(procfs.read(f"/proc/{process.pid}/stat")).started
    return Instance(f"n/{port}", "torchserve", process.pid, started, port, 0, ())


class Watch:
    """The collector, read by hand."""

    def __init__(self, *instances: Instance) -> None:
        self.clock = SystemClock()
        self.collector = COLLECTOR()
        self.collector.open(Host("n", self.clock))
        self.instances = instances
        self._before = math.nan
        self.reading = self.read()

    def read(self) -> Reading:
        now = self.clock.monotonic()
        self.reading = Reading(self.instances, now - self._before)
        self._before = now
        self.collector.read(self.reading)
        return self.reading

    def value(self, name: str, subject: str = "n/80") -> float | None:
        kind = "instance" if "/" in subject else "node"
        return self.reading.values.get((kind, subject, name))

    def until(self, condition: Callable[[], bool], windows: int = 15) -> None:
        for _ in range(windows):
            time.sleep(0.5)
            self.read()
            if condition():
                return
        pytest.fail(f"not within {windows} windows: {self.reading.values}")


@pytest.fixture
def quota() -> Iterator[Path]:
    """A cgroup that may use 0.2 cores."""
    mount = cgroup.cpu_mount(procfs.read("/proc/self/mountinfo"))
    if mount is None or not os.access(mount.point, os.W_OK):
        pytest.skip("no cgroup of ours can be made here")
    group = Path(mount.point) / f"trimtab-test-{os.getpid()}"
    group.mkdir()
    try:
        if mount.version == 1:
            (group / "cpu.cfs_quota_us").write_text("20000")
        else:
            (Path(mount.point) / "cgroup.subtree_control").write_text("+cpu")
            (group / "cpu.max").write_text("20000 100000")
        yield group
    finally:
        while procfs.read(f"{group}/cgroup.procs"):
            time.sleep(0.01)
        group.rmdir()


def test_a_quota_shows_as_limit_and_throttling(quota: Path, start: Callable[..., psutil.Popen]) -> None:
    burner = start(BURN)
    (quota / "cgroup.procs").write_text(str(burner.pid))
    watch = Watch(instance_of(burner))
    assert watch.value("cpu_limit_cores") == pytest.approx(0.2)
    assert watch.value("cpu_throttled_ratio") is None
    # It runs into its quota in every period, unless other loads keep it from that.
    watch.until(lambda: (watch.value("cpu_throttled_ratio") or 0) > 0.5)
    assert watch.value("cpu_used_cores") == pytest.approx(0.2, abs=0.1)
    stop(burner)


def test_a_quota_on_a_worker_or_a_parent_of_its_group_counts(quota: Path, start: Callable[..., psutil.Popen]) -> None:
    server = start(NEST)
    Watch(instance_of(server)).until(lambda: len(server.children()) == 1)
    (worker,) = server.children()
    inner = quota / "inner"
    inner.mkdir()
    (inner / "cgroup.procs").write_text(str(worker.pid))
    watch = Watch(instance_of(server))
    assert watch.value("cpu_limit_cores") == pytest.approx(0.2)
    watch.until(lambda: (watch.value("cpu_throttled_ratio") or 0) > 0.5)
    stop(server)
    while procfs.read(f"{inner}/cgroup.procs"):
        time.sleep(0.01)
    inner.rmdir()


def test_without_a_quota_nothing_is_throttled(start: Callable[..., psutil.Popen]) -> None:
    server = start("input()")
    os.sched_setaffinity(server.pid, {0})
    watch = Watch(instance_of(server))
    watch.read()
    assert watch.value("cpu_throttled_ratio") == 0
    assert watch.value("cpu_limit_cores") == 1


def test_a_neighbour_on_the_same_core_shows_as_run_queue(start: Callable[..., psutil.Popen]) -> None:
    mine, hog = start(BURN), start(BURN)
    for process in (mine, hog):
        os.sched_setaffinity(process.pid, {0})
    watch = Watch(instance_of(mine))
    watch.until(lambda: (watch.value("cpu_run_queue_ratio") or 0) > 0.35)
    # It always wants the core: either it runs or it waits.
    used, waited = watch.value("cpu_used_cores"), watch.value("cpu_run_queue_ratio")
    assert used is not None
    assert waited is not None
    assert used + waited == pytest.approx(1, abs=0.15)
    other = watch.value("cpu_other_cores", "n")
    assert other is not None
    assert other > 0.2


def test_the_whole_tree_is_added_up(start: Callable[..., psutil.Popen]) -> None:
    server = start(NEST)
    watch = Watch(instance_of(server))
    watch.until(lambda: (watch.value("cpu_used_cores") or 0) > 0.05)
    assert [member.pid for member in tree(server.pid)] == [server.pid, *(c.pid for c in server.children())]
    assert watch.value("threads") == 2
    expected = sum(p.memory_info().rss for p in (server, *server.children()))
    assert watch.value("memory_resident_bytes") == pytest.approx(expected, rel=0.1)
    other, busy = watch.value("cpu_other_cores", "n"), psutil.cpu_count()
    assert other is not None
    assert 0 <= other <= busy


def test_the_lifetime_of_a_process_that_was_overlooked_is_not_of_one_window(
    start: Callable[..., psutil.Popen], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(NEST)
    watch = Watch(instance_of(server))
    watch.until(lambda: any(child.cpu_times().user > 0.2 for child in server.children()))
    with monkeypatch.context() as patch:
        patch.setattr("trimtab.agent.collectors.process.tree", lambda pid: tree(pid)[:1])
        watch.read()
    watch.read()
    for name in ("cpu_used_cores", "major_faults_per_second", "cpu_run_queue_ratio"):
        assert watch.value(name) is None
    assert watch.value("cpu_other_cores", "n") is None
    assert watch.value("threads") == 2
    watch.read()
    assert watch.value("cpu_used_cores") is not None


def test_a_process_that_began_within_the_window_counts_from_its_start(start: Callable[..., psutil.Popen]) -> None:
    server = start("input();" + NEST)
    watch = Watch(instance_of(server))
    server.stdin.write("\n")
    server.stdin.flush()
    while not any(child.cpu_times().user > 0.2 for child in server.children()):
        time.sleep(0.01)
    reading = watch.read()
    assert (watch.value("cpu_used_cores") or 0) * reading.seconds > 0.2


def test_major_faults_are_counted(tmp_path: Path, start: Callable[..., psutil.Popen]) -> None:
    server = start(FAULT, str(tmp_path / "pages"))
    assert server.stdout.readline() == "ready\n"
    watch = Watch(instance_of(server))
    server.stdin.write("go\n")
    server.stdin.flush()
    assert server.stdout.readline() == "done\n"
    reading = watch.read()
    faults = (watch.value("major_faults_per_second") or 0) * reading.seconds
    if faults == 0:
        pytest.skip(f"{tmp_path} is not on a disk")
    assert faults == pytest.approx(100, abs=10)


def test_a_new_process_behind_the_port_is_a_restart(start: Callable[..., psutil.Popen]) -> None:
    first, second, other = start("input()"), start("input()"), start("input()")
    watch = Watch(instance_of(first), instance_of(other, 81))
    assert watch.value("process_restarts") == 0
    stop(first)
    watch.instances = (instance_of(other, 81),)
    assert watch.read().events == []
    watch.instances = (instance_of(second), instance_of(other, 81))
    event = ("instance", "n/80", "process_restart", 1.0, f"pid {first.pid} became {second.pid}")
    assert watch.read().events == [event]
    assert watch.value("cpu_used_cores") is None
    assert watch.read().events == []
    assert watch.value("process_restarts") == 1
    assert watch.value("process_restarts", "n/81") == 0


def test_a_process_that_ended_is_unknown_and_no_error(start: Callable[..., psutil.Popen]) -> None:
    server = start("input()")
    instance = instance_of(server)
    assert alive(instance.pid, instance.started)
    assert not alive(instance.pid, instance.started + 1)
    os.kill(server.pid, signal.SIGKILL)
    while alive(instance.pid, instance.started):  # a zombie is not alive
        time.sleep(0.01)
    watch = Watch(instance)
    watch.read()
    assert watch.value("cpu_used_cores") is None
    assert watch.value("memory_resident_bytes") is None


def test_stopped_processes_are_counted(start: Callable[..., psutil.Popen]) -> None:
    process = start(NEST)
    watch = Watch(instance_of(process))
    watch.until(lambda: watch.value("processes_stopped") == 0 and bool(process.children()))
    process.children()[0].suspend()
    watch.until(lambda: watch.value("processes_stopped") == 1)
    process.suspend()
    watch.until(lambda: watch.value("processes_stopped") == 2)
    process.children()[0].resume()
    process.resume()
    watch.until(lambda: watch.value("processes_stopped") == 0)
