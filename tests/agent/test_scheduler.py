"""What the scheduler did with the threads of an instance, against what the kernel says of the same threads itself."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.agent.fakes import until
from trimtab.agent import procfs
from trimtab.agent.bpf import loader
from trimtab.agent.bpf.slots import Slots
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors import scheduler
from trimtab.agent.collectors.scheduler import Scheduler
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Host, Instance, Reading, Unavailable
from trimtab.agent.sketch.loglinear import Sketch

# Reads a byte, does what it is told, writes a byte; between the two nothing that could wait.
WORKER = """
import os, subprocess, sys, time
def work():
{work}
os.write(1, b"r")
while os.read(0, 1):
    work()
    os.write(1, b"d")
"""
BURN = "    end = time.process_time() + 0.2\n    while time.process_time() < end: pass"
NAP = "    for _ in range(23): time.sleep(0.001)"
MOVE = "    for number in range(23): os.sched_setaffinity(0, {(number + 1) % 2})"
NOTHING = "    pass"
# Twelve children one after the other, each of which sleeps 23 times and is gone before anybody could have looked for it.
BREED = """    for _ in range(12):
        if not (pid := os.fork()):
            for _ in range(23): time.sleep(0.0001)
            os._exit(0)
        os.waitpid(pid, 0)"""


class Worker:
    """A process that works when it is told to."""

    def __init__(self, work: str, core: int | None = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER.format(work=work)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})
        self.answer()
        started = procfs.process_stat(procfs.read(f"/proc/{self.pid}/stat")).started
        self.instance = Instance(f"n/{self.pid}", "torchserve", self.pid, started, self.pid, 0, ())

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self) -> None:
        self._process.stdin.write(b"w")

    def answer(self) -> None:
        assert self._process.stdout.read(1)
        # Asleep in its next read: what it did is all over, and counted.
        until(lambda: procfs.process_stat(procfs.read(f"/proc/{self.pid}/stat")).state == "S")

    def work(self) -> None:
        self.ask()
        self.answer()

    def schedstat(self) -> tuple[float, float, int]:
        """Seconds on a core, seconds in a run queue, how often it was given a core."""
        ran, waited, times = map(int, procfs.read(f"/proc/{self.pid}/schedstat").split())
        return ran / 1e9, waited / 1e9, times

    def preempted(self) -> int:
        lines = procfs.read(f"/proc/{self.pid}/status").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("nonvoluntary"))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Watch:
    """The collector, read by hand; a window is one second by decree."""

    def __init__(self) -> None:
        self.probes = Probes()
        self.collector = Scheduler()
        self.collector.open(Host("n", SystemClock(), self.probes))

    def read(self, *workers: Worker) -> Reading:
        reading = Reading([worker.instance for worker in workers], 1.0)
        self.collector.read(reading)
        return reading


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    try:
        watch = Watch()
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield watch
    watch.collector.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def run(work: str, core: int | None = 0) -> Worker:
            worker = Worker(work, core)
            stack.callback(worker.stop)
            return worker

        yield run


def value(reading: Reading, worker: Worker, signal: str) -> float:
    return reading.values["instance", worker.instance.id, signal]


def sketch(reading: Reading, worker: Worker, signal: str) -> Sketch | None:
    return reading.sketches.get(("instance", worker.instance.id, signal))


def tries(attempt: Callable[[], bool], times: int = 5) -> None:
    """Until it succeeds: whenever a program is attached or detached anywhere on the host, the kernel may skip ours once."""
    assert any(attempt() for _ in range(times))


def known(watch: Watch, *workers: Worker) -> None:
    """From now on they are: a window that is whole has begun."""
    for _ in range(2):
        watch.read(*workers)


def test_waits_and_preemptions_are_those_that_the_kernel_counts(watch: Watch, start: Callable[..., Worker]) -> None:
    worker, rival = start(BURN), start(BURN)
    known(watch, worker)

    def exact() -> bool:
        before, preempted = worker.schedstat(), worker.preempted()
        worker.ask()
        rival.ask()  # on the same core: both have to wait
        worker.answer()
        rival.answer()
        reading = watch.read(worker)
        ran, waited, times = (after - was for after, was in zip(worker.schedstat(), before, strict=True))
        waits = sketch(reading, worker, "run_queue_latency")
        assert waits is not None
        # Two clocks of the kernel's, read one after the other at every switch.
        assert waits.sum_seconds == pytest.approx(waited, rel=0.05, abs=0.002)
        assert value(reading, worker, "cpu_on_cores") == pytest.approx(ran, rel=0.05, abs=0.002)
        assert worker.preempted() > preempted
        seen = waits.sampled, value(reading, worker, "cpu_preemptions_per_second")
        return seen == (times, worker.preempted() - preempted)

    tries(exact)


def test_sleeps_are_counted_one_by_one(watch: Watch, start: Callable[..., Worker]) -> None:
    worker, idle = start(NAP), start(NOTHING)
    known(watch, worker, idle)
    worker.work()
    watch.read(worker, idle)  # its first sleep began unseen

    def exact() -> bool:
        worker.work()
        sleeps = sketch(watch.read(worker, idle), worker, "off_cpu_time")
        assert sleeps is not None
        assert sleeps.sum_seconds > 0.022
        return sleeps.sampled == 23 + 1  # and the one that it was woken from

    tries(exact)
    reading = watch.read(worker, idle)
    # Its neighbour did nothing, and what the others did is not its own.
    assert sketch(reading, idle, "off_cpu_time") is None
    assert sketch(reading, idle, "run_queue_latency") is None
    assert value(reading, idle, "cpu_on_cores") == 0
    assert value(reading, idle, "cpu_uninterruptible_ratio") == 0


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_migrations_are_counted_one_by_one(watch: Watch, start: Callable[..., Worker]) -> None:
    worker = start(MOVE)
    known(watch, worker)

    def exact() -> bool:
        worker.work()
        return value(watch.read(worker), worker, "cpu_migrations_per_second") == 23

    tries(exact)


def test_a_child_is_followed_from_its_fork(watch: Watch, start: Callable[..., Worker]) -> None:
    worker = start(BREED)
    known(watch, worker)
    before = worker.schedstat()[2]
    worker.work()
    waits = sketch(watch.read(worker), worker, "run_queue_latency")
    assert waits is not None
    of_children = waits.sampled - (worker.schedstat()[2] - before)
    assert 12 * 23 <= of_children <= 12 * (23 + 9)
    assert set(watch.collector._schedule.watched()) == {worker.pid}  # none of them is left behind


def test_a_thread_that_keeps_its_core_is_seen_before_it_gives_it_back(
    watch: Watch, start: Callable[..., Worker]
) -> None:
    worker = start("    while True: pass")
    known(watch, worker)
    began, held = time.monotonic(), []
    worker.ask()
    until(lambda: held.append(value(watch.read(worker), worker, "cpu_on_cores")) or sum(held) > 0.1)
    assert sum(held) <= time.monotonic() - began


def test_what_ended_is_unknown_and_leaves_nothing_behind(watch: Watch, start: Callable[..., Worker]) -> None:
    worker = start(NOTHING)
    known(watch, worker)
    assert worker.pid in watch.collector._schedule.watched()
    worker.stop()
    assert watch.read(worker).values == {}
    assert worker.pid not in watch.collector._schedule.watched()


def test_switched_off_it_is_unknown_and_what_passed_unseen_is_not_counted_later(
    watch: Watch, start: Callable[..., Worker]
) -> None:
    worker = start(NAP)
    known(watch, worker)
    (probe,) = watch.probes.all()

    def exact() -> bool:
        probe.switch(False)
        worker.work()
        assert watch.read(worker).values == {}
        probe.switch(True)
        assert watch.read(worker).values == {}
        assert value(watch.read(worker), worker, "cpu_on_cores") == 0
        seen = []
        for _ in range(2):
            worker.work()
            sleeps = sketch(watch.read(worker), worker, "off_cpu_time")
            assert sleeps is not None
            seen.append(sleeps.sampled)
        return seen == [23, 24]  # the first is woken from a sleep that began unseen

    tries(exact)


def test_forks_that_were_not_seen_are_found(watch: Watch, start: Callable[..., Worker]) -> None:
    worker = start(
        """    if not os.fork():
        while True: time.sleep(0.001)"""
    )
    known(watch, worker)
    (probe,) = watch.probes.all()
    probe.switch(False)
    worker.work()
    try:
        (child,) = psutil.Process(worker.pid).children()
        watch.read(worker)
        assert child.pid not in watch.collector._schedule.watched()
        probe.switch(True)
        for _ in range(3):
            watch.read(worker)
        assert child.pid in watch.collector._schedule.watched()
        until(lambda: sketch(watch.read(worker), worker, "off_cpu_time") is not None)
    finally:
        child.kill()


def test_nothing_of_an_instance_goes_to_the_one_that_takes_its_place(
    watch: Watch, start: Callable[..., Worker]
) -> None:
    first, second = start(NAP), start(NOTHING)
    known(watch, first)
    first.work()
    known(watch, second)
    first.work()
    assert sketch(watch.read(second), second, "off_cpu_time") is None


def test_another_pid_namespace_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pid").touch()
    monkeypatch.setattr(scheduler, "_PID_NAMESPACE", tmp_path / "pid")
    with pytest.raises(Unavailable, match="pid namespace"):
        Scheduler().open(Host("n", SystemClock()))


def test_without_ebpf_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise Unavailable("no eBPF here", "get some")

    monkeypatch.setattr(loader, "require", refuse)
    with pytest.raises(Unavailable, match="no eBPF here"):
        Scheduler().open(Host("n", SystemClock()))


@given(st.lists(st.sets(st.integers(0, 20), max_size=12), max_size=20), st.integers(1, 8))
def test_slots_are_given_to_one_at_a_time(turns: list[set[int]], maximum: int) -> None:
    slots: Slots[int] = Slots(maximum)
    now: dict[int, int] = {}
    for keys in turns:
        come, gone = slots.watch(keys)
        assert gone == {key: slot for key, slot in now.items() if key not in keys}
        now = {key: slot for key, slot in now.items() if key in keys} | come
        assert slots.of() == now
        assert len(set(now.values())) == len(now) == min(len(keys), maximum)
        assert all(0 <= slot < maximum for slot in now.values())


def test_the_first_reading_is_unknown(watch: Watch, start: Callable[..., Worker]) -> None:
    worker = start(NOTHING)
    reading = Reading([worker.instance], math.nan)
    watch.collector.read(reading)
    assert reading.values == {}
