"""What the agent's probes cost, and what it gives up to stay within `agent.budget_cores` (docs/overhead.md)."""

from __future__ import annotations

import logging
import math
import time

from trimtab.agent.bpf import cost
from trimtab.agent.budget import Budget, Change
from trimtab.agent.probes import Probe
from trimtab.agent.registry import Host, Reading, Signal

log = logging.getLogger(__name__)

EVERY_SECONDS = 10.0
"""Between two looks, each of which lasts one window."""


class BudgetKeeper:
    """Lets the kernel count what the probes cost in one window of ten, and takes one step after it."""

    name = "budget"
    signals = (
        Signal("agent_probes_used_cores", "cores", "CPU time of the eBPF probes, as measured within 10 s", "node"),
        Signal("agent_budget_cores", "cores", "CPU time that the agent may use with its probes", "node"),
        Signal("agent_sampling_probability", "1", "share of the requests that enter the distributions", "node"),
        Signal("agent_probes_off", "1", "probes that are switched off to stay within the budget", "node"),
    )

    def open(self, host: Host) -> None:
        self._node = host.node
        self._clock = host.clock
        self._probes = host.probes
        self._budget = Budget(host.budget_cores, host.probes.sampling_probability)
        self._cores = host.budget_cores
        self._counting: int | None = None
        self._looking = False
        self._before: dict[str, float] = {}
        self._used: float | None = None
        self._cpu = (math.nan, math.nan)
        self._look_at = -math.inf
        self._looked_at = -math.inf

    def read(self, reading: Reading) -> None:
        now = self._clock.monotonic()
        if self._looking:
            self._finish(reading, now)
        elif now >= self._look_at:
            self._begin(now)
        reading.set("node", self._node, "agent_probes_used_cores", self._used)
        reading.set("node", self._node, "agent_budget_cores", self._cores)
        reading.set("node", self._node, "agent_sampling_probability", self._probes.sampling_probability)
        reading.set("node", self._node, "agent_probes_off", len(self._budget.off))

    def close(self) -> None:
        self._stop_counting()

    def _begin(self, now: float) -> None:
        self._look_at, self._looked_at = now + EVERY_SECONDS, now
        self._counting = cost.counting()
        try:
            self._before = self._spent(self._running())
        except (OSError, ValueError):  # no look, then: what was spent since the one before is no cost of this one
            self._stop_counting()
            raise
        self._looking = True

    def _finish(self, reading: Reading, now: float) -> None:
        seconds = now - self._looked_at
        running = self._running()
        spent = self._spent(running)
        # One that was opened or switched since has not been seen for all of it.
        costs = {name: max(0.0, spent[name] - self._before[name]) / seconds for name in spent.keys() & self._before}
        own_cores = self._own_cores(now)
        self._stop_counting()
        self._used = sum(costs.values())
        change = self._budget.step(now, own_cores, costs)
        if change is not None:
            self._make(change, reading)

    def _own_cores(self, now: float) -> float:
        """Of the agent's threads, since this was last asked; 0 at first, when it has just started."""
        cpu_seconds = time.process_time()
        (before, at), self._cpu = self._cpu, (cpu_seconds, now)
        return 0.0 if math.isnan(at) else (cpu_seconds - before) / (now - at)

    def _make(self, change: Change, reading: Reading) -> None:
        self._probes.sampling_probability = self._budget.sampling_probability
        if change.probe is None:
            detail = f"sampling probability {self._budget.sampling_probability:g}: {change.why}"
            reading.event("node", self._node, "sampling_change", self._budget.sampling_probability, detail)
        else:
            for probe in self._probes.all():
                if probe.name == change.probe:
                    probe.switch(change.on)
            detail = f"{change.probe}: {change.why}"
            reading.event("node", self._node, "probe_on" if change.on else "probe_off", detail=detail)
        log.info("budget: %s", detail)

    def _running(self) -> list[Probe]:
        return [probe for probe in self._probes.all() if probe.on]

    def _spent(self, probes: list[Probe]) -> dict[str, float]:
        return cost.nominal_seconds(probes) if self._counting is None else cost.run_seconds(probes)

    def _stop_counting(self) -> None:
        if self._counting is not None:
            cost.close(self._counting)
            self._counting = None
        self._looking = False


COLLECTOR = BudgetKeeper
