"""A scenario for the simulator, made of what was recorded. What is not known is assumed, and said."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab import TrimtabError
from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service
from trimtab.actuator.replay.arrivals import arrivals
from trimtab.actuator.replay.assumptions import assumptions
from trimtab.actuator.replay.bins import Stretch
from trimtab.actuator.replay.recording import Matrix, Recording
from trimtab.actuator.replay.stretches import stretches
from trimtab.actuator.replay.usual import Usual, usual

REQUESTS_MAX = 1_000_000
"""That one run replays; the end is cut off beyond."""
_ERROR_SECONDS_MIN, _ERROR_SECONDS_MAX = 1e-4, 60.0


@dataclass(frozen=True, slots=True)
class Scene:
    """An incident, ready to be played."""

    recording: Recording
    arrivals: NDArray[np.int64]
    """int64 [seconds]"""
    instances: tuple[Instance, ...]
    service: Service
    faults: tuple[Fault, ...]
    overhead_seconds: float
    assumptions: tuple[str, ...]

    @property
    def seconds(self) -> int:
        """How long it lasts."""
        return len(self.arrivals)

    @property
    def onset_second(self) -> int:
        """When it begins to go wrong."""
        return self.recording.onset_second

    @property
    def weights(self) -> Matrix:
        """float64 [seconds, instances]: as they were."""
        return self.recording.weights

    def scenario(self, seed: int, balancers: Balancers) -> Scenario:
        """As many requests in each second as there were, at random times within it."""
        chance = np.random.default_rng([seed, 7])
        starts = np.repeat(np.arange(self.seconds, dtype=np.float64), self.arrivals)
        times = np.sort(np.minimum(starts + chance.random(len(starts)), np.nextafter(starts + 1, 0)))
        return Scenario(
            seed=seed,
            seconds=self.seconds,
            arrivals=Arrivals(
                rate_per_second=len(times) / self.seconds, kind="recorded", times_seconds=tuple(times.tolist())
            ),
            instances=self.instances,
            service=self.service,
            balancers=balancers,
            faults=self.faults,
            overhead_seconds=self.overhead_seconds,
        )


def scene(recording: Recording) -> Scene:
    """Raises TrimtabError when too little is known."""
    counts, gaps = arrivals(recording)
    cut = int(np.searchsorted(np.cumsum(counts), REQUESTS_MAX, side="right"))
    if cut <= recording.onset_second:
        many = f"{counts[: recording.onset_second + 1].sum():,} requests until its onset"
        raise TrimtabError(f"incident {recording.incident.id}: {many}; at most {REQUESTS_MAX:,} can be replayed")
    known = usual(recording)
    mean = known.mean_service_seconds
    courses = [stretches(recording, known, k) for k in range(len(recording.instances))]
    return Scene(
        recording=recording,
        arrivals=counts[:cut],
        instances=tuple(_instance(recording, known, k) for k in range(len(recording.instances))),
        service=Service(
            mean_seconds=mean, kind="quantiles", quantiles_seconds=tuple((known.quantiles * mean).tolist())
        ),
        faults=tuple(f for k, course in enumerate(courses) for f in _faults(recording, known, k, course, cut)),
        overhead_seconds=min(known.overhead_seconds, 60.0),
        assumptions=tuple(assumptions(recording, known, courses, gaps, recording.seconds - cut)),
    )


def _instance(recording: Recording, known: Usual, k: int) -> Instance:
    service = known.service_seconds[k]
    told = {
        "queue_max": (recording.queue_max[k], 0, 1e6),
        "batch_max": (recording.batch_max[k], 1, 1024),
    }
    limits = {name: int(np.clip(v, low, high)) for name, (v, low, high) in told.items() if np.isfinite(v)}
    delay = recording.batch_delay_seconds[k]
    return Instance(
        speed=float(known.mean_service_seconds / service) if np.isfinite(service) else 1.0,
        workers=int(min(known.workers[k], 64)),
        batch_delay_seconds=float(np.clip(delay, 0, 60)) if np.isfinite(delay) else 0.0,
        **limits,
    )


def _faults(recording: Recording, known: Usual, k: int, course: Sequence[Stretch], seconds: int) -> Iterator[Fault]:
    """A fault for each stretch that is not as usual."""
    incident = recording.incident
    opened = (incident.opened_unix_ns - recording.origin_unix_ns) / 1e9
    resolved = ((incident.resolved_unix_ns or math.inf) - recording.origin_unix_ns) / 1e9
    wrong = [s for s in course if s.first < seconds and (s.stuck or s.factor != 1 or s.error_ratio > 0)]
    about = k in recording.subjects
    if about and not wrong:
        # The policies are told of an incident, though nothing of it shows in what was recorded.
        wrong = [Stretch(recording.onset_second, recording.onset_second + 1)]
    for s in wrong:
        last = s is wrong[-1]
        end = min(s.end, seconds)
        kind = "stuck" if s.stuck else "fail_fast" if s.error_ratio > 0 else "slow"
        yield Fault(
            instance=k,
            kind=kind,
            onset_seconds=float(s.first),
            end_seconds=float(end),
            factor=s.factor,
            ratio=s.error_ratio if kind == "fail_fast" else 1.0,
            error_seconds=_error_seconds(recording, known, k, s) if kind == "fail_fast" else 0.002,
            detect_seconds=opened - s.first if about else None,
            resolve_seconds=float(np.clip(resolved - end, 0, 1e6)) if last else 0.0,
            mechanism=incident.mechanism or "unknown",
        )


def _error_seconds(recording: Recording, known: Usual, k: int, s: Stretch) -> float:
    """How fast an error is: errors are taken to be the fastest answers, and half of them are faster than the median of those."""
    inside = np.zeros(recording.seconds, dtype=bool)
    inside[s.first : s.end] = True
    (middle,) = recording.latencies.merged(inside, [k]).quantiles_seconds((s.error_ratio / 2,))
    found = middle - known.overhead_seconds if np.isfinite(middle) else _ERROR_SECONDS_MIN
    return float(np.clip(found, _ERROR_SECONDS_MIN, _ERROR_SECONDS_MAX))
