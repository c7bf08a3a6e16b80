"""What became of a run: one line of the file of results."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from tests.e2e.load import Request
from tests.e2e.report import phase


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the parts of a run are."""

    known_seconds_max: float = 90.0
    """How long trimtab may get to know the fleet before the first request that counts; it takes until each instance has a score."""
    well_seconds: float = 10.0
    """Of requests before a fault befalls an instance."""
    notice_seconds: float = 20.0
    """What trimtab has to notice and to move weights, from neutral ones."""
    settled_seconds: float = 25.0
    """What counts beyond that."""


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What clients saw over a time. None: there was nothing to see."""

    requests: int
    mean_seconds: float | None
    p50_seconds: float | None
    p99_seconds: float | None
    """Latencies from the scheduled arrival, of good answers and of what was given up."""
    error_ratio: float | None
    goodput: float
    """Good answers a second within the scenario's limit."""
    lag_p99_seconds: float | None
    """How late the load generator itself was."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run."""

    scenario: str
    pair: int
    contestant: str
    seed: int
    plan: Plan
    began_unix_ns: int
    whole: Seen
    """From when it ails (from the first request, or from the fault) to the end."""
    settled: Seen
    """What is left of that after `notice_seconds`."""
    weights: dict[str, int] = {}
    """At the balancer at the end, by server."""


def seen(requests: Sequence[Request], start: float, end: float, slo_seconds: float) -> Seen:
    """Of the requests that were due from `start` to `end`, in monotonic seconds."""
    all_of_it = phase("", requests, start, end)
    good = sum(r.status == 200 and r.latency <= slo_seconds for r in requests if start <= r.arrival < end)
    return Seen(
        requests=all_of_it.requests,
        mean_seconds=_known(all_of_it.mean_seconds),
        p50_seconds=_known(all_of_it.p50_seconds),
        p99_seconds=_known(all_of_it.p99_seconds),
        error_ratio=_known(all_of_it.error_ratio),
        goodput=good / (end - start),
        lag_p99_seconds=_known(all_of_it.generator_lag_p99_seconds),
    )


def _known(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
