"""The one queue in front of the writer: bounded in items and in bytes, so that a slow disk slows the agents down."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
ITEMS_MAX = 4096
BYTES_MAX = 128 << 20


class Inbox(Generic[T]):
    """First in, first out; who puts never waits, and who takes does."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._woken = False
        self._turned_away = False
        self.room: Callable[[], None] = lambda: None
        """Called by the thread that takes, once there is room again for those who were turned away."""

    def has_room(self) -> bool:
        """Whether one more may be put in; if not, `room` will be called when it may."""
        with self._changed:
            if len(self._items) < ITEMS_MAX and self._bytes < BYTES_MAX:
                return True
            self._turned_away = True
            return False

    def put(self, item: T, size_bytes: int) -> None:
        """Only where there is room; an item may be larger than what is left of it."""
        with self._changed:
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify_all()

    def take(self, items_max: int, seconds: float) -> list[T]:
        """What is there, oldest first, as soon as something is there, or somebody calls `wake`, or `seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._woken, seconds)
            self._woken = False
            taken = [self._items.popleft() for _ in range(min(items_max, len(self._items)))]
            self._bytes -= sum(size for _, size in taken)
            call = self._turned_away and bool(taken)
            self._turned_away = self._turned_away and not call
        if call:
            self.room()
        return [item for item, _ in taken]

    def wake(self) -> None:
        """Have the one who takes look up."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    @property
    def size_bytes(self) -> int:
        """What waits, as it was said to be."""
        with self._changed:
            return self._bytes

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)
