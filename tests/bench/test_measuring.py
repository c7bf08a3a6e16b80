"""That the instruments are right: known loads, known samples, known verdicts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import kernel, usage
from tests.bench.agent import Report
from tests.bench.request_cost import Result
from tests.bench.spread import Estimate, bootstrap, median
from tests.bench.targets import TARGETS, verdict
from trimtab.agent.bpf import capability, syscall

MISSING = [check.detail for check in capability.what_is_missing() if not check.ok]
ebpf = [pytest.mark.ebpf, pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))]

# Uses 0.2 s of CPU by its own clock, in a thread or a child that has ended by then; then waits to be told to end.
BURN = """
import multiprocessing, sys, threading, time
def burn():
    until = time.thread_time() + 0.2
    while time.thread_time() < until: pass
if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    kind = {"thread": threading.Thread, "child": multiprocessing.Process}[sys.argv[1]]
    idle = time.process_time()
    one = kind(target=burn); one.start(); one.join()
    print(idle, flush=True); sys.stdin.read()
"""
samples = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=40)


@pytest.mark.parametrize("kind", ["thread", "child"])
def test_cpu_of_what_has_ended_is_counted(kind: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", BURN, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        idle = float(process.stdout.readline())
        used = usage.tree_cpu_seconds(process.pid) - idle
        # Children are counted in ticks of 10 ms, and forking is not for nothing.
        assert 0.18 <= used < 0.3
        assert (usage.cpu_seconds(process.pid) - idle >= 0.2) == (kind == "thread")
        process.communicate()


HOLD = """
import mmap
print(flush=True)
input()
held = mmap.mmap(-1, 32_000_000)
for page in range(0, len(held), mmap.PAGESIZE):
    held[page] = 1
print(flush=True)
input()
"""


def test_memory_is_the_kernels() -> None:
    # A process of its own: what other tests left in this one comes and goes.
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = usage.memory(process.pid)
        process.stdin.write("\n")
        process.stdout.readline()
        after = usage.memory(process.pid)
        process.communicate("\n")
    assert after.resident_mb - before.resident_mb == pytest.approx(32, abs=3)
    assert after.peak_mb >= after.resident_mb >= after.proportional_mb > 0


class TestKernel:
    """The kernel's counts of programs."""

    pytestmark = ebpf

    def test_a_program_is_found_by_its_id(self) -> None:
        code = bytes.fromhex("b700000000000000" + "9500000000000000")  # return 0
        descriptor = syscall.load_raw_tracepoint_program(code)
        number = kernel.program_id(descriptor)
        assert kernel.programs()[number].count == 0
        os.close(descriptor)

    def test_runs_are_counted_while_they_are_to_be(self) -> None:
        code = bytes.fromhex("b700000000000000" + "9500000000000000")
        descriptor = syscall.load_raw_tracepoint_program(code)
        number = kernel.program_id(descriptor)
        link = syscall.attach_raw_tracepoint("sched_process_fork", descriptor)
        with kernel.counting():
            for _ in range(23):
                subprocess.run(["true"], check=True)
            runs = kernel.programs()[number]
        subprocess.run(["true"], check=True)
        assert runs.count >= 23
        assert 0 < runs.nanoseconds < runs.count * 1e6
        assert kernel.programs()[number].count == runs.count
        os.close(link)
        os.close(descriptor)


@given(samples)
def test_an_interval_holds_its_median(values: list[float]) -> None:
    estimate = median(values)
    assert min(values) <= estimate.low <= estimate.value <= estimate.high <= max(values)
    assert estimate.covers(estimate.value)


def test_an_interval_narrows_with_more_samples() -> None:
    draw = np.random.default_rng(3)
    few, many = (bootstrap(draw.normal(5.0, 1.0, count), lambda s: float(s.mean())) for count in (20, 2000))
    assert many.high - many.low < (few.high - few.low) / 5
    assert many.covers(many.value)
    assert not many.covers(6.0)


@pytest.mark.parametrize(
    ("value", "interval", "said"),
    [
        (None, None, "not measured"),
        (math.nan, None, "not measured"),
        (0.05, (-0.1, 0.2), "met"),
        (0.2, (0.1, 0.3), "missed"),
        (-0.2, (-0.3, -0.1), "met"),
        (0.0, (-1.0, 1.0), "too noisy"),
    ],
)
def test_not_measurable_is_by_the_interval(
    value: float | None, interval: tuple[float, float] | None, said: str
) -> None:
    target = next(target for target in TARGETS if target.figure == "scheduler_us_per_request")
    assert verdict(target, {target.figure: value}, {target.figure: interval} if interval else {}) == said


def test_a_bound_is_by_the_figure() -> None:
    target = next(target for target in TARGETS if target.figure == "resident_mb")
    assert verdict(target, {"resident_mb": 80.0}, {}) == "met"
    assert verdict(target, {"resident_mb": 80.1}, {}) == "missed"


def test_the_last_line_has_every_figure_and_names_what_is_missed() -> None:
    report = Report(quick=True)
    report.take_requests(Result(Estimate(15.0, 14.0, 16.0), {"requests": Estimate(1.3, 1.2, 1.4)}))
    line = json.loads(json.dumps(report.as_object(), allow_nan=False))
    assert {target.figure for target in TARGETS} <= line.keys()
    assert line["missed"] == ["cpu_us_per_request"]
    assert line["spreads"]["cpu_us_per_request"] == [1.2, 1.4]
    assert "resident_mb" in line["not_measured"]
    assert line["resident_mb"] is None
