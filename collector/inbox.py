"""The one queue in front of the writer: bounded in items and in bytes, so that a slow disk slows the agents down."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
ITEMS_MAX = 1024
BYTES_MAX = 256 << 20


class Inbox(Generic[T]):
    """First in, first out; many put, one takes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._woken = False

    def put(self, item: T, size_bytes: int, give_up: Callable[[], bool]) -> bool:
        """Wait for room, and put it in; False when `give_up` said so first."""
        with self._changed:
            while len(self._items) >= ITEMS_MAX or (self._items and self._bytes + size_bytes > BYTES_MAX):
                if give_up():
                    return False
                self._changed.wait(0.5)
            self._items.append((item, size_bytes))
            self._bytes += size_bytes
            self._changed.notify_all()
            return True

    def take(self, items_max: int, seconds: float) -> list[T]:
        """What is there, oldest first, as soon as something is there, or somebody calls `wake`, or `seconds` have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._woken, seconds)
            self._woken = False
            taken = [self._items.popleft() for _ in range(min(items_max, len(self._items)))]
            self._bytes -= sum(size for _, size in taken)
            self._changed.notify_all()
            return [item for item, _ in taken]

    def wake(self) -> None:
        """Have the one who takes look up."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def __len__(self) -> int:
        with self._changed:
            return len(self._items)
