"""A fleet that lives through a scenario, a second at a time, under the weights it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.fleetsim import entry, layout
from trimtab.actuator.fleetsim.arrivals import Stream
from trimtab.actuator.fleetsim.check import require
from trimtab.actuator.fleetsim.faults import SIGNALS
from trimtab.actuator.fleetsim.outcome import Ledger, Outcome
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.fleetsim.telemetry import Telemetry
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector
from trimtab.actuator.targets import haproxy, runtime

REQUEST_BYTES = 1e6
"""What a request in flight adds to an instance's memory."""
_WEIGHT_MIN = GuardSettings().weight_min


@dataclass(frozen=True, slots=True)
class Tick:
    """One second: what the collector would tell at its end, each array [instances], and what users had. Unknown is NaN."""

    second: int
    """The tick is of [second, second + 1)."""
    joined: NDArray[np.bool_]
    """Whether the instance is there; of others nothing is known."""
    weights: Vector
    """That were asked for."""
    requests_per_second: Vector
    """Answered, errors included."""
    latency_seconds: Vector
    """Mean, from when a request reached the instance until it was answered."""
    error_ratio: Vector
    in_flight: Vector
    """At the end: queued, or being served."""
    queue: Vector
    utilisation: Vector
    """Busy workers, on average, over all."""
    memory_bytes: Vector
    service_seconds: Vector
    """Mean, from when a worker began with a request's batch until it was answered: what a runtime tells."""
    age_seconds: Vector
    """Of all of these."""
    workers: Vector
    """Requests that it works at together: its workers times their batch."""
    alone: Vector
    """float64 [SIGNALS, instances]: this second by itself, as it happened and as an agent tells it."""
    announced: NDArray[np.bool_]
    """Whether the instance tells of a fault itself, as by a throttling flag."""
    mechanisms: tuple[str, ...]
    """Of the open incident that names the instance; "" without one."""
    arrived: int
    """Requests of this second."""
    cost_seconds: float
    """What a request that left in this second cost (`outcome.cost_seconds`)."""
    answers: NDArray[np.void]
    """The requests that left in this second: records of latency (seconds, from arrival), failed (0 or 1), instance (-1: none took it)
    and number, from 0 in the order of arrival."""


class Fleet:
    """One run of a scenario. The same weights are the same run; other weights are judged on the same requests."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self._arrivals = Stream(scenario.arrivals, scenario.seed)
        self._tables = layout.empty(scenario)
        self._telemetry = Telemetry(scenario.telemetry_faults, len(scenario.instances))
        self._ledger = Ledger(len(scenario.instances), scenario.slo_seconds, scenario.seed)
        self._asked: Vector = np.empty(0)
        self._requests = 0
        self._second = 0
        self._capacity = np.array([i.workers for i in scenario.instances], dtype=np.float64)
        self._places = np.array([i.workers * i.batch_max for i in scenario.instances], dtype=np.float64)
        self._memory_bytes = np.array([i.memory_bytes for i in scenario.instances], dtype=np.float64)
        self._joins = np.array([i.joins_seconds for i in scenario.instances])

    @property
    def second(self) -> int:
        """How many have passed."""
        return self._second

    @property
    def done(self) -> bool:
        """Whether the scenario is over."""
        return self._second >= self.scenario.seconds

    def step(self, weights: Vector | Sequence[float]) -> Tick:
        """Live through the next second.

        `weights` float64 [instances], in [0, 1]: the share of its neutral weight that each instance gets; 0 is drained, unless all are.
        Raises TrimtabError on other weights, and when the scenario is over.
        """
        require(not self.done, "second", self._second, "the scenario is over; make a new Fleet")
        asked = np.array(weights, dtype=np.float64)
        require(asked.shape == self._joins.shape, "weights", asked.shape, f"give one for each of {len(self._joins)}")
        require(bool(((asked >= 0) & (asked <= 1)).all()), "weights", asked.tolist(), "each must be in [0, 1]")
        start, end = float(self._second), self._second + 1.0
        times = self._arrivals.second(self._second)
        self._make_room(len(times))
        if not np.array_equal(asked, self._asked):
            self._asked = asked
            self._tables.instances["base"] = in_balancer_units(asked, self.scenario.balancers.name)
        entry.begin(self._tables, start)
        entry.advance(self._tables, times, self._requests, end)
        self._requests += len(times)
        self._second += 1
        return self._tick(asked, len(times))

    def summary(self) -> Outcome:
        """What users had so far."""
        now = self._tables.now[0]
        return self._ledger.outcome(int(now["refused"] + now["overflowed"]), int(now["in_system"]))

    def _make_room(self, arrivals: int) -> None:
        """For all that may be in the system, and for all that may leave it."""
        now, most = int(self._tables.now["in_system"][0]), self.scenario.in_flight_max
        room = len(self._tables.slots)
        if now + arrivals > room and room < most:
            self._tables = layout.grown(self._tables, min(most, max(2 * room, now + arrivals)))
        self._tables = layout.with_output(self._tables, now + arrivals)

    def _tick(self, asked: Vector, arrived: int) -> Tick:
        overhead, second = self.scenario.overhead_seconds, self._second - 1
        answers: Any = self._tables.out[: int(self._tables.now["out"][0])]
        if overhead:
            answers["latency"] += overhead
        columns = (np.ascontiguousarray(answers[name]) for name in ("latency", "failed", "instance"))
        cost = self._ledger.add(*columns)
        joined = self._joins <= second
        alone = np.where(joined, self._truth(), np.nan)
        told, age = self._telemetry.tell(alone, self._second)
        faults = self.scenario.faults
        announced = np.zeros(len(joined), dtype=bool)
        mechanisms = [""] * len(joined)
        for fault in faults:
            announced[fault.instance] |= fault.announced(self._second)
            if fault.told(self._second):
                mechanisms[fault.instance] = fault.mechanism
        return Tick(
            second=second,
            joined=joined,
            weights=asked,
            **dict(zip(SIGNALS, told, strict=True)),
            age_seconds=np.where(joined, age, np.nan),
            workers=self._places,
            alone=alone,
            announced=announced & joined,
            mechanisms=tuple(m if j else "" for m, j in zip(mechanisms, joined.tolist(), strict=True)),
            arrived=arrived,
            cost_seconds=cost,
            answers=answers,
        )

    def _truth(self) -> Vector:
        """float64 [SIGNALS, instances]"""
        table: Any = self._tables.instances
        answered = table["answered"].astype(np.float64)
        known = np.where(answered > 0, answered, np.nan)
        rows = (
            answered,
            table["latency"] / known,
            table["failed"] / known,
            table["present"],
            table["queued"] + np.where(table["gatherer"] >= 0, table["gathered"], 0),
            table["busy"] / self._capacity,
            self._memory_bytes + REQUEST_BYTES * table["present"],
            table["worked"] / known,
        )
        return np.array(rows, dtype=np.float64)


def in_balancer_units(shares: Vector, balancer: str) -> Vector:
    """The weights that the actuator would write for these shares, by its own rule for HAProxy; for all balancers alike."""
    algorithm = "leastconn" if balancer == "leastconn" else "random(2)"
    servers = [runtime.Server("", str(k), "", 1, 1, 1, True) for k in range(len(shares))]
    written = haproxy.weights(servers, shares.tolist(), algorithm, _WEIGHT_MIN)
    return np.array([float(runtime.WEIGHT_MAX) if w == "100%" else float(w) for w in written])
