"""What people ordered for one model's instances: fixed weights, which hold above the policy and the guard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import State, Vector
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX
from trimtab.agent.wire.overrides import MODEL, about

_REASON_MAX = 2 * TEXT_MAX
"""With what else is said of a weight it must fit into a decision."""


@dataclass(frozen=True, slots=True)
class Orders:
    """Arrays [instances]."""

    weight: Vector
    """NaN where nothing was ordered."""
    reason: tuple[str, ...]
    hands_off: tuple[bool, ...]
    """Who is to be left as the operator configured it."""

    @property
    def given(self) -> NDArray[np.bool_]:
        """For whom there is one."""
        return ~np.isnan(self.weight)


def orders(overrides: Sequence[pb.Override], state: State) -> Orders:
    """What holds for each: of several that are about it the one that is about fewer instances.

    Where all instances of a known model would have no weight at all they get their neutral ones: others, that had some, are gone.
    """
    found = [_holding(overrides, name, state.model) for name in state.ids]
    weight = np.asarray([_weight(one, name) for one, name in zip(found, state.ids, strict=True)])
    reason = tuple(_reason(one) for one in found)
    hands_off = tuple(one is not None and one.kind == pb.Override.KIND_NEUTRAL for one in found)
    if state.model and (weight == 0).all():
        weight, reason = np.ones(len(state)), tuple(f"{text}; but nobody else is there: neutral" for text in reason)
    return Orders(weight, reason, hands_off)


def _holding(overrides: Sequence[pb.Override], name: str, model: str) -> pb.Override | None:
    mine = [one for one in overrides if about(one.target, name, model)]
    return min(mine, key=lambda one: (not one.target, one.target.startswith(MODEL)), default=None)


def _weight(override: pb.Override | None, name: str) -> float:
    if override is None:
        return np.nan
    if override.kind == pb.Override.KIND_FREEZE:
        return override.frozen.get(name, 1.0)
    return override.weight if override.kind == pb.Override.KIND_WEIGHT else 1.0


def _reason(override: pb.Override | None) -> str:
    if override is None:
        return ""
    what = {pb.Override.KIND_WEIGHT: "set", pb.Override.KIND_FREEZE: "frozen"}.get(override.kind, "neutral")
    text = f"{what} by {override.who}" + (f": {override.reason}" if override.reason else "")
    return text if len(text) <= _REASON_MAX else f"{text[:_REASON_MAX]}…"
