"""What a learned policy sees from second to second: the fleet's recent past, the rule's proposal, and what was wished for last."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.policy.features import Matrix, encode
from trimtab.actuator.policy.recent import Recent
from trimtab.actuator.policy.split import Split
from trimtab.actuator.state import State, Vector

_MEMORY, _SLOW_MEMORY = 0.7, 0.95
"""Of the averages: some three seconds, and twenty."""


class Sight:
    """`see` once a second, then `remember` what was wished for."""

    def __init__(self) -> None:
        self._recent, self._slow, self._rule = Recent(_MEMORY, hold=True), Recent(_SLOW_MEMORY, hold=True), Split()
        self._wished: dict[str, float] = {}
        self.proposal: Vector = np.ones(0)

    def see(self, state: State) -> Matrix:
        """float32 [instances, NAMES]; `proposal` is then of this second."""
        self.proposal = self._rule.decide(state)
        last = np.asarray([self._wished.get(i, 1.0) for i in state.ids])
        return encode(state, self._recent.observe(state), self._slow.observe(state), last, self.proposal)

    def remember(self, state: State, wished: Vector) -> None:
        """These weights were wished for in that state."""
        self._wished = dict(zip(state.ids, wished.tolist(), strict=True))
