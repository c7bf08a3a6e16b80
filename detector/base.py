"""What a detector is, and the contract that every one of them keeps (`check_detector`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
"""float32 [instances, features]; NaN where unknown. Features are oriented: higher is worse."""
State = Mapping[str, NDArray[Any]]
"""What a detector remembers, as arrays whose first axis is the instance; those named `shared_…` are of a group, or of the whole fleet."""


class Detector(Protocol):
    """Judges all instances of the fleet at once.

    Row i is the same instance from call to call. `groups` is int64 [instances]: instances with equal numbers are peers.
    """

    name: str

    def resize(self, instances: int) -> None:
        """Make room for this many rows. New rows know nothing yet; known rows stay as they are."""

    def forget(self, rows: NDArray[np.int64]) -> None:
        """These rows now stand for other instances."""

    def score(self, window: Matrix, groups: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [instances]: how anomalous each is, in [0, 1]; NaN while it warms up or when nothing is known. Changes nothing."""

    def learn(self, window: Matrix, groups: NDArray[np.int64], healthy: NDArray[np.bool_]) -> None:
        """Take this window as an example of normal, for the rows that are `healthy` (bool [instances])."""

    def save(self) -> State:
        """Everything learnt."""

    def restore(self, state: State) -> None:
        """Go on where `save` was called. Raises ValueError when the state does not fit."""
