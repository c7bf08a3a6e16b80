"""Time as an argument: the real clock, and one that tests move by hand."""

from __future__ import annotations

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """The three times that trimtab reads, and the one way it waits."""

    def unix_ns(self) -> int:
        """Wall-clock time, nanoseconds since the Unix epoch; may step."""

    def boottime_ns(self) -> int:
        """Nanoseconds since the host booted, suspend included; never steps. The clock of eBPF and of windows."""

    def monotonic(self) -> float:
        """Seconds of a clock that never steps, for durations and deadlines."""

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        """Wait until `stop` is set or `seconds` have passed; whether `stop` is set."""


class SystemClock:
    """The clocks of this host."""

    def unix_ns(self) -> int:
        return time.time_ns()

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        return stop.wait(max(0.0, seconds))


class ManualClock:
    """A clock that stands still until it is moved; `wait` moves it. For tests."""

    def __init__(self, unix_ns: int = 1_700_000_000_000_000_000) -> None:
        self._unix_ns = unix_ns
        self._elapsed_ns = 0

    def advance(self, seconds: float) -> None:
        self._elapsed_ns += round(seconds * 1e9)

    def unix_ns(self) -> int:
        return self._unix_ns + self._elapsed_ns

    def boottime_ns(self) -> int:
        return self._elapsed_ns

    def monotonic(self) -> float:
        return self._elapsed_ns / 1e9

    def wait(self, stop: threading.Event, seconds: float) -> bool:
        self.advance(max(0.0, seconds))
        return stop.is_set()
