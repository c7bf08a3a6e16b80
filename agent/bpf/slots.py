"""Numbered places in a map of the kernel, given to whatever is watched now."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Set
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Slots(Generic[K]):
    """At most `maximum` keys have a place. The place given up longest ago is taken first: its old owner's events are over by then."""

    def __init__(self, maximum: int) -> None:
        self._of: dict[K, int] = {}
        self._free = deque(range(maximum))

    def watch(self, keys: Set[K]) -> tuple[dict[K, int], dict[K, int]]:
        """Give a place to these and no others, as far as there is room, the first first; those that came, and those that went."""
        gone = {key: self._of.pop(key) for key in self._of.keys() - keys}
        self._free.extend(gone.values())
        come = {key: self._free.popleft() for key in sorted(keys - self._of.keys())[: len(self._free)]}  # type: ignore[type-var]
        self._of |= come
        return come, gone

    def of(self) -> dict[K, int]:
        """The place of each key that has one."""
        return dict(self._of)
