"""What a person can check: a signal before and after, its peers, when it changed, and its course."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire import telemetry_pb2 as telemetry
from trimtab.detector import robust
from trimtab.detector.changepoint import change_point
from trimtab.rootcause.movement import Movement, Movements

_COURSE_SECONDS = 30.0
_SEARCH_SECONDS = 20.0


def evidence(
    movements: Movements, movement: Movement, sparse: bool, scale: float, peers: Sequence[Movement]
) -> pb.Evidence:
    """The movement as evidence. `sparse` signals are told by their means; `scale` is one robust standard deviation."""
    before, after = levels(movement, sparse)
    of_peers = np.asarray([levels(p, sparse)[1] for p in peers], dtype=np.float32)
    courses, since = movements.courses, movements.since_unix_ns
    step_ns = int(courses.times_ns[1] - courses.times_ns[0])
    course = courses.course(movement.signal)
    span = max(round(_COURSE_SECONDS * 1e9 / step_ns), 8)
    onset = int(np.searchsorted(courses.times_ns, since))
    # The onset is in the middle; what is still to come, or too long ago, is unknown.
    around = np.pad(course, span, constant_values=np.nan)[onset : onset + 2 * span]
    search = max(round(_SEARCH_SECONDS * 1e9 / step_ns), 3)
    split = change_point(course, max(1, onset - search), onset + search)
    return pb.Evidence(
        subject=movement.subject,
        signal=movement.signal,
        unit=movement.unit,
        before=before,
        after=after,
        peers=float(robust.median(of_peers)) if len(of_peers) else math.nan,
        deviation=(after - before) / scale if scale > 0 else math.nan,
        changed_unix_ns=int(courses.times_ns[split]) if split is not None else since,
        course=around.tolist(),
    )


def of_event(event: telemetry.Event) -> pb.Evidence:
    """An event that speaks for itself."""
    nan = math.nan
    told = f"{event.name}: {event.detail}" if event.detail else event.name
    return pb.Evidence(
        subject=event.subject,
        signal=event.name,
        before=nan,
        after=event.value,
        peers=nan,
        deviation=nan,
        changed_unix_ns=event.unix_ns,
        event=told,
    )


def levels(movement: Movement, sparse: bool) -> tuple[float, float]:
    """Before and after, by the measure that fits the signal."""
    if sparse:
        return movement.before_mean, movement.after_mean
    return movement.before, movement.after
