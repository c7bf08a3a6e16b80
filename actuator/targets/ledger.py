"""The ledger: whose weights and limits trimtab set, on disk before it sets them. Whoever cleans up reads it.

Standard library only: the dead man's switch runs with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Held:
    """What of one HAProxy is in our hands."""

    backends: frozenset[str] = frozenset()
    """Whose servers have our weights."""
    maxconn: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """By "BACKEND/SERVER": the `maxconn` that it had, and the one that it has from us."""


NOTHING = Held()


class Ledger:
    """What is in our hands, by HAProxy socket. Used by the threads of one process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def read(self) -> dict[str, Held]:
        """Empty when there is no ledger, or one that nobody can read: nothing of it was written by a trimtab that works."""
        with contextlib.suppress(OSError, ValueError, KeyError, AttributeError, TypeError):
            return {str(socket): _held(entry) for socket, entry in json.loads(self._path.read_text()).items()}
        return {}

    def set(self, socket: str, held: Held) -> None:
        """This of `socket` is ours from now on, and nothing else of it. Raises OSError: then steer nothing."""
        with self._lock:
            entries = self.read()
            if entries.get(socket, NOTHING) == held:
                return
            entries = {s: h for s, h in (entries | {socket: held}).items() if h != NOTHING}
            fresh = self._path.with_suffix(f".{os.getpid()}")
            text = {s: {"backends": sorted(h.backends), "maxconn": h.maxconn} for s, h in entries.items()}
            fresh.write_text(json.dumps(text))
            os.replace(fresh, self._path)  # noqa: PTH105 - atomic, and what it says


def _held(entry: Any) -> Held:
    maxconn = {str(server): (int(before), int(ours)) for server, (before, ours) in entry["maxconn"].items()}
    return Held(frozenset(map(str, entry["backends"])), maxconn)
