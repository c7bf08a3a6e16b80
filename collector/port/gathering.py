"""Waits a moment for more to come: hundreds of connections that each say something once a second then cost far fewer wake-ups."""

from __future__ import annotations

import selectors
import time

SECONDS = 0.01
HURRY_SECONDS = 0.1


class Gathering(selectors.EpollSelector):
    """For asyncio's loop; used by its thread."""

    def __init__(self) -> None:
        super().__init__()
        self._hurried_until = 0.0

    def hurry(self) -> None:
        """Somebody asks, and waits for an answer that may have many parts."""
        self._hurried_until = time.monotonic() + HURRY_SECONDS

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        found = super().select(timeout)
        if not found or time.monotonic() < self._hurried_until:
            return found
        time.sleep(SECONDS)
        return super().select(0)
