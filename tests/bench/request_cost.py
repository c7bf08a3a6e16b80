"""What the probes cost a request: nginx and wrk on one CPU, the probes switched off and on in turns.

What is compared is CPU time for each request, of the server and its client together: a machine that is busy with something else
makes both slower and neither dearer. The CPU clocks of the processes hold what the probes take, in the system calls and in the
interrupts that run on their account.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.bench import kernel, usage
from tests.bench.nginx import Nginx, nginx, wrk
from tests.bench.open_probes import OpenProbes
from tests.bench.spread import Estimate, median
from trimtab.agent.probes import Probe

GROUPS = {"requests": ("requests", "request queue"), "scheduler": ("scheduler",)}
"""Probes that have a target together."""
ALL = "all"
CONNECTIONS = 16
_SETTLE_SECONDS = 0.05
"""After switching: what was under way is over."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long it runs. A round holds one slot of each arm, in an order that is drawn anew."""

    rounds: int
    slot_seconds: float
    stats_seconds: float


@dataclass(slots=True)
class Result:
    """All per request, in microseconds of CPU."""

    base_us: Estimate
    added_us: dict[str, Estimate] = field(default_factory=dict)
    """By group of probes, and ALL."""
    probes: dict[str, dict[str, float | int]] = field(default_factory=dict)
    """By probe and hook, what the kernel itself counted: ns per run, runs per request, runs that it skipped."""
    requests_per_second: float = 0.0
    unavailable: dict[str, str] = field(default_factory=dict)
    """By collector, why it could not be opened here: what it costs is not in the figures."""


def measure(directory: Path, plan: Plan) -> Result:
    """Runs for rounds × arms × slot_seconds and a little. Raises TrimtabError."""
    cpus = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        stack.enter_context(_bound_to(cpus[0]))
        server = stack.enter_context(nginx(directory, cpus[-1]))
        others = set(kernel.programs())
        opened = OpenProbes(server.instance())
        stack.callback(opened.close)
        client = stack.enter_context(wrk(server, CONNECTIONS, cpu=cpus[-1]))
        pids = [*usage.tree(server.process.pid), client.pid, *_softirq_threads(cpus[-1])]
        bench = _Bench(server, pids, opened.registry.all(), others)
        result = bench.run(plan)
        result.unavailable = opened.unavailable
        return result


class _Bench:
    def __init__(self, server: Nginx, pids: list[int], probes: tuple[Probe, ...], others: set[int]) -> None:
        self._server = server
        self._pids = pids
        self._probes = probes
        self._others = others
        names = {probe.name for probe in probes}
        arms = {group: set(members) & names for group, members in GROUPS.items()}
        self._arms = {"off": set(), **{group: members for group, members in arms.items() if members}, ALL: names}

    def run(self, plan: Plan) -> Result:
        self._switch(set())
        self._slot(plan.slot_seconds)
        slots: dict[str, list[float]] = {arm: [] for arm in self._arms}
        order, draw = list(self._arms), random.Random(1)
        begun, requests = time.monotonic(), self._server.requests()
        for _ in range(plan.rounds):
            draw.shuffle(order)
            for arm in order:
                self._switch(self._arms[arm])
                slots[arm].append(self._slot(plan.slot_seconds))
        rate = (self._server.requests() - requests) / (time.monotonic() - begun)
        result = Result(median(slots["off"]), requests_per_second=rate)
        for arm in [arm for arm in self._arms if arm != "off"]:
            result.added_us[arm] = median([on - off for on, off in zip(slots[arm], slots["off"], strict=True)])
        result.probes = self._count(plan.stats_seconds)
        return result

    def _switch(self, on: set[str]) -> None:
        for probe in self._probes:
            if probe.on != (probe.name in on):
                probe.switch(probe.name in on)
        time.sleep(_SETTLE_SECONDS)

    def _slot(self, seconds: float) -> float:
        """Microseconds of CPU a request."""
        cpu, requests = self._now()
        time.sleep(seconds)
        cpu_after, requests_after = self._now()
        return (cpu_after - cpu) * 1e6 / (requests_after - requests)

    def _now(self) -> tuple[float, int]:
        """CPU seconds and requests so far. The answer takes a moment, so the clock is read on both sides of it."""
        before = self._cpu_seconds()
        requests = self._server.requests()
        return (before + self._cpu_seconds()) / 2, requests

    def _cpu_seconds(self) -> float:
        return sum(usage.cpu_seconds(pid) for pid in self._pids)

    def _count(self, seconds: float) -> dict[str, dict[str, float | int]]:
        """Last, with all probes on: the counting costs something itself."""
        self._switch({probe.name for probe in self._probes})
        known = {
            kernel.program_id(descriptor): f"{probe.name}: {hook}"
            for probe in self._probes
            for hook, descriptor in probe.program.programs.items()
            if hook in probe.hooks
        }
        with kernel.counting():
            before, requests = kernel.programs(), self._server.requests()
            time.sleep(seconds)
            after, requests = kernel.programs(), self._server.requests() - requests
        return {
            known.get(number, f"never switched: {runs.name}"): _each(before[number], runs, requests)
            for number, runs in sorted(after.items())
            if number in before and number not in self._others and runs.count > before[number].count
        }


def _each(before: kernel.Runs, after: kernel.Runs, requests: int) -> dict[str, float | int]:
    runs = after.count - before.count
    return {
        "ns_per_run": round((after.nanoseconds - before.nanoseconds) / runs, 1),
        "runs_per_request": round(runs / requests, 3),
        "skipped": after.skipped - before.skipped,
    }


def _softirq_threads(cpu: int) -> list[int]:
    """The kernel's thread that takes over the network's work of a CPU that has too much of it."""
    return [p.pid for p in psutil.process_iter(["name"]) if p.info["name"] == f"ksoftirqd/{cpu}"]


@contextmanager
def _bound_to(cpu: int) -> Iterator[None]:
    """Have this process keep off the CPU that is measured."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
