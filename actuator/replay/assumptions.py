"""What is not known of an incident, and what stands for it, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.bins import QUEUE_MAX, Stretch
from trimtab.actuator.replay.recording import Recording
from trimtab.actuator.replay.usual import Usual

_NAMED_MAX = 3


def assumptions(
    recording: Recording, known: Usual, courses: Sequence[Sequence[Stretch]], gaps: int, cut_seconds: int
) -> Iterator[str]:
    """One line each. `courses` are the stretches of each instance; `gaps`: seconds of which some instance told nothing."""
    yield "users come as they came, however they are served"
    yield "a request takes as long on a busy instance as on an idle one, but for the queue; what it waited for elsewhere counts as service"
    yield from _of_before(recording, known)
    yield from _of_the_incident(recording, courses)
    if gaps:
        yield f"{gaps} s of which some instance told nothing are like those around them"
    if cut_seconds:
        yield f"the last {cut_seconds} s are left out: they are too many requests"
    if not recording.policy:
        yield "no routing decision is stored of that time: as it was, all weights were neutral"


def _of_before(recording: Recording, known: Usual) -> Iterator[str]:
    names = recording.instances
    if not known.told.all():
        some = _named(names, ~known.told)
        yield f"service time of {some}: the latency shared among those in flight, for the runtime does not tell it"
    unseen = ~np.isfinite(known.service_seconds)
    if unseen.any():
        yield f"{_named(names, unseen)}: as fast as the mean of the others, for no request was seen before the onset"
    left_out = recording.onset_second - int(known.seconds.sum())
    if left_out > recording.onset_second // 4:
        yield f"{left_out} of {recording.onset_second} s before the onset were unlike the others, and are no part of what is usual"
    untold = np.asarray(np.isnan(recording.workers).all(axis=0))
    if untold.any():
        yield f"workers of {_named(names, untold)}: 1 each, for the runtime does not tell"
    if not np.isfinite(recording.queue_max).all():
        yield f"queues hold {QUEUE_MAX} requests where the runtime does not tell (TorchServe's default)"


def _of_the_incident(recording: Recording, courses: Sequence[Sequence[Stretch]]) -> Iterator[str]:
    if any(s.error_ratio > 0 for course in courses for s in course):
        yield "errors are the fastest answers of their time; good answers beside them take as long as before"
    for name, course in zip(recording.instances, courses, strict=True):
        unseen_seconds = sum(s.unseen_seconds for s in course)
        if unseen_seconds:
            yield f"{name} answered nobody in {unseen_seconds} s: it is taken to have stayed as it was seen last"
    if recording.incident.mechanism.startswith(("GPU", "ECC", "XID")):
        yield "what the GPU announced of itself is not played: policies know of it when the incident was told"


def _named(names: Sequence[str], which: NDArray[np.bool_]) -> str:
    some = [names[k] for k in np.flatnonzero(which).tolist()]
    more = len(some) - _NAMED_MAX
    return ", ".join(some[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
