"""The ledger: which backends have weights that trimtab set, on disk before it sets them. Whoever cleans up reads it.

Standard library only: the dead man's switch runs with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from pathlib import Path


class Ledger:
    """Backends in our hands, by HAProxy socket. Used by the threads of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, set[str]]:
        """Empty when there is no ledger, or one that nobody can read: nothing of it was written by a trimtab that works."""
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
            return {
                str(socket): {str(b) for b in backends}
                for socket, backends in json.loads(self._path.read_text()).items()
            }
        return {}

    def set(self, socket: str, backends: set[str]) -> None:
        """These backends of `socket` are ours from now on, and no others of it. Raises OSError: then steer nothing."""
        with self._lock:
            entries = self.read()
            if entries.get(socket, set()) == backends:
                return
            entries = {s: b for s, b in (entries | {socket: backends}).items() if b}
            fresh = self._path.with_suffix(f".{os.getpid()}")
            fresh.write_text(json.dumps({s: sorted(b) for s, b in entries.items()}))
            os.replace(fresh, self._path)  # noqa: PTH105 - atomic, and what it says
