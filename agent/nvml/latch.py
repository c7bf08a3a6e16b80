"""A fault that stays raised until its condition is truly over."""

from __future__ import annotations


class Latch:
    """One fault of one subject, from what is seen of its condition now and then.

    It is raised by one sight of the condition. It is cleared when every sight within `hold_seconds`, and the last one, was without
    it: one that comes and goes is not clear in between. Not knowing changes nothing, and starts the wait anew.
    """

    def __init__(self, hold_seconds: float = 0.0) -> None:
        self._hold_seconds = hold_seconds
        self._raised: bool | None = None
        self._well_since: float | None = None

    @property
    def raised(self) -> bool | None:
        """None: nothing is known yet."""
        return self._raised

    def step(self, now: float, condition: bool | None) -> bool | None:
        """True when it is raised now, False when it is cleared now, else None. What stood at the first sight is no change.

        `now` is in seconds of a clock that does not step; `condition` is None where it is not known.
        """
        if condition is None:
            self._well_since = None
            return None
        if condition:
            change = True if self._raised is False else None
            self._raised, self._well_since = True, None
            return change
        if not self._raised:
            self._raised = False
            return None
        if self._well_since is None:
            self._well_since = now
        if now - self._well_since < self._hold_seconds:
            return None
        self._raised, self._well_since = False, None
        return False
