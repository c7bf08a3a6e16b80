"""The probes of this agent that cost enough to matter: what the budget measures, thins out, and switches off and on."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol


class Hooks(Protocol):
    """A loaded program: descriptors of what runs at each of its hooks, and their switches."""

    programs: dict[str, int]

    def switch(self, hook: str, on: bool) -> None:
        """Attach a hook, or detach it. Raises OSError."""


class Probe:
    """Some hooks of one program that only make sense together. Used by its collector and by the budget, from two threads."""

    def __init__(self, name: str, program: Hooks, hooks: Sequence[str]) -> None:
        self.name = name
        """As in docs/overhead.md."""
        self.hooks = tuple(hooks)
        self.program = program
        self.on = True
        self._whole = False
        self._lock = threading.Lock()

    def switch(self, on: bool) -> None:
        """Raises OSError where a hook cannot be switched."""
        with self._lock:
            for hook in self.hooks:
                self.program.switch(hook, on)
            self.on = on
            self._whole = False

    def whole(self) -> bool:
        """Whether it was on for all of the time since this was last asked: else what it counted is not what happened."""
        with self._lock:
            whole, self._whole = self._whole, self.on
            return whole


class Probes:
    """All probes that are open now, and how much of what they see is sampled."""

    def __init__(self, sampling_probability: float = 1.0) -> None:
        self.sampling_probability = sampling_probability
        """In (0, 1]. Collectors take it over at each reading."""
        self._open: list[Probe] = []
        self._lock = threading.Lock()

    def add(self, *probes: Probe) -> None:
        """Of a collector that has opened."""
        with self._lock:
            self._open.extend(probes)

    def remove(self, *probes: Probe) -> None:
        """Of a collector that closes, before its program does."""
        with self._lock:
            self._open = [probe for probe in self._open if probe not in probes]

    def all(self) -> tuple[Probe, ...]:
        """Those that are open."""
        with self._lock:
            return tuple(self._open)
