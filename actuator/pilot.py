"""One decision: the state of the fleet in, the snapshot to publish and the record of why out. No input, no output."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from trimtab import Exit, TrimtabError
from trimtab.actuator.guard import Guard, Verdict
from trimtab.actuator.limit import at_once
from trimtab.actuator.link import Heard
from trimtab.actuator.orders import orders
from trimtab.actuator.policy import POLICIES
from trimtab.actuator.policy.base import Policy
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.state import State, Vector, by_model
from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.overrides import in_force

log = logging.getLogger("trimtab.actuator")


@dataclass(frozen=True, slots=True)
class Decided:
    """What is to be, and why."""

    snapshot: Snapshot
    reason: str
    weights: tuple[pb.Weight, ...]
    overrides: tuple[pb.Override, ...] = ()
    """What people ordered, and was heeded."""
    states: tuple[State, ...] = ()
    """What the policies saw, in the order of `weights`."""


class Pilot:
    """States by model → policy → guard. Each group has a policy and a guard of its own, which go when it goes."""

    def __init__(self, settings: ActuatorSettings, clock: Clock, chance: np.random.Generator | None = None) -> None:
        """`chance` as in `Guard`. Raises TrimtabError when the settings name a policy that there is not."""
        if settings.policy not in POLICIES:
            message = f"actuator.policy = {settings.policy!r}: there is none of that name; choose {', '.join(sorted(POLICIES))}"
            raise TrimtabError(message, Exit.SETTINGS)
        self._settings, self._clock, self._chance = settings, clock, chance
        self._groups: dict[tuple[str, str], tuple[Policy, Guard]] = {}
        self._broken = 0
        self._refused = 0

    def decide(self, heard: Heard | None, hold: str = "") -> Decided:
        """`hold`: a reason for which all weights are to be neutral, whatever the fleet is like and people ordered."""
        elapsed = self._clock.monotonic() - heard.monotonic if heard else math.inf
        states = by_model(heard.fleet.instances, elapsed) if heard else []
        overrides = in_force(heard.fleet.overrides, self._clock.unix_ns()) if heard and not hold else []
        hold = hold or self._hold(elapsed)
        limits = {i.id: at_once(i) for i in heard.fleet.instances} if heard and self._limits(hold) else {}
        self._groups = {s.group: self._groups.get(s.group) or self._new() for s in states}
        assignments: list[Assignment] = []
        weights: list[pb.Weight] = []
        for state in states:
            policy, guard = self._groups[state.group]
            refused = guard.refused
            ordered = orders(overrides, state)
            verdicts = guard.bound(state, partial(self._wish, policy, state), hold, ordered)
            self._refused += guard.refused - refused
            stale = ~(state.age_seconds <= self._settings.guard.stale_seconds)
            for k, (verdict, addresses) in enumerate(zip(verdicts, state.addresses, strict=True)):
                weight, reason = self._in_force(verdict)
                limit = 0 if stale[k] or ordered.hands_off[k] else limits.get(verdict.instance, 0)
                assignments.append(Assignment(verdict.instance, state.model, addresses, weight, reason, limit))
                weights.append(
                    pb.Weight(
                        instance=verdict.instance,
                        model=state.model,
                        wished=verdict.wished,
                        weight=weight,
                        reason=reason,
                    )
                )
        mode = "neutral" if hold else self._settings.mode
        snapshot = Snapshot(mode, tuple(assignments), self._clock.unix_ns())
        reason = "; ".join(filter(None, [hold, self._counts()]))
        return Decided(snapshot, reason, tuple(weights), tuple(overrides), tuple(states))

    def _new(self) -> tuple[Policy, Guard]:
        chance = self._chance.spawn(1)[0] if self._chance else None
        guard = Guard(self._settings.guard, self._clock, self._settings.mode == "active", chance)
        return POLICIES[self._settings.policy](), guard

    def _limits(self, hold: str) -> bool:
        """Whether the second lever is in use."""
        return self._settings.haproxy_limit and self._settings.mode == "active" and not hold

    def _hold(self, elapsed: float) -> str:
        if self._settings.mode == "neutral":
            return "mode is neutral"
        if elapsed == math.inf:
            return "nothing heard from the collector yet: neutral"
        if elapsed > self._settings.guard.stale_seconds:
            return f"collector silent for over {self._settings.guard.stale_seconds:.0f} s: neutral"
        return ""

    def _wish(self, policy: Policy, state: State) -> Vector:
        """The policy's wish; NaN for all when it breaks, which the guard takes for neutral. What it does to its copy harms nobody else."""
        try:
            return np.array(policy.decide(state.copy()), dtype=np.float64)
        except Exception:  # a policy may be anything
            self._broken += 1
            if self._broken == 1:
                log.exception("policy %s broke on model %s: neutral", policy.name, state.model)
            return np.full(len(state), np.nan)

    def _in_force(self, verdict: Verdict) -> tuple[float, str]:
        if self._settings.mode != "shadow" or verdict.weight == 1 or verdict.ordered:
            return verdict.weight, verdict.reason
        return 1.0, f"shadow: would be {verdict.weight:.3f}: {verdict.reason}"

    def _counts(self) -> str:
        counts = {"policy broke": self._broken, "wishes that were no weight": self._refused}
        return "; ".join(f"{what}: {count}" for what, count in counts.items() if count)
