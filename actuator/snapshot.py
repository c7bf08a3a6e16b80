"""A routing snapshot: complete, frozen, checked when made, versioned by the cache that publishes it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Literal, Protocol

Mode = Literal["active", "shadow", "neutral"]
IDLE = "steers nothing here"
"""What a decision says of a target that works and holds no known instance."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one instance is to get: `weight` is the share of its neutral weight, in [0, 1]."""

    instance: str
    model: str
    addresses: tuple[str, ...]
    weight: float
    reason: str = ""
    at_once: int = 0
    """How many requests it may have at once, where a balancer can see to that; 0 for as many as the operator configured."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and 0 <= self.weight <= 1):
            raise ValueError(f"weight of {self.instance}: {self.weight} is not in [0, 1]")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All assignments at one time. `version` 0 is not yet published."""

    mode: Mode
    assignments: tuple[Assignment, ...]
    unix_ns: int
    version: int = 0

    def __post_init__(self) -> None:
        ids = [a.instance for a in self.assignments]
        if len(set(ids)) != len(ids):
            raise ValueError("an instance comes twice")


class Target(Protocol):
    """A load balancer that follows snapshots. One file below actuator/targets."""

    name: str
    matched: frozenset[str]
    """The instances that it holds, by the last snapshot that it took."""

    def apply(self, snapshot: Snapshot) -> None:
        """Make the weights so. Idempotent. Raises OSError or TrimtabError when it could not; it is asked again."""

    def neutral(self) -> None:
        """Give back the weights that the operator had set. Raises like `apply`."""


class Cache:
    """The snapshot in force, in a latest-value slot: watchers see the newest, and no queue can grow."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._snapshot: Snapshot | None = None

    def publish(self, snapshot: Snapshot) -> Snapshot:
        """Put it in force, with the next version; equal assignments and mode keep the version they have."""
        with self._changed:
            last = self._snapshot
            if last and (last.mode, last.assignments) == (snapshot.mode, snapshot.assignments):
                version = last.version
            else:
                version = (last.version if last else 0) + 1
            self._snapshot = replace(snapshot, version=version)
            self._changed.notify_all()
            return self._snapshot

    def wait(self, seen: Snapshot | None, seconds: float) -> Snapshot | None:
        """The snapshot in force as soon as it is another publication than `seen`; None when there was none for `seconds`.

        Followers so hear nothing, and let go, when the one who publishes hangs.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._snapshot is not seen, seconds)
            return self._snapshot if self._snapshot is not seen else None
