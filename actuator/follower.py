"""A target on a thread of its own: one that hangs or fails holds up nobody, and is asked again with every publication."""

from __future__ import annotations

import logging
import threading

from trimtab import TrimtabError
from trimtab.actuator.snapshot import Cache, Snapshot, Target

_POLL_SECONDS = 0.5

log = logging.getLogger("trimtab.actuator")


class Follower:
    """Applies the newest snapshot to one target, and gives neutral weights back when it is told to stop."""

    def __init__(self, target: Target, cache: Cache) -> None:
        self.target = target
        self.error = "not asked yet"
        """"" when the target took the last snapshot, else why not."""
        self.restored = False
        """Whether the target is neutral, after `stop`."""
        self._cache = cache
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=target.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin to let go; `join` waits for it."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Whether the target is neutral."""
        self._thread.join(seconds)
        return self.restored

    def _run(self) -> None:
        seen: Snapshot | None = None
        while not self._stop.is_set():
            fresh = self._cache.wait(seen, _POLL_SECONDS)
            if fresh:
                self._try(fresh)
                seen = fresh
        try:
            self.target.neutral()
            self.restored = True
        except (TrimtabError, OSError) as error:
            log.error("%s: weights could not be put back to neutral: %s", self.target.name, error)

    def _try(self, snapshot: Snapshot) -> None:
        try:
            self.target.apply(snapshot)
            error = ""
        except (TrimtabError, OSError) as failure:
            error = str(failure)
        except Exception as failure:  # noqa: BLE001 - top of the loop
            error = f"{type(failure).__name__}: {failure}"
        if error != self.error and (error or self.error != "not asked yet"):
            log.warning("%s: %s", self.target.name, error or "takes weights again")
        self.error = error
