"""How fast weights move: limited steps, a wait before turning back that grows with each turn, and a limit on all cuts together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.spare import Margins, Spare
from trimtab.actuator.state import Vector

RETURN_SECONDS = 10.0
"""How long an instance must be wished back before its weight rises, and must have stayed before it falls again unless it is sick;
doubled each time it relapses."""
RETURN_SECONDS_MAX = 600.0
RELAPSE_SECONDS = 300.0
HELD = "held by what may be drained"
TURN = 0.1
"""A weight has turned when it has come back this far."""


@dataclass(frozen=True, slots=True)
class Aim:
    """Where the weights of one model's instances are to go; arrays [instances]."""

    ids: tuple[str, ...]
    weight: Vector
    rank: Vector
    """Lower is cut first where not all can be cut."""
    urgent: NDArray[np.bool_]
    """May rise without waiting."""
    sick: NDArray[np.bool_]
    """May fall without waiting."""
    least: Vector
    """The smallest weight of each."""
    fixed: NDArray[np.bool_]
    """Are there at once: a person set them."""
    lifted: NDArray[np.bool_]
    """Are neutral at once and for a moment: steering is compared with that."""


@dataclass(slots=True)
class _Memory:
    weight: float = 1.0
    wait_seconds: float = RETURN_SECONDS
    wanted_since: float | None = None
    end: float = 1.0
    """The farthest it has come since it last turned."""
    rising: bool = False
    rose_at: float = -math.inf
    lifted_from: float | None = None


class Pace:
    """The weights in force of one model's instances, and what must be remembered to move them."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._memory: dict[str, _Memory] = {}

    def enter(self, ids: Sequence[str], forget: bool) -> Vector:
        """The weights in force of `ids`; 1 for the new. Instances that are gone are forgotten, and all are with `forget`."""
        old = {} if forget else self._memory
        self._memory = {i: old.get(i) or _Memory() for i in ids}
        return np.asarray([m.weight for m in self._memory.values()])

    def neutral(self, now: float, fixed: Vector) -> Vector:
        """All weights are neutral at once, but for those that are `fixed`: float64 [instances], NaN for the others."""
        after = np.where(np.isnan(fixed), 1, fixed)
        for m, weight, free in zip(self._memory.values(), after.tolist(), np.isnan(fixed).tolist(), strict=True):
            m.wanted_since = None
            if not free:
                _set(m, weight)
            elif m.weight < 1:
                _remember(m, 1.0, now)
        return after

    def step(self, aim: Aim, now: float, seconds: float, reasons: list[str], spare: Spare) -> Vector:
        """The weights `seconds` later; adds to the reasons what held one back."""
        settings, memory = self._settings, [self._memory[i] for i in aim.ids]
        before = np.asarray([m.weight for m in memory])
        target = aim.weight.copy()
        for k, m in enumerate(memory):
            if not (aim.fixed[k] or aim.lifted[k]) and (
                wait := _held(m, target[k], now, bool(aim.urgent[k]), bool(aim.sick[k]))
            ):
                target[k] = m.weight
                reasons[k] = join(reasons[k], wait)
        lowest, highest = before - settings.step_down_max * seconds, before + settings.step_up_max * seconds
        highest[aim.lifted] = 1
        after = np.where(aim.fixed, aim.weight, np.clip(target, lowest, highest))
        for k in np.flatnonzero(np.abs(after - target) > 1e-9).tolist():
            reasons[k] = join(reasons[k], "held by max step")
        # The least weight counts as a step, too: one that was asked for a sign of life had none a moment ago.
        after = np.where(aim.fixed, aim.weight, np.maximum(after, np.minimum(aim.least, highest)))
        bounded = np.where(aim.fixed, aim.weight, np.maximum(self._bounded(aim, before, after, spare), after))
        for k in np.flatnonzero(bounded > after + 1e-9).tolist():
            reasons[k] = reasons[k] if HELD in reasons[k] else join(reasons[k], HELD)
        after = np.where(bounded > 1 - 1e-9, 1, np.maximum(bounded, 0))
        for m, weight, fixed, lifted in zip(
            memory, after.tolist(), aim.fixed.tolist(), aim.lifted.tolist(), strict=True
        ):
            if fixed:
                _set(m, weight)
            elif lifted:
                m.lifted_from = m.weight if m.lifted_from is None else m.lifted_from
                m.weight, m.wanted_since = weight, None
            else:
                _remember(m, weight, now)
        return after

    def _bounded(self, aim: Aim, before: Vector, after: Vector, spare: Spare) -> Vector:
        """As much of the way from `before` to `after` as may be. Cuts that are there already go first, and need less of a margin."""
        old, new, free = Margins.of_old(self._settings), Margins.of_new(self._settings), ~aim.fixed
        cuts = np.where(free, 0, 1 - after)
        cuts = cuts + spare.granted(cuts, np.where(free, 1 - np.maximum(before, after), 0), aim.rank, old)
        cuts = cuts + spare.granted(cuts, np.where(free, np.maximum(before - after, 0), 0), aim.rank, new)
        return 1 - cuts


def _held(m: _Memory, target: float, now: float, urgent: bool, sick: bool) -> str:
    """Why the weight may not move towards its target yet, or ""."""
    if target <= m.weight:
        m.wanted_since = None
        held = m.rising and m.lifted_from is None and not sick and now - m.rose_at < m.wait_seconds
        if target < m.weight and held:
            return f"stays for {m.wait_seconds:.0f} s: it has just come back"
        return ""
    if m.wanted_since is None:
        m.wanted_since = now
    return "" if urgent or now - m.wanted_since >= m.wait_seconds else f"comes back after {m.wait_seconds:.0f} s"


def _set(m: _Memory, weight: float) -> None:
    """A person moved it: that is no turn."""
    m.weight, m.end, m.rising, m.wanted_since, m.lifted_from = weight, weight, False, None, None


def _remember(m: _Memory, weight: float, now: float) -> None:
    """Notices who turns, and who relapses: falls again soon after it rose."""
    if m.lifted_from is not None:
        if m.lifted_from < weight < m.weight:
            m.weight = weight  # on its way back
            return
        if weight > m.lifted_from:
            m.rose_at = now  # it stays there: that is a rise like any other
        m.lifted_from = None
    if weight > m.weight:
        m.rose_at = now if m.rising or weight >= m.end + TURN else m.rose_at
    m.weight = weight
    if m.rising:
        m.end = max(m.end, weight)
        if weight <= m.end - TURN:
            relapse = now - m.rose_at < RELAPSE_SECONDS
            m.wait_seconds = min(m.wait_seconds * 2, RETURN_SECONDS_MAX) if relapse else RETURN_SECONDS
            m.rising, m.end = False, weight
    else:
        m.end = min(m.end, weight)
        if weight >= m.end + TURN:
            m.rising, m.end = True, weight


def join(reason: str, more: str) -> str:
    return f"{reason}; {more}" if reason else more
