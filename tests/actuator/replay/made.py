"""Recordings made by hand: a fleet of known speed, load and fault, as the store would tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.recording import Incident, Latencies, Recording
from trimtab.agent.sketch.loglinear import of_seconds
from trimtab.collector.packed import SketchList

SECOND_NS = 1_000_000_000
ORIGIN_NS = 1_700_000_000 * SECOND_NS
ONSET = 60


def incident(**changes: Any) -> Incident:
    """Of the first instance, told 8 s after its onset."""
    onset_ns = ORIGIN_NS + ONSET * SECOND_NS
    known: dict[str, Any] = {
        "id": "i-1", "subject": "n/0", "node": "n", "model": "m", "mechanism": "CPU contention",
        "since_unix_ns": onset_ns, "opened_unix_ns": onset_ns + 8 * SECOND_NS, "resolved_unix_ns": None,
    }  # fmt: skip
    return Incident(**known | changes)


def packed(values_seconds: Sequence[NDArray[np.float64]]) -> SketchList:
    """The sketch of each."""
    counts = [of_seconds(values).counts for values in values_seconds]
    cells = [np.flatnonzero(c) for c in counts]
    offsets = np.concatenate(([0], np.cumsum([len(c) for c in cells]))).astype(np.int64)
    flat = [c[b] for c, b in zip(counts, cells, strict=True)]
    return SketchList(
        offsets,
        np.concatenate([*cells, np.empty(0)]).astype(np.uint16),
        np.concatenate([*flat, np.empty(0)]).astype(np.uint32),
        np.ones(len(counts)),
    )


def recording(
    seconds: int = 100,
    rates: Sequence[float] = (20.0, 20.0, 20.0),
    service_seconds: Sequence[float] = (0.02, 0.02, 0.02),
    factor: Sequence[float] | None = None,
    told: bool = True,
    seed: int = 0,
    **changes: Any,
) -> Recording:
    """Instances at low load; `factor` [seconds] is by how much the first one is slower in each second."""
    rng = np.random.default_rng(seed)
    n = len(rates)
    slow = np.ones((seconds, n))
    slow[:, 0] = 1 if factor is None else factor
    requests = rng.poisson(np.broadcast_to(rates, (seconds, n))).astype(np.float64)
    # Whoever serves one at a time has waiting customers: M/M/1's mean time in the system.
    service = slow * service_seconds
    latency = service / (1 - np.minimum(0.9, requests * service))
    known = np.where(requests > 0, latency, np.nan)
    unknown = np.full(n, np.nan)
    owners = np.argwhere(requests > 0)
    drawn = [rng.exponential(latency[s, i], int(requests[s, i])) for s, i in owners.tolist()]
    made = Recording(
        incident=incident(),
        origin_unix_ns=ORIGIN_NS,
        onset_second=ONSET,
        instances=tuple(f"n/{k}" for k in range(n)),
        subjects=(0,),
        requests=requests,
        aborted=np.zeros((seconds, n)),
        errors=np.zeros((seconds, n)),
        latency_seconds=known,
        service_seconds=np.where(requests > 0, service, np.nan) if told else np.full((seconds, n), np.nan),
        queue_seconds=np.where(requests > 0, latency - service, np.nan) if told else np.full((seconds, n), np.nan),
        in_flight=np.zeros((seconds, n)),
        queue=np.zeros((seconds, n)),
        workers=np.ones((seconds, n)),
        queue_max=unknown,
        batch_max=unknown,
        batch_delay_seconds=unknown,
        latencies=Latencies(owners[:, 0], owners[:, 1], packed(drawn)),
        weights=np.ones((seconds, n)),
        policy="neutral",
    )
    return replace(made, **changes)
