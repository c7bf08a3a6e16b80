"""How far the store is rolled up, and how the writer and the keeper agree on it without a window getting lost between them.

The writer holds `writing` from before it asks what is late until its transaction is over. The keeper sets a new mark within `advance`,
which waits for that transaction, and takes its snapshot afterwards. So a window is either in the snapshot, because its transaction
was over when the mark moved; or its transaction began later, saw the mark, and noted the minute as late.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US


class RollMarks:
    """Shared by the writer and the keeper. Times are microseconds since the epoch."""

    def __init__(self, through_us: int = 0) -> None:
        self._through_us = through_us
        self.has_late = True
        """Whether minutes may have been noted as late, since the keeper last said that there are none."""
        self._lock = threading.Lock()

    @property
    def through_us(self) -> int:
        """Windows that begin before this are rolled up, or are being so."""
        return self._through_us

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around each transaction of the writer, from its first statement to its commit or rollback."""
        with self._lock:
            yield

    def late(self, starts_us: NDArray[np.int64]) -> NDArray[np.int64]:
        """The distinct minutes, rising, of windows that come too late to be rolled up with their minute: they belong into `late_minutes`,
        in the transaction that stores the windows. Only within `writing`."""
        late = starts_us[starts_us < self._through_us]
        self.has_late |= len(late) > 0
        return np.unique(late - late % MINUTE_US)

    def advance(self, through_us: int) -> None:
        """Before the keeper takes the snapshot from which it rolls up to here. Waits for the writer's transaction. Never goes back."""
        with self._lock:
            self._through_us = max(self._through_us, through_us)
