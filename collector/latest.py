"""The newest window of every node, for those who want to see the fleet as it is now."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from trimtab.collector.window import Window

NODES_MAX = 8192


class Latest:
    """The writer puts windows in, whoever asks reads them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._windows: dict[str, Window] = {}

    def observe(self, windows: Sequence[Window]) -> None:
        """These are stored."""
        with self._lock:
            for window in windows:
                known = self._windows.get(window.node)
                if known is None or window.start_unix_ns >= known.start_unix_ns:
                    # Taken out first, so that the order is that of the last word.
                    self._windows.pop(window.node, None)
                    self._windows[window.node] = window
            while len(self._windows) > NODES_MAX:
                del self._windows[next(iter(self._windows))]

    def windows(self, since_unix_ns: int) -> list[Window]:
        """Those that ended since then, by node."""
        with self._lock:
            found = [w for w in self._windows.values() if w.start_unix_ns + w.duration_ns >= since_unix_ns]
        return sorted(found, key=lambda window: window.node)
