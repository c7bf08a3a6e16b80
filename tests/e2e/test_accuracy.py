"""Request latency of a real TorchServe: what the kernel saw against what the clients' own clocks say."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.fleet import Instance as Served
from trimtab.agent.bpf import capability
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.latency import Latency
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.sketch.loglinear import Sketch, merge

MISSING = [f"{check.detail}; {check.remedy}" for check in capability.what_is_missing() if not check.ok]
pytestmark = [pytest.mark.fleet, pytest.mark.ebpf, pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))]

BODY = b'{"ids": [101, 102, 103]}'
NETNS = Path("/proc/self/ns/net").stat().st_ino


class Kernel:
    """The latency collector, watching one instance."""

    def __init__(self, served: Served) -> None:
        pid = served.process.pid
        self._instance = Instance("n/1", "torchserve", pid, 0.0, served.port, NETNS, (served.address,))
        self.collector = Latency()
        self.collector.open(Host("n", SystemClock()))
        self.read()

    def read(self) -> Sketch | None:
        """The requests since the last reading; None without any."""
        reading = Reading([self._instance], 1.0)
        self.collector.read(reading)
        return reading.sketches.get(("instance", "n/1", "request_latency"))

    def seen(self, count: int) -> Sketch:
        """The next `count` requests; the last answer may reach the client before the kernel's hook has run."""
        deadline = time.monotonic() + 5
        found: list[Sketch] = []
        while sum(s.sampled for s in found) < count and time.monotonic() < deadline:
            sketch = self.read()
            found += [sketch] if sketch else []
        return merge(found)


@pytest.fixture
def kernel(instances: list[Served]) -> Iterator[Kernel]:
    made = Kernel(instances[0])
    yield made
    made.collector.close()


def client(served: Served, requests: int) -> list[float]:
    """Seconds from sending each request to the first byte of its answer, on one keep-alive connection."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.connect()
    seconds = []
    for _ in range(requests):
        begun = time.perf_counter()
        connection.request("POST", "/predictions/bert", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        seconds.append(time.perf_counter() - begun)
        answer.read()
        assert answer.status == 200
    connection.close()
    return seconds


def test_23_requests_are_23(instances: list[Served], kernel: Kernel) -> None:
    client(instances[0], 23)
    assert kernel.seen(23).sampled == 23


@pytest.mark.parametrize("clients", [1, 8], ids=["alone", "overloaded"])
def test_quantiles_are_the_clients(instances: list[Served], kernel: Kernel, clients: int) -> None:
    """Median and p99 within 5 % or 1 ms; of the rounds that a busy machine may need, one must agree."""
    apart = []
    for _ in range(4):
        with ThreadPoolExecutor(clients) as pool:
            seconds = np.concatenate(list(pool.map(lambda _: client(instances[0], 240 // clients), range(clients))))
        seen = kernel.seen(240)
        assert seen.sampled == 240
        theirs = np.quantile(seconds, (0.5, 0.99), method="inverted_cdf")
        ours = np.asarray(seen.quantiles_seconds((0.5, 0.99)))
        apart.append((ours, theirs))
        if (np.abs(ours - theirs) <= np.maximum(0.05 * theirs, 0.001)).all():
            print(f"{clients} clients: kernel {ours * 1e3} ms, clients {theirs * 1e3} ms")
            return
    pytest.fail(f"kernel and clients, seconds: {apart}")
