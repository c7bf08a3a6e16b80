"""A hostile client beside a good one: what the agent says of the good one stays right, and the agent stays small."""

from __future__ import annotations

import ctypes
import gc
import http.client
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bench import kernel
from tests.e2e.archive import ROOT
from tests.e2e.hostile import CONNECTIONS
from trimtab.agent import procfs
from trimtab.agent.bpf import capability
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.latency import Latency
from trimtab.agent.probes import Probes
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.sketch.loglinear import Sketch, merge

MISSING = [f"{check.detail}; {check.remedy}" for check in capability.what_is_missing() if not check.ok]
DESCRIPTORS_MAX = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
pytestmark = [
    pytest.mark.ebpf,
    pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING)),
    pytest.mark.skipif(DESCRIPTORS_MAX < CONNECTIONS + 1000, reason="a process may not have so many connections here"),
]

DEADLINE_SECONDS = 20.0
ROUNDS = 4
GOOD_REQUESTS = 200
REFUSED = 40
GROWTH_BYTES_MAX = 4 << 20
KERNEL_BYTES_MAX = 64 << 20


class Puppet:
    """A process of `tests.e2e.hostile`."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.e2e.hostile", *arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        self.first = self._line()

    def do(self, what: str, count: int = 0) -> object:
        """Have it done, and wait until it is."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what} {count}\n")
        return self._line()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _line(self) -> object:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Watched:
    """The collector that watches the server, read as windows of one second: rates are then counts."""

    def __init__(self, port: int, pid: int) -> None:
        started = procfs.process_stat(procfs.read(f"/proc/{pid}/stat")).started
        netns = Path("/proc/self/ns/net").stat().st_ino
        self._instance = Instance("n/1", "test", pid, started, port, netns, (f"127.0.0.1:{port}",))
        self.collector = Latency()
        self.collector.open(Host("n", SystemClock(), Probes()))
        self.sketches: list[Sketch] = []
        self.counts: dict[str, float] = {}
        self.read()

    def read(self) -> dict[str, float]:
        """The values of this reading alone; rates are added up besides."""
        reading = Reading([self._instance], 1.0)
        self.collector.read(reading)
        values = {name: value for (kind, _, name), value in reading.values.items() if kind == "instance"}
        for name in [name for name in values if "per_second" in name]:
            self.counts[name] = self.counts.get(name, 0.0) + values[name]
        sketch = reading.sketches.get(("instance", "n/1", "request_latency"))
        self.sketches += [sketch] if sketch else []
        return values

    def answered(self) -> float:
        """Requests so far, since this was emptied."""
        self.read()
        return self.counts.get("requests_per_second", 0.0)

    def empty(self) -> None:
        """Count from here on."""
        self.read()
        self.sketches.clear()
        self.counts.clear()


@pytest.fixture
def server() -> Iterator[Puppet]:
    puppet = Puppet("serve")
    yield puppet
    puppet.close()


@pytest.fixture
def attacker(server: Puppet) -> Iterator[Puppet]:
    puppet = Puppet("attack", str(server.first))
    yield puppet
    puppet.close()


@pytest.fixture
def seen(server: Puppet) -> Iterator[Watched]:
    watched = Watched(int(str(server.first)), server.pid)
    yield watched
    watched.collector.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Good:
    """A client that asks one request after the other on one connection."""

    def __init__(self, port: object) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", int(str(port)), timeout=30)

    def ask(self, count: int) -> list[float]:
        """Seconds from each request to the first byte of its answer."""
        seconds = []
        for _ in range(count):
            begun = time.perf_counter()
            self._connection.request("GET", "/")
            answer = self._connection.getresponse()
            seconds.append(time.perf_counter() - begun)
            assert (answer.status, answer.read()) == (200, b"ok")
        return seconds


def right_for(good: Good, seen: Watched) -> bool:
    """Exactly counted; and whether the median is within 5 % or 1 ms of the client's own."""
    seen.empty()
    theirs = float(np.median(good.ask(GOOD_REQUESTS)))
    until(lambda: seen.answered() >= GOOD_REQUESTS, "its requests were not all seen")
    assert seen.answered() == GOOD_REQUESTS
    ours = float(merge(seen.sketches).quantiles_seconds((0.5,))[0])
    print(f"kernel {ours * 1e3:.2f} ms, client {theirs * 1e3:.2f} ms")
    return abs(ours - theirs) <= max(0.05 * theirs, 0.001)


def refused(server: Puppet) -> int:
    """Answers of the server that said no, so far."""
    answers = server.do("answers")
    assert isinstance(answers, dict)
    return sum(count for status, count in answers.items() if status != "200")


def resident_bytes() -> int:
    """Without what was freed, and only kept by the allocator: other tests ran in this process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return procfs.process_stat(procfs.read("/proc/self/stat")).resident_bytes


def test_who_never_gets_an_answer_changes_nothing(server: Puppet, attacker: Puppet, seen: Watched) -> None:
    """10,000 connections that are silent, half-open requests, and requests a byte at a time."""
    good = Good(server.first)
    assert any(right_for(good, seen) for _ in range(ROUNDS)), "wrong before anybody did harm"
    before = resident_bytes()
    attacker.do("idle", CONNECTIONS)
    attacker.do("half", 300)
    attacker.do("slow", 200)
    until(lambda: seen.read().get("requests_in_flight", 0) >= 500, "the requests that never end are not in flight")
    assert any(right_for(good, seen) for _ in range(ROUNDS)), "the latency of the good client is wrong"
    attacker.do("release")
    until(lambda: seen.read()["requests_in_flight"] == 0, "what was aborted is still in flight")
    assert seen.counts["requests_aborted_per_second"] == 500
    assert any(right_for(good, seen) for _ in range(ROUNDS)), "wrong after they have gone"
    assert resident_bytes() - before < GROWTH_BYTES_MAX


def right_among_others(good: Good, seen: Watched, server: Puppet, attacker: Puppet) -> bool:
    """Each answer counted at most once; and whether the median is where REFUSED other requests can move it, or 1 ms further."""
    seen.empty()
    before = refused(server)
    seconds = good.ask(GOOD_REQUESTS // 2)
    attacker.do("garbage", REFUSED - 10)
    attacker.do("giant", 10)
    seconds += good.ask(GOOD_REQUESTS // 2)
    assert refused(server) - before == REFUSED
    until(lambda: seen.answered() >= GOOD_REQUESTS, "the good requests were not all seen")
    until(lambda: seen.read()["requests_in_flight"] == 0, "something is in flight for ever")
    assert GOOD_REQUESTS <= seen.answered() <= GOOD_REQUESTS + REFUSED
    ours = float(merge(seen.sketches).quantiles_seconds((0.5,))[0])
    # Should all the others be faster, or all be slower.
    low, high = np.quantile(seconds, (0.5 - REFUSED / GOOD_REQUESTS / 2, 0.5 + REFUSED / GOOD_REQUESTS / 2))
    print(f"kernel {ours * 1e3:.2f} ms, client {low * 1e3:.2f} to {high * 1e3:.2f} ms")
    return bool(low - 0.001 <= ours <= high + 0.001)


def test_garbage_and_giant_heads_hide_no_good_request(server: Puppet, attacker: Puppet, seen: Watched) -> None:
    """What the server refuses it answers, so that it may count: it cannot be told from a request whose client erred."""
    good = Good(server.first)
    assert any(right_for(good, seen) for _ in range(ROUNDS)), "wrong before anybody did harm"
    before = resident_bytes()
    assert any(right_among_others(good, seen, server, attacker) for _ in range(ROUNDS))
    assert resident_bytes() - before < GROWTH_BYTES_MAX


def test_the_kernels_memory_is_fixed(server: Puppet, attacker: Puppet) -> None:
    others = set(kernel.map_bytes())
    seen = Watched(int(str(server.first)), server.pid)
    ours = {number: size for number, size in kernel.map_bytes().items() if number not in others}
    assert 0 < sum(ours.values()) < KERNEL_BYTES_MAX
    attacker.do("half", CONNECTIONS)
    until(lambda: seen.read().get("requests_in_flight", 0) >= CONNECTIONS, "not all are in flight")
    grown = {number: size for number, size in kernel.map_bytes().items() if number in ours}
    seen.collector.close()
    assert grown == ours
