"""The policy that leaves every weight as the operator set it: the baseline of all others."""

from __future__ import annotations

import numpy as np

from trimtab.actuator.state import State, Vector


class Neutral:
    """Wishes for nothing."""

    name = "neutral"

    def decide(self, state: State) -> Vector:
        return np.ones(len(state))


POLICY = Neutral
