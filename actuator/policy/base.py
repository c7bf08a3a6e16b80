"""What a policy is: the state of one model's instances in, wished-for weights out. Its wishes go through the guard."""

from __future__ import annotations

from typing import Protocol

from trimtab.actuator.state import State, Vector


class Policy(Protocol):
    """Called once a second for the one model it belongs to; may remember. `check_policy` is its contract."""

    name: str

    def decide(self, state: State) -> Vector:
        """float64 [instances]: the share of its neutral weight that each should get, in [0, 1]; 1 is neutral."""
