"""One error that two sources tell is one error."""

from __future__ import annotations

from collections import deque
from typing import Literal

Source = Literal["kernel log", "NVML"]
PAIR_SECONDS = 10.0
"""Within which both sources tell of the same error."""
WAITING_MAX = 4096
"""Sightings that wait for their counterpart; the oldest give way."""


class Sightings:
    """Pairs each sighting of one source with one of the other.

    Of m sightings by one source and n by the other within the time, max(m, n) are new: each source may miss some.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[float, Source, str, int]] = deque(maxlen=WAITING_MAX)

    def is_new(self, source: Source, subject: str, code: int, now: float) -> bool:
        """Whether it is not what the other source told of already. `now` must not fall."""
        while self._waiting and now - self._waiting[0][0] > PAIR_SECONDS:
            self._waiting.popleft()
        for at, (_, other, *what) in enumerate(self._waiting):
            if other != source and what == [subject, code]:
                del self._waiting[at]
                return False
        self._waiting.append((now, source, subject, code))
        return True
