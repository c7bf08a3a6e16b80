"""What was usual before the onset: how long each instance works on a request, and how that varies from request to request."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab import TrimtabError
from trimtab.actuator.replay.recording import Recording
from trimtab.actuator.state import Vector

BIN_SECONDS = 5
REQUESTS_MIN = 100
"""Before the onset, of all instances together: fewer tell no distribution."""
UNLIKE = 2.0
"""Bins whose latency is so many times the median's, or a part of it, are no part of what is usual."""
_POINTS = 1001
_CV_MIN = 0.05


@dataclass(frozen=True, slots=True)
class Usual:
    """The fleet before the onset."""

    seconds: NDArray[np.bool_]
    """bool [seconds]: which of the recording's seconds it rests on; none at or after the onset."""
    told: NDArray[np.bool_]
    """bool [instances]: whether the runtime tells the service time."""
    workers: Vector
    """float64 [instances], whole and at least 1."""
    service_seconds: Vector
    """float64 [instances]; NaN for whom nothing was seen."""
    overhead_seconds: float
    """What users wait for beside queue and service."""
    quantiles: Vector
    """Service times at evenly spaced probabilities from 0 to 1, of mean 1."""
    cv: float
    """Standard deviation over mean of these."""

    @property
    def mean_service_seconds(self) -> float:
        """Of all instances alike."""
        return float(np.nanmean(self.service_seconds))


def usual(recording: Recording) -> Usual:
    """Raises TrimtabError when too little is known."""
    seconds = _like_each_other(recording)
    requests = np.nansum(np.where(seconds[:, None], recording.requests, 0))
    if requests < REQUESTS_MIN:
        where = f"incident {recording.incident.id}: {requests:.0f} requests in the {recording.onset_second} s before its onset"
        raise TrimtabError(f"{where}; it takes {REQUESTS_MIN} to know what was usual")
    told = np.asarray([_tells(recording, seconds, k) for k in range(len(recording.instances))])
    workers = _workers(recording, seconds)
    service = np.asarray(
        [service_of(recording, seconds, k, told[k], workers[k])[0] for k in range(len(recording.instances))]
    )
    if not np.isfinite(service).any():
        raise TrimtabError(f"incident {recording.incident.id}: no latency is known before its onset (docs/ebpf.md)")
    overhead = _overhead(recording, seconds, told)
    shape, cv = _shape(recording, seconds, service, workers, overhead)
    return Usual(seconds, told, workers, service, overhead, shape, cv)


def service_of(
    recording: Recording, seconds: NDArray[np.bool_], instance: int, told: bool, workers: float
) -> tuple[float, float]:
    """Seconds that an instance works on a request, and on how many requests that rests; NaN and 0 where nothing is known.

    Where the runtime does not tell, requests share the latency T with those that they find there, N on average by Little's law: with w
    workers they wait for the N - w + 1 that find no worker, so that T = S (1 + max(0, N - w + 1) / w).
    """
    requests = recording.requests[:, instance]
    values = recording.service_seconds[:, instance] if told else recording.latency_seconds[:, instance]
    here = seconds & (values > 0) & (requests > 0)
    count = float(requests[here].sum())
    if count == 0:
        return np.nan, 0.0
    mean = float((requests[here] * values[here]).sum()) / count
    if told:
        return mean, count
    present = mean * count / np.count_nonzero(seconds & np.isfinite(requests))
    return mean / (1 + max(0.0, present - workers + 1) / workers), count


def _like_each_other(recording: Recording) -> NDArray[np.bool_]:
    """Without what an earlier fault did."""
    out = np.zeros(recording.seconds, dtype=bool)
    rate = np.nan_to_num(recording.requests)
    spent = np.nansum(rate * np.nan_to_num(recording.latency_seconds), axis=1)
    total = np.where(np.isfinite(recording.latency_seconds), rate, 0).sum(axis=1)
    # The onset is known to a second or two.
    edges = range(recording.onset_second - 2, BIN_SECONDS - 1, -BIN_SECONDS)
    bins = [slice(end - BIN_SECONDS, end) for end in edges]
    means = np.asarray([spent[b].sum() / total[b].sum() if total[b].sum() > 0 else np.nan for b in bins])
    if not np.isfinite(means).any():
        return out
    ratio = means / np.nanmedian(means)
    for where, r in zip(bins, ratio.tolist(), strict=True):
        out[where] = 1 / UNLIKE <= r <= UNLIKE
    return out


def _tells(recording: Recording, seconds: NDArray[np.bool_], instance: int) -> bool:
    """Whether the runtime tells the service time of most requests."""
    requests = np.where(seconds, np.nan_to_num(recording.requests[:, instance]), 0)
    known = np.isfinite(recording.service_seconds[:, instance])
    return bool(requests[known].sum() > 0.5 * requests.sum() > 0)


def _workers(recording: Recording, seconds: NDArray[np.bool_]) -> Vector:
    told = recording.workers[seconds]
    known = np.isfinite(told).any(axis=0) if len(told) else np.zeros(len(recording.instances), dtype=bool)
    out = np.ones(len(recording.instances))
    out[known] = np.maximum(1, np.rint(np.nanmedian(told[:, known], axis=0)))
    return out


def _overhead(recording: Recording, seconds: NDArray[np.bool_], told: NDArray[np.bool_]) -> float:
    """What is left of the latency without queue and service, where the runtime tells both."""
    values = recording.latency_seconds - recording.service_seconds - recording.queue_seconds
    weight = np.where(seconds[:, None] & told & np.isfinite(values), np.nan_to_num(recording.requests), 0)
    total = weight.sum()
    return max(0.0, float((weight * np.nan_to_num(values)).sum() / total)) if total > 0 else 0.0


def _shape(
    recording: Recording, seconds: NDArray[np.bool_], service: Vector, workers: Vector, overhead: float
) -> tuple[Vector, float]:
    """Quantiles of mean 1, and their coefficient of variation: those of the latency, less the spread that waiting adds."""
    grid = np.linspace(0, 1, _POINTS)
    mean, total, variance = np.zeros(_POINTS), 0.0, 0.0
    for k in np.flatnonzero(np.isfinite(service)).tolist():
        sketch = recording.latencies.merged(seconds, [k])
        if not sketch.sampled:
            continue
        table = np.maximum(np.asarray(sketch.quantiles_seconds(tuple(grid.tolist()))) - overhead, 1e-6)
        latency = _mean(table)
        # Instances of different speed are made alike, then averaged by their requests.
        mean += sketch.count * table / latency
        total += sketch.count
        rate = sketch.count / np.count_nonzero(seconds)
        variance += sketch.count * _waiting(latency, service[k], rate, workers[k])
    if total == 0:
        return np.ones(2), 0.0
    table = mean / total
    spread = _variance(table) - variance / total
    # The latency's mean is 1 here, the service's is less.
    ratio = min(1.0, float(np.nanmean(service)) / _latency(recording, seconds, overhead))
    wanted = max(_CV_MIN, np.sqrt(max(0.0, spread)) / ratio)
    return _sharpened(table, wanted)


def _latency(recording: Recording, seconds: NDArray[np.bool_], overhead: float) -> float:
    merged = recording.latencies.merged(seconds, range(len(recording.instances)))
    return max(1e-6, merged.mean_seconds - overhead)


def _waiting(latency: float, service: float, rate: float, workers: float) -> float:
    """Variance of the wait over the squared latency: none with probability 1 - p, else exponential, where p is how busy workers are."""
    wait, busy = max(0.0, latency - service), min(max(rate * service / workers, 0.05), 1.0)
    return (2 * wait**2 / busy - wait**2) / latency**2


def _sharpened(table: Vector, cv: float) -> tuple[Vector, float]:
    """The table to a power of at most 1, of mean 1, so that its coefficient of variation is `cv` or what it has, if that is less."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        powered = table**middle
        low, high = (middle, high) if np.sqrt(_variance(powered)) / _mean(powered) < cv else (low, middle)
    found = table**high
    found = found / _mean(found)
    return found, float(np.sqrt(_variance(found)))


def _mean(table: Vector) -> float:
    """Over straight lines between the points, as the simulator draws."""
    return float((table[1:] + table[:-1]).mean() / 2)


def _variance(table: Vector) -> float:
    a, b = table[1:], table[:-1]
    return max(0.0, float(((a * a + a * b + b * b) / 3).mean()) - _mean(table) ** 2)
