"""What it costs to tell a real Envoy new weights, how long it takes, and how its algorithms obey: `python -m tests.bench.fronts`.

The front is the process that the actuator starts. It is handed snapshots in which every share differs from the one before.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.actuator.conftest import NODE, Backends, free_port, requests
from tests.actuator.real_envoy import Envoy
from tests.bench import usage
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.relay import Relay
from trimtab.actuator.targets.xds.server import Xds
from trimtab.agent.clock import SystemClock

SIZES = (10, 100, 1_000, 10_000)
SHARES = (0.1, 0.2, 0.3, 0.4)
REQUESTS = 2_000
_PUBLICATIONS = 20
_WAIT_SECONDS = 30.0
_RARE_CHECKS = {"interval: 1s,": "interval: 600s,"}
"""Else Envoy is busy with those."""


def snapshot(size: int, version: int) -> Snapshot:
    """Instances that nobody asks for anything."""
    share = 0.1 + 0.8 * (version % 7) / 7
    hosts = [f"127.{k >> 16 & 255}.{k >> 8 & 255}.{k & 255}:8080" for k in range(size)]
    assignments = (Assignment(f"{NODE}/{k}", "resnet", (host,), share) for k, host in enumerate(hosts))
    return Snapshot("active", tuple(assignments), version, version)


def acknowledged_ms(size: int, directory: Path) -> float:
    """From publication to Envoy's acknowledgement, the median."""
    xds = Xds(Start("xds", f"127.0.0.1:{free_port()}", NODE), SystemClock())
    xds.publish(snapshot(size, 0))
    envoy = Envoy(directory, xds.port, _RARE_CHECKS)
    took = []
    try:
        _until(lambda: bool(xds.matched) and xds.told())
        for version in range(1, _PUBLICATIONS + 1):
            started = time.monotonic()
            xds.publish(snapshot(size, version))
            _until(xds.told)
            took.append(time.monotonic() - started)
    finally:
        envoy.stop()
        xds.close()
    return statistics.median(took) * 1e3


def obeyed(policy: str, directory: Path) -> list[int]:
    """Of REQUESTS, what instances of the weights SHARES got."""
    backends = Backends(len(SHARES))
    xds = Xds(Start("xds", f"127.0.0.1:{free_port()}", NODE), SystemClock())
    pairs = zip(backends.ports, SHARES, strict=True)
    known = [Assignment(f"{NODE}/{p}", "resnet", (f"127.0.0.1:{p}",), share) for p, share in pairs]
    xds.publish(Snapshot("active", tuple(known), 1, 1))
    envoy = Envoy(directory, xds.port, {"ROUND_ROBIN": policy})
    try:
        answers = requests(envoy.wait().port, REQUESTS)
        return [answers[str(port)] for port in backends.ports]
    finally:
        envoy.stop()
        xds.close()
        backends.close()


def process(size: int, directory: Path) -> tuple[float, float]:
    """CPU time of the front for each publication, ms, and its memory, MB, with an Envoy."""
    port = free_port()
    relay = Relay(Start("xds", f"127.0.0.1:{port}", NODE))
    relay.apply(snapshot(size, 0))
    envoy = Envoy(directory, port, _RARE_CHECKS)
    assert relay._process
    pid = relay._process.pid
    try:
        version = 0
        while not relay.matched:
            version += 1
            relay.apply(snapshot(size, version))
            time.sleep(0.2)
        before = usage.tree_cpu_seconds(pid)
        for later in range(1, _PUBLICATIONS + 1):
            relay.apply(snapshot(size, version + later))
            time.sleep(0.3)
        cpu_ms = (usage.tree_cpu_seconds(pid) - before) / _PUBLICATIONS * 1e3
        return cpu_ms, usage.memory(pid).resident_mb
    finally:
        envoy.stop()
        relay._process.kill()
        relay._process.wait()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("Envoy does not answer")
        time.sleep(1e-4)


def main() -> None:
    if not shutil.which("envoy"):
        sys.exit("no envoy here: `make test` brings one")
    table = Table(title="an Envoy of which every weight changes")
    for column in ("instances", "publication to acknowledgement ms", "CPU of the front ms a publication", "memory MB"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as directory:
        for size in SIZES:
            cpu_ms, memory_mb = process(size, Path(directory))
            acknowledged = acknowledged_ms(size, Path(directory))
            table.add_row(f"{size:,}", f"{acknowledged:.1f}", f"{cpu_ms:.1f}", f"{memory_mb:.0f}")
        weights = ":".join(f"{100 * share:.0f}" for share in SHARES)
        policies = Table(title=f"requests of {REQUESTS:,} that instances of weights {weights} got")
        for policy in ("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"):
            policies.add_row(policy, *map(str, obeyed(policy, Path(directory))))
    Console().print(table, policies)


if __name__ == "__main__":
    main()
