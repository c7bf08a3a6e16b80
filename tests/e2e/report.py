"""The demo's results: what clients saw in each phase, and whether trimtab did what it is for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tests.e2e.faults import Fault
from tests.e2e.load import BROKEN, TIMED_OUT, Request
from trimtab.agent.wire import query_pb2 as pb

BASELINE, FAULT, TRIMTAB, SETTLED = (
    "before the fault",
    "fault, neutral weights",
    "fault, trimtab",
    "fault, trimtab, settled",
)


@dataclass(frozen=True, slots=True)
class Phase:
    """What clients saw of the requests that were due within a time. NaN where there were none."""

    name: str
    seconds: float
    requests: int
    throughput: float
    """Good answers a second."""
    error_ratio: float
    """Share of requests with an error, a broken connection or no answer in time."""
    mean_seconds: float
    p50_seconds: float
    p95_seconds: float
    p99_seconds: float
    """Latencies of the good answers and of the requests that were given up; the latter waited at least so long."""
    generator_lag_p99_seconds: float
    """How late the load generator itself was."""


def phase(name: str, requests: Sequence[Request], start: float, end: float) -> Phase:
    """The phase from `start` to `end`, in monotonic seconds."""
    due = [r for r in requests if start <= r.arrival < end]
    good = sum(r.status == 200 for r in due)
    latencies = np.asarray([r.latency for r in due if r.status in {200, TIMED_OUT}])
    p50, p95, p99 = np.quantile(latencies, (0.5, 0.95, 0.99)) if len(latencies) else (math.nan,) * 3
    return Phase(
        name=name,
        seconds=end - start,
        requests=len(due),
        throughput=good / (end - start),
        error_ratio=1 - good / len(due) if due else math.nan,
        mean_seconds=float(latencies.mean()) if len(latencies) else math.nan,
        p50_seconds=float(p50),
        p95_seconds=float(p95),
        p99_seconds=float(p99),
        generator_lag_p99_seconds=float(np.quantile([r.lag for r in due], 0.99)) if due else math.nan,
    )


def statuses(requests: Sequence[Request]) -> dict[str, int]:
    """How many requests ended how."""
    words = {TIMED_OUT: "timed out", BROKEN: "connection broken"}
    names = [words.get(r.status, str(r.status)) for r in requests]
    return {name: names.count(name) for name in sorted(set(names))}


def named(incidents: Sequence[pb.Incident], subject: str) -> pb.Incident | None:
    """The first incident that names `subject`."""
    return min((i for i in incidents if i.subject == subject), key=lambda i: i.opened_unix_ns, default=None)


def failures(
    fault: Fault, subject: str, incidents: Sequence[pb.Incident], onset_unix_ns: int, phases: dict[str, Phase]
) -> list[str]:
    """What trimtab did not do as it should, one line each; empty: all is well.

    `onset_unix_ns` is when the fault began, `subject` the instance that has it.
    """
    found = [
        f"{i.id} named {i.subject or 'nobody'}, but the fault is at {subject}"
        for i in incidents
        if i.subject != subject
    ]
    incident = named(incidents, subject)
    if incident is None:
        found.append(f"no incident named {subject}")
    else:
        delay = (incident.opened_unix_ns - onset_unix_ns) / 1e9
        if delay < 0:
            found.append(f"{incident.id} was opened {-delay:.1f} s before the fault")
        if delay > phases[FAULT].seconds:
            found.append(f"{incident.id} was opened {delay:.1f} s after the fault, too late to act on")
        mechanism = incident.causes[0].mechanism if incident.causes else "no cause"
        if mechanism not in fault.mechanisms:
            found.append(f"{incident.id} says {mechanism!r}, but it is {' or '.join(map(repr, fault.mechanisms))}")
    without, with_trimtab = (getattr(phases[name], fault.harm) for name in (FAULT, SETTLED))
    if not with_trimtab < without:
        found.append(f"trimtab did not improve {fault.harm}: {without:.3f} without, {with_trimtab:.3f} with it")
    return found
