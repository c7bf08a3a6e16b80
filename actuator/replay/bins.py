"""What some seconds of one instance tell: how much slower it was than usual, and how often it failed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.scenario import Instance
from trimtab.actuator.replay.recording import Recording
from trimtab.actuator.replay.usual import BIN_SECONDS, Usual, service_of

REQUESTS_MIN = 8
"""A bin is made longer until it has so many."""
QUEUE_MAX = Instance().queue_max
"""Where the runtime does not tell."""
_FULL = 0.9
"""A queue that holds this share of its limit at the end of a second has turned requests away in it."""
_FACTORS = (0.01, 1e4)
"""That the simulator takes."""
_QUEUED_MAX = 0.5
_WAITING_MIN = 3.0
"""Requests in the queue at the end of a second of which it is sure that a worker had no pause in it."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """The seconds [first, end) of one instance."""

    first: int
    end: int
    factor: float = 1.0
    """By how much longer than usual it works on a request; above 0."""
    error_ratio: float = 0.0
    stuck: bool = False
    requests: float = 0.0
    """It rests on so many."""
    unseen_seconds: int = 0
    """In which none was answered: it is taken to have stayed as it was."""


def bins(recording: Recording, instance: int, first: int, end: int) -> list[slice]:
    """Bins of enough requests; the last may have fewer."""
    answered = np.nan_to_num(recording.requests[:, instance])
    out, begin = [], first
    for stop in range(first + BIN_SECONDS, end, BIN_SECONDS):
        if answered[begin:stop].sum() >= REQUESTS_MIN:
            out.append(slice(begin, stop))
            begin = stop
    return [*out, slice(begin, end)]


def judged(recording: Recording, usual: Usual, instance: int, clean: NDArray[np.bool_], where: slice) -> Stretch:
    """A stretch of the seconds `where`; of those that are not `clean`, bool [seconds], the service time is not looked at."""
    inside = np.zeros(recording.seconds, dtype=bool)
    inside[where] = clean[where]
    requests = float(np.nansum(recording.requests[where, instance]))
    seen = Stretch(where.start, where.stop, requests=requests)
    ratio = _errors(recording, instance, where, requests)
    if ratio > 0:
        return replace(seen, error_ratio=ratio)
    told, workers = bool(usual.told[instance]), float(usual.workers[instance])
    seconds, count = service_of(recording, inside, instance, told, workers)
    base = usual.service_seconds[instance]
    if count == 0 or not math.isfinite(base):
        return seen
    full = _without_pause(recording, instance, where, workers)
    if math.isfinite(full):
        factor = full / base
    else:
        seconds += _elsewhere(recording, usual, instance, inside, seconds)
        factor = seconds / base * _fewer_workers(recording, instance, where, workers)
    return replace(seen, factor=float(min(max(factor, _FACTORS[0]), _FACTORS[1])), requests=count)


def _errors(recording: Recording, instance: int, where: slice, requests: float) -> float:
    """The share of errors; 0 where there are next to none, or where a full queue turned requests away: the simulator does that itself."""
    errors = float(np.nansum(recording.errors[where, instance]))
    most = recording.queue_max[instance]
    full = recording.queue[where, instance] >= _FULL * (most if math.isfinite(most) else QUEUE_MAX)
    if requests <= 0 or full.any():
        return 0.0
    ratio = min(1.0, errors / requests)
    return ratio if errors >= 2 else 0.0


def _without_pause(recording: Recording, instance: int, where: slice, workers: float) -> float:
    """Seconds that a worker spent on a request, its own pauses between two included; NaN unless requests waited all the time.

    A worker is never idle then, and what the runtime tells of a prediction leaves out what comes before and after it.
    """
    waiting = recording.queue[where, instance]
    good = np.nansum(recording.requests[where, instance]) - np.nansum(recording.errors[where, instance])
    return workers * len(waiting) / float(good) if good > 0 and (waiting >= _WAITING_MIN).all() else math.nan


def _elsewhere(
    recording: Recording, usual: Usual, instance: int, inside: NDArray[np.bool_], service_seconds: float
) -> float:
    """Seconds that requests spent in more than before outside queue and service, as in a slow network; they count as service.

    Where the queue makes most of the latency, what is left of it is noise.
    """
    values = np.stack(
        [m[:, instance] for m in (recording.latency_seconds, recording.queue_seconds, recording.requests)]
    )
    latency, queue, weight = values[:, inside & np.isfinite(values).all(axis=0)]
    if not usual.told[instance] or not weight.sum() > 0:
        return 0.0
    whole, waited = (float(np.average(v, weights=weight)) for v in (latency, queue))
    return max(0.0, whole - waited - service_seconds - usual.overhead_seconds) if waited < _QUEUED_MAX * whole else 0.0


def _fewer_workers(recording: Recording, instance: int, where: slice, workers: float) -> float:
    """How much of its capacity is gone with its workers, as a factor of its service time."""
    left = recording.workers[where, instance]
    if not np.isfinite(left).any():
        return 1.0
    return max(1.0, workers / max(1.0, float(np.nanmean(left))))
