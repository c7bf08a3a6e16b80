"""Keeps the agent within its CPU budget: one step at a time, in a fixed order, and back again when there is room.

The order, cheapest loss first: sample less, then switch off the probes of ORDER, the requests last. A probe that is off says nothing of
what it would cost now, so it is tried again after a while, and later each time that it did not fit. The requests are tried
again every minute: at any load their latency is known for some of the time.

The agent's own work cannot be thinned out, and must not starve the probes: they may use half of the budget, whatever it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ORDER = ("tcp rtt", "scheduler", "block io", "tcp", "request queue", "requests")
"""Probes by the order in which they are given up. Others come before these."""
PROBABILITIES = (1.0, 1 / 4, 1 / 16)
"""What the sampling probability of the settings is multiplied by."""
PATIENCE = 2
"""Steps over the budget, one after the other, until something is given up."""
WORTH = 0.05
"""Share of the budget below which a probe is not worth switching off."""
ROOM = 0.8
"""Share of the budget that must suffice before something comes back."""
TRY_AGAIN_SECONDS = 60.0
TRY_AGAIN_SECONDS_MAX = 600.0


@dataclass(slots=True)
class _Off:
    cores: float
    """What it cost when it was switched off."""
    since: float
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Change:
    """One step: a probe to be switched, or, where there is none, a new sampling probability."""

    probe: str | None
    on: bool
    why: str


class Budget:
    """Decides; whoever asks does it. Times are monotonic seconds, costs are cores."""

    def __init__(self, cores: float, sampling_probability: float) -> None:
        self._cores = cores
        self._full_probability = sampling_probability
        self._level = 0
        self._over = 0
        self._off: dict[str, _Off] = {}
        self._waits: dict[str, float] = {}

    @property
    def sampling_probability(self) -> float:
        """What it should be now."""
        return self._full_probability * PROBABILITIES[self._level]

    @property
    def off(self) -> tuple[str, ...]:
        """The probes that are switched off, in the order in which they were."""
        return tuple(self._off)

    def step(self, now: float, own_cores: float, probes: Mapping[str, float]) -> Change | None:
        """What to change, given what the agent itself and each probe that is on used since the last step."""
        for name in [name for name in self._off if name in probes]:  # its collector was opened anew
            del self._off[name]
        allowed = max(self._cores - own_cores, self._cores / 2)
        used = sum(probes.values())
        self._over = self._over + 1 if used > allowed else 0
        if self._over >= PATIENCE:
            return self._give_up(now, used, allowed, probes)
        return None if self._over else self._take_back(now, used, allowed)

    def _give_up(self, now: float, used: float, allowed: float, probes: Mapping[str, float]) -> Change | None:
        why = f"the probes used {used:.2%} of a core, of {allowed:.2%}"
        if self._level + 1 < len(PROBABILITIES):
            self._level += 1
            return Change(None, False, why)
        # One whose absence would not be felt stays, whatever its turn.
        costly = sorted((name for name in probes if probes[name] >= WORTH * self._cores), key=_turn)
        if not costly:
            return None
        name = costly[0]
        most = TRY_AGAIN_SECONDS if name == ORDER[-1] else TRY_AGAIN_SECONDS_MAX
        wait = min(self._waits.get(name, TRY_AGAIN_SECONDS / 2) * 2, most)
        self._waits[name] = wait
        self._off[name] = _Off(probes[name], now, wait)
        return Change(name, False, f"{why}, {name} {probes[name]:.2%}")

    def _take_back(self, now: float, used: float, allowed: float) -> Change | None:
        room = ROOM * allowed - used
        for name, off in reversed(self._off.items()):
            if off.cores <= room or now - off.since >= off.wait_seconds:
                del self._off[name]
                return Change(
                    name, True, f"there is room for it, or it is time to see: the probes use {used:.2%} of a core"
                )
        if not self._off and self._level and room > allowed * (1 - ROOM):
            self._level -= 1
            return Change(None, True, f"the probes use {used:.2%} of a core, of {allowed:.2%}")
        return None


def _turn(name: str) -> int:
    return ORDER.index(name) if name in ORDER else -1
