"""One error that two sources tell is one error."""

from __future__ import annotations

from collections import deque
from typing import Literal

Source = Literal["kernel log", "NVML"]
PAIR_SECONDS = 10.0
"""Within which both sources tell of the same error."""
WAITING_MAX = 4096
"""Sightings of one error that wait for their counterpart; the oldest give way."""
ERRORS_MAX = 256
"""Errors of which any wait; the oldest give way."""


class Sightings:
    """Pairs each sighting of one source with one of the other, at a cost that does not grow with how many wait.

    Of m sightings by one source and n by the other within the time, max(m, n) are new: each source may miss some.
    """

    def __init__(self) -> None:
        self._waiting: dict[tuple[Source, str, int], deque[float]] = {}
        """When each was seen."""

    def is_new(self, source: Source, subject: str, code: int, now: float) -> bool:
        """Whether it is not what the other source told of already. `now` must not fall."""
        other: Source = "NVML" if source == "kernel log" else "kernel log"
        theirs = self._waiting.get((other, subject, code), deque())
        while theirs:
            if now - theirs.popleft() <= PAIR_SECONDS:
                return False
        mine = (source, subject, code)
        if mine not in self._waiting and len(self._waiting) >= ERRORS_MAX:
            del self._waiting[next(iter(self._waiting))]
        self._waiting.setdefault(mine, deque(maxlen=WAITING_MAX)).append(now)
        return True
