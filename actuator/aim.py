"""Where the weights may go: what a policy wishes for, but for who is stale, the last that is healthy, and more than can be spared."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.orders import Orders
from trimtab.actuator.pace import HELD, Aim, join
from trimtab.actuator.spare import Margins, Spare
from trimtab.actuator.state import State, Vector

ERRORS_SICK = 0.05
"""Whose requests fail so often need not be waited for, though no incident names it yet."""
PROBE_EVERY_SECONDS = 60.0
PROBE_SECONDS = 10.0
"""An instance without any weight gets the least weight for so long, so often: it is seen to answer."""


def aim(state: State, wished: Vector, ordered: Orders, spare: Spare, now: float) -> tuple[Aim, list[str]]:
    """Where the weights may go, each for itself and all together, and why. `wished`: float64 [instances], NaN for no sense."""
    settings, free = spare.settings, ~ordered.given
    stale = ~(state.age_seconds <= settings.stale_seconds)
    healthy = ~stale & ~state.degraded & (free | (ordered.weight > 0))
    none = (wished == 0) & healthy & spare.known
    least = np.where(none & ~_probed(state.ids, now), 0, settings.weight_min)
    target = np.where(np.isnan(wished) | stale, 1, np.maximum(wished, least))
    target = np.where(free, target, ordered.weight)
    best = np.zeros(len(state), dtype=bool)
    if not healthy.any():
        target[free] = 1
    elif target[healthy].max() < 1:
        best = healthy & free & (target == np.max(target, where=healthy & free, initial=0))
        target[best] = 1
    rank = target + 2 * ~state.degraded
    fixed, cuts = np.where(free, 0, 1 - target), np.where(free, 1 - target, 0)
    weight = np.where(free, 1 - spare.granted(fixed, cuts, rank, Margins.of_old(settings)), ordered.weight)
    reasons = _reasons(state, wished, stale, bool(healthy.any()), settings.stale_seconds)
    for k in np.flatnonzero(best).tolist():
        reasons[k] = "best of the healthy: neutral"
    for k in np.flatnonzero(weight > target + 1e-9).tolist():
        reasons[k] = join(reasons[k], HELD)
    sick = state.degraded | (np.nan_to_num(state.error_ratio) >= ERRORS_SICK)
    return Aim(state.ids, weight, rank, stale | best, sick, least, ~free, np.zeros_like(best)), reasons


def lift(target: Aim, reasons: list[str], degraded: NDArray[np.bool_]) -> Aim:
    """The same with neutral weights for all but those that are degraded or ordered; says so in the reasons."""
    lifted = ~target.fixed & ~degraded
    for k in np.flatnonzero(lifted & (target.weight < 1)).tolist():
        reasons[k] = join(reasons[k], "neutral for a moment, to compare")
    return replace(target, weight=np.where(lifted, 1, target.weight), lifted=lifted)


def _reasons(
    state: State, wished: Vector, stale: NDArray[np.bool_], any_healthy: bool, stale_seconds: float
) -> list[str]:
    """In words, and without counting seconds down: a reason that changes is a new snapshot."""
    out = []
    for k in range(len(state)):
        if stale[k]:
            out.append(f"telemetry over {stale_seconds:.0f} s old: neutral")
        elif math.isnan(wished[k]):
            out.append("policy wished for no weight: neutral")
        elif state.degraded[k]:
            mechanism = state.mechanisms[k].replace("_", " ") or "cause not known yet"
            nowhere = "" if any_healthy else "; nowhere to go: neutral"
            out.append(f"degraded: {mechanism} ({state.incidents[k]}){nowhere}")
        else:
            out.append("the policy wants it to have less" if wished[k] < 1 else "")
    return out


def _probed(ids: Sequence[str], now: float) -> NDArray[np.bool_]:
    """Whose turn it is to be asked, though it has no weight: not all at once."""
    turns = np.asarray([zlib.crc32(i.encode()) for i in ids]) % PROBE_EVERY_SECONDS
    return np.asarray((now + turns) % PROBE_EVERY_SECONDS < PROBE_SECONDS)
