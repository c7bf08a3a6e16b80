"""What goes wrong in a scenario: with an instance, or with what is told about it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trimtab.actuator.fleetsim.check import number, require, span

KINDS = ("slow", "stuck", "fail_fast", "flapping", "cold_start", "quota")
"""The order is the number by which the kernels know a fault."""
TELEMETRY_KINDS = ("lost", "late", "lying")
SIGNALS = (
    "requests_per_second",
    "latency_seconds",
    "error_ratio",
    "in_flight",
    "queue",
    "utilisation",
    "memory_bytes",
    "service_seconds",
)
"""What is told of an instance each second, and what a lie may be about."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One instance goes bad from `onset_seconds` until `end_seconds`.

    slow: serves `factor` times slower. flapping: does so for `on_seconds` of every `period_seconds`. cold_start: does so for its first
    `requests`, or, when that is 0, until the end. stuck: serves nothing. fail_fast: answers `ratio` of its requests with an error, after
    `error_seconds`. quota: each worker serves only `quota_seconds` of every `period_seconds`, as under the kernel's CPU bandwidth
    control.
    """

    instance: int
    kind: str
    onset_seconds: float = 0.0
    end_seconds: float = math.inf
    factor: float = 3.0
    ratio: float = 1.0
    error_seconds: float = 0.002
    period_seconds: float = 0.1
    on_seconds: float = 0.05
    quota_seconds: float = 0.02
    requests: int = 0
    announce_seconds: float | None = None
    """The instance tells of it so long before it shows, as by a throttling flag; negative: after. None: it never tells."""
    detect_seconds: float | None = None
    """An incident names the instance so long after the onset. None: never."""
    resolve_seconds: float = 15.0
    """The incident stays open for so long after the end."""
    mechanism: str = "unknown"
    """The incident's cause."""

    def check(self, field: str, instances: int) -> None:
        """Raises TrimtabError, naming what is wrong."""
        require(0 <= self.instance < instances, f"{field}.instance", self.instance, f"there are {instances}, from 0")
        require(self.kind in KINDS, f"{field}.kind", self.kind, f"choose {', '.join(KINDS)}")
        span(field, self.onset_seconds, self.end_seconds)
        number(f"{field}.factor", self.factor, 0.01, 1e4)
        number(f"{field}.ratio", self.ratio, 0, 1)
        number(f"{field}.error_seconds", self.error_seconds, 0, 60, above=True)
        number(f"{field}.period_seconds", self.period_seconds, 1e-3, 1e5)
        number(f"{field}.on_seconds", self.on_seconds, 0, self.period_seconds)
        number(f"{field}.quota_seconds", self.quota_seconds, self.period_seconds / 1000, self.period_seconds)
        number(f"{field}.requests", self.requests, 0, 1e9)
        number(f"{field}.announce_seconds", self.announce_seconds or 0, -1e6, 1e6)
        number(f"{field}.detect_seconds", self.detect_seconds or 0, -1e6, 1e6)
        number(f"{field}.resolve_seconds", self.resolve_seconds, 0, 1e6)

    def announced(self, second: float) -> bool:
        """Whether the instance tells of it at that time."""
        early = self.announce_seconds
        return early is not None and self.onset_seconds - early <= second < self.end_seconds

    def told(self, second: float) -> bool:
        """Whether an incident of it is open at that time."""
        late = self.detect_seconds
        return late is not None and self.onset_seconds + late <= second < self.end_seconds + self.resolve_seconds


@dataclass(frozen=True, slots=True)
class TelemetryFault:
    """What is told of one instance is not so from `onset_seconds` until `end_seconds`; the instance itself is as it is.

    lost: nothing new is heard, and what was last heard ages. late: what is heard is `late_seconds` old. lying: `signal` is told as
    `constant`, or, when that is None, `scale` times what it is.
    """

    instance: int
    kind: str
    onset_seconds: float = 0.0
    end_seconds: float = math.inf
    late_seconds: int = 5
    signal: str = "latency_seconds"
    scale: float = 1.0
    constant: float | None = None

    def check(self, field: str, instances: int) -> None:
        """Raises TrimtabError, naming what is wrong."""
        require(0 <= self.instance < instances, f"{field}.instance", self.instance, f"there are {instances}, from 0")
        require(self.kind in TELEMETRY_KINDS, f"{field}.kind", self.kind, f"choose {', '.join(TELEMETRY_KINDS)}")
        require(self.signal in SIGNALS, f"{field}.signal", self.signal, f"choose {', '.join(SIGNALS)}")
        span(field, self.onset_seconds, self.end_seconds)
        number(f"{field}.late_seconds", self.late_seconds, 1, LATE_SECONDS_MAX)
        number(f"{field}.scale", self.scale, 0, 1e6)
        number(f"{field}.constant", self.constant or 0, 0, 1e15)

    def strikes(self, second: float) -> bool:
        """Whether it holds at that time."""
        return self.onset_seconds <= second < self.end_seconds


LATE_SECONDS_MAX = 120
"""So many seconds of telemetry are kept."""
