"""What the store tells of one incident, as arrays over seconds and instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.state import Vector
from trimtab.agent.sketch.loglinear import BUCKETS, MIDDLES_SECONDS, Sketch
from trimtab.collector.packed import SketchList

Matrix = NDArray[np.float64]
"""float64 [seconds, instances]; NaN where nothing is known."""


@dataclass(frozen=True, slots=True)
class Incident:
    """The incident as the collector has it; times in nanoseconds since the Unix epoch."""

    id: str
    subject: str
    node: str
    model: str
    mechanism: str
    """"" where no cause was found."""
    since_unix_ns: int
    opened_unix_ns: int
    resolved_unix_ns: int | None
    """None while it is open."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latency sketches of all windows."""

    seconds: NDArray[np.int64]
    """int64 [windows]: in which second of the recording each window lies."""
    instances: NDArray[np.int64]
    """int64 [windows]"""
    sketches: SketchList

    def merged(self, seconds: NDArray[np.bool_], instances: Sequence[int]) -> Sketch:
        """All that was seen of some instances in the seconds that are wanted, bool [seconds]; the sum is that of the buckets."""
        inside = (self.seconds >= 0) & (self.seconds < len(seconds))
        wanted = inside & np.isin(self.instances, list(instances))
        wanted[wanted] = seconds[self.seconds[wanted]]
        sketches = self.sketches
        probability = float(sketches.probabilities[wanted].max()) if wanted.any() else 1.0
        # Each cell is one bucket of one window.
        weights = np.where(wanted, probability / sketches.probabilities, 0)
        scales = np.repeat(weights, np.diff(sketches.offsets))
        held = scales > 0
        counts = np.bincount(sketches.buckets[held], sketches.counts[held] * scales[held], BUCKETS)
        whole = np.rint(counts).astype(np.int64)
        # As `merge` does for sketches of unlike probabilities (Kish, 1965).
        each = np.where(wanted, sketches.sampled / sketches.probabilities, 0)
        squares = float((each / sketches.probabilities).sum())
        effective = float(each.sum()) / squares if squares else probability
        return Sketch(whole, float(whole @ MIDDLES_SECONDS), probability, effective)


@dataclass(frozen=True, slots=True)
class Recording:
    """Some minutes before the onset until the end, of all instances that serve the incident's model."""

    incident: Incident
    origin_unix_ns: int
    """When second 0 begins."""
    onset_second: int
    instances: tuple[str, ...]
    subjects: tuple[int, ...]
    """Which of them the incident is about."""
    requests: Matrix
    """Answered in each second, errors included."""
    aborted: Matrix
    """Requests whose connection ended without an answer."""
    errors: Matrix
    latency_seconds: Matrix
    """Mean, from arrival to first byte."""
    service_seconds: Matrix
    """Mean time of a prediction without the queue, as the runtime tells."""
    queue_seconds: Matrix
    """Mean time of a prediction in the queue, as the runtime tells."""
    in_flight: Matrix
    """At the end of the second."""
    queue: Matrix
    workers: Matrix
    queue_max: Vector
    """float64 [instances]; NaN where it is not told. So the next two."""
    batch_max: Vector
    batch_delay_seconds: Vector
    latencies: Latencies
    weights: Matrix
    """That were in force, by the recorded decisions; 1 while none was."""
    policy: str
    """That made the decisions; "" where there is none."""

    @property
    def seconds(self) -> int:
        """How many there are."""
        return len(self.requests)
