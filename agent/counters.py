"""Counters that only rise, as what they rose by within a window."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Rise(Generic[K]):
    """The growth of a set of counters from one look to the next. Holds the last look only."""

    def __init__(self) -> None:
        self._before: dict[K, float] = {}

    def since(self, now: Mapping[K, float]) -> dict[K, float]:
        """By how much each counter rose since the look before; a counter that is new or fell (was reset) is left out."""
        before, self._before = self._before, dict(now)
        return {key: value - before[key] for key, value in now.items() if key in before and value >= before[key]}
