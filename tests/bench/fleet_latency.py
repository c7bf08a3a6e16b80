"""Whether a real TorchServe answers slower beside the agent: steady load, and agents that are started and stopped in turns."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.services import agent, collector
from tests.bench.spread import Estimate, median
from tests.e2e.fleet import fleet
from tests.e2e.load import load

RATE_PER_SECOND = 30.0
"""A third of what one instance can do: a queue would hide the agent behind the server's own waits."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds of one slot with the agent and one without it, in turns."""

    rounds: int
    slot_seconds: float
    settle_seconds: float
    warm_seconds: float
    """Of load before the first slot: Java compiles what it runs often."""


@dataclass(frozen=True, slots=True)
class Result:
    """Ratios, with the agent to without it."""

    p50_ratio: Estimate
    p99_ratio: Estimate
    p50_seconds: float
    p99_seconds: float
    """Without the agent."""
    requests: int
    failed: int


def measure(directory: Path, plan: Plan) -> Result:
    """Takes rounds × 2 × (slot + settle) seconds, and some twenty for the fleet. Raises TrimtabError."""
    on: list[tuple[float, float]] = []
    off: list[tuple[float, float]] = []
    with ExitStack() as stack:
        instance = stack.enter_context(fleet(directory / "fleet", 1))[0]
        installation = stack.enter_context(collector(directory / "services"))
        generator = stack.enter_context(load(instance.address, RATE_PER_SECOND, 1, directory / "requests.csv"))
        time.sleep(plan.warm_seconds)
        for number in range(plan.rounds):
            # Each goes first as often as the other.
            for beside in (True, False) if number % 2 else (False, True):
                with ExitStack() as turn:
                    if beside:
                        running = turn.enter_context(agent(installation))
                    time.sleep(plan.settle_seconds)
                    begun = time.monotonic()
                    time.sleep(plan.slot_seconds)
                    (on if beside else off).append((begun, time.monotonic()))
                    generator.check()
                    if beside:
                        running.stop()
        requests = generator.finish()
    failed = sum(request.status != 200 for request in requests)
    slots = {
        name: [np.array([r.latency for r in requests if start <= r.arrival < end]) for start, end in spans]
        for name, spans in (("on", on), ("off", off))
    }
    whole = np.concatenate(slots["off"])
    return Result(
        p50_ratio=_ratio(slots["on"], slots["off"], 0.5),
        p99_ratio=_ratio(slots["on"], slots["off"], 0.99),
        p50_seconds=float(np.quantile(whole, 0.5)),
        p99_seconds=float(np.quantile(whole, 0.99)),
        requests=len(whole) + sum(map(len, slots["on"])),
        failed=failed,
    )


def _ratio(on: list[NDArray[np.float64]], off: list[NDArray[np.float64]], quantile: float) -> Estimate:
    """The median over rounds of the ratio within the round: the two slots were next to each other, and one bad moment is one round's."""
    return median([float(np.quantile(a, quantile) / np.quantile(b, quantile)) for a, b in zip(on, off, strict=True)])
