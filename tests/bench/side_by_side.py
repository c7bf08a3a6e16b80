"""The whole agent beside its peers, over the same spans of time: first on an idle host, then beside a busy server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import kernel, usage
from tests.bench.nginx import nginx, wrk
from tests.bench.peers import Peers, netdata_charts
from tests.bench.services import agent, collector
from tests.bench.spread import Estimate, median
from tests.bench.usage import Memory
from tests.e2e.processes import free_ports
from tests.e2e.services import Installation
from trimtab import TrimtabError

AGENT = "trimtab agent"
_THINK_SECONDS = 0.01
_CONNECTIONS = 60
"""So many that they ask together at least 5,000 times a second, with the one to two milliseconds that the answer and two timers take."""
REPORTED = {
    "requests_per_second": ("instance", "%/{port}"),
    "agent_probes_off": ("node", "%"),
    "agent_sampling_probability": ("node", "%"),
}
"""By signal, where it is stored: whether all of it works, and what the budget gave up."""
_SLOT_SECONDS = 2.0
_FOUND_SECONDS = 3.0
"""The agent looks for instances every two seconds."""
_START_SECONDS_MAX = 40.0
_STARTS_APART_SECONDS = 0.37
"""Windows end with the second of the wall clock: starts that all fall on the same moment of it would tell of one case only."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each part is. `starts` of the agent, one after the other, are timed."""

    settle_seconds: float
    """After the agent's last compiler."""
    idle_seconds: float
    loaded_seconds: float
    starts: int


@dataclass(slots=True)
class Span:
    """CPU percent of one core, by program, and requests a second of the server."""

    cpu_percent: dict[str, Estimate] = field(default_factory=dict)
    """The median of slots of two seconds says how it spreads; `mean_percent` is what is compared: nothing in it is left out."""
    mean_percent: dict[str, float] = field(default_factory=dict)
    requests_per_second: float = 0.0
    kernel_percent: float = 0.0
    """What the agent's programs took in the kernel, on the account of others; by the kernel's own count."""
    hooks: dict[str, float] = field(default_factory=dict)
    """Percent of a core, by program."""


@dataclass(slots=True)
class Result:
    """All that one run of the agent tells."""

    first_window_seconds: list[float]
    idle: Span
    loaded: Span
    memory: dict[str, Memory]
    netdata_charts: int
    reported: dict[str, float]
    """Means over the loaded span of what the agent itself said: REPORTED."""


def measure(directory: Path, plan: Plan, beside: Peers) -> Result:
    """Takes the plan's seconds and some ten for starting. Raises TrimtabError."""
    with ExitStack() as stack:
        port = free_ports(2)
        installation = stack.enter_context(collector(directory / "services"))
        firsts = []
        for _ in range(plan.starts - 1):
            with agent(installation, port) as once:
                firsts.append(once.first_window_seconds)
                once.stop()
            time.sleep(_STARTS_APART_SECONDS)
        others = set(kernel.programs())
        running = stack.enter_context(agent(installation, port))
        pids = {AGENT: running.process.pid, **beside.pids}
        _settle(running.process.pid, plan.settle_seconds)
        beside.warm_up()
        idle = _span(pids, plan.idle_seconds, lambda: 0, others)
        server = stack.enter_context(nginx(directory / "nginx", port=port))
        stack.enter_context(wrk(server, _CONNECTIONS, _THINK_SECONDS))
        time.sleep(_FOUND_SECONDS)
        loaded = _span(pids, plan.loaded_seconds, server.requests, others)
        memory = {name: usage.memory(pid) for name, pid in pids.items()}
        reported = _reported(installation, port, plan.loaded_seconds)
        return Result([*firsts, running.first_window_seconds], idle, loaded, memory, netdata_charts(), reported)


def _settle(pid: int, seconds: float) -> None:
    """Wait until the agent has had no child for `seconds`: its compilers are of its start, as the peers' first seconds are of theirs."""
    deadline = time.monotonic() + _START_SECONDS_MAX
    alone_since = time.monotonic()
    while time.monotonic() - alone_since < seconds:
        if time.monotonic() > deadline:
            raise TrimtabError(
                f"the agent still starts other programs {_START_SECONDS_MAX:.0f} s after its first window"
            )
        if len(usage.tree(pid)) > 1:
            alone_since = time.monotonic()
        time.sleep(0.1)


def _span(pids: dict[str, int], seconds: float, requests: Callable[[], int], others: set[int]) -> Span:
    slots: dict[str, list[float]] = {name: [] for name in pids}
    span = Span()
    with kernel.counting():
        begun, asked, ran = time.monotonic(), requests(), kernel.programs()
        first = before = {name: usage.tree_cpu_seconds(pid) for name, pid in pids.items()}
        at = begun
        while at - begun < seconds:
            time.sleep(min(_SLOT_SECONDS, max(0.1, begun + seconds - at)))
            now = {name: usage.tree_cpu_seconds(pid) for name, pid in pids.items()}
            elapsed, at = time.monotonic() - at, time.monotonic()
            for name in pids:
                slots[name].append((now[name] - before[name]) / elapsed * 100)
            before = now
        whole = at - begun
        span.requests_per_second = (requests() - asked) / whole
        for number, runs in kernel.programs().items():
            if number in ran and number not in others and runs.count > ran[number].count:
                percent = (runs.nanoseconds - ran[number].nanoseconds) / whole / 1e7
                span.hooks[runs.name] = span.hooks.get(runs.name, 0.0) + percent
    span.kernel_percent = sum(span.hooks.values())
    span.cpu_percent = {name: median(values) for name, values in slots.items()}
    span.mean_percent = {name: (before[name] - first[name]) / whole * 100 for name in pids}
    return span


def _reported(installation: Installation, port: int, seconds: float) -> dict[str, float]:
    """What the agent said of the last seconds, as the collector has it: REPORTED; what it did not say is left out."""
    found: dict[str, float] = {}
    for signal, (table, subject) in REPORTED.items():
        rows = f"fingerprint_{table} WHERE subject LIKE '{subject.format(port=port)}'"
        last = f"start > (SELECT max(start) FROM {rows}) - INTERVAL {round(seconds)} SECOND"
        sql = f"SELECT avg({signal}) AS mean FROM {rows} AND {last}"
        answer = installation.command("query", sql, "--json", columns=200, colour=False)
        with suppress(ValueError, LookupError, TypeError):
            found[signal] = float(json.loads(answer)[0]["mean"])
    return found
