"""What users see of a fault, in one line, and since when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.detector import robust
from trimtab.detector.changepoint import change_point
from trimtab.detector.decide import ERRORS, TAIL, TYPICAL, Verdicts
from trimtab.detector.features import Readings
from trimtab.detector.history import Courses, History
from trimtab.detector.robust import Array

# How far before the opening the change is looked for, and what lies before it to compare with.
_SEARCH_SECONDS = 60.0
_BEFORE_SECONDS = 60.0
# Where less is worse.
_FALLING = frozenset({"workers_ready", "runtime_answers"})


def symptom(readings: Readings, verdicts: Verdicts, rows: Sequence[int]) -> str:
    """One line about an instance, or about several that are worse together: what the answers are now, and were before."""
    at = list(rows)
    if readings.dead[at].all():
        return "no worker is left to answer"
    if readings.silent[at].all():
        return "answers nothing: neither requests nor its own API"
    window = readings.matrix()[at]
    now = robust.median(window, 0)
    before, peers = robust.median(verdicts.expected[at], 0), robust.median(verdicts.peers[at], 0)
    if now[ERRORS] - np.nan_to_num(before[ERRORS]) >= 0.02:
        was = f" (before {before[ERRORS]:.0%})" if math.isfinite(before[ERRORS]) else ""
        return f"{now[ERRORS]:.0%} of answers are errors{was}"
    feature, name = (TAIL, "p95 latency") if math.isfinite(now[TAIL]) else (TYPICAL, "latency")
    if not math.isfinite(now[feature]):
        return "degraded"
    was = f"{_ms(before[feature])} → " if math.isfinite(before[feature]) else ""
    compared = f" (peers {_ms(peers[feature])})" if len(at) == 1 and math.isfinite(peers[feature]) else ""
    return f"{name} {was}{_ms(now[feature])}{compared}"


def onset(
    history: History, instances: Sequence[str], peers: Sequence[str], signals: Sequence[str], now_unix_ns: int
) -> int:
    """When the symptom of these instances began, Unix nanoseconds, by the change points of `signals`; at the latest now.

    What the healthy peers did is taken off first: a burst that all of them had is not the beginning.
    """
    sick = [courses for courses in map(history.courses, instances) if courses is not None]
    well = [courses for courses in map(history.courses, peers) if courses is not None]
    if not sick:
        return now_unix_ns
    times = sick[0].times_ns
    step_ns = int(times[1] - times[0])
    search = max(10, round(_SEARCH_SECONDS * 1e9 / step_ns))
    keep = min(len(times), search + max(10, round(_BEFORE_SECONDS * 1e9 / step_ns)))
    found = []
    for signal in signals:
        course = _level(sick, times, signal)[-keep:]
        if well:
            reference = _level(well, times, signal)[-keep:]
            course = course - np.where(np.isnan(reference), robust.median(reference), reference)
        split = _rise(-course if signal in _FALLING else course, max(1, keep - search))
        if split is not None:
            found.append(int(times[-keep:][split]))
    return min([*found, now_unix_ns])


def _rise(course: Array, first: int) -> int | None:
    """The index, from `first` on, at which the course rose to what it is at its end; None where that is not known.

    Where it fell, an earlier trouble was over, and what came since is still to be found behind it.
    """
    begin = 0
    while (split := change_point(course[begin:], max(1, first - begin), len(course), side_min=2)) is not None:
        split += begin
        before, after = robust.median(course[begin:split]), robust.median(course[split:])
        if after > before:
            return split
        begin = split
    return None


def _level(parts: Sequence[Courses], times: NDArray[np.int64], signal: str) -> Array:
    """float32 [time]: the median course of a signal, of latency its logarithm."""
    alike = [p.course(signal) for p in parts if np.array_equal(p.times_ns, times)]
    course = robust.median(np.stack(alike or [np.full(len(times), np.nan, dtype=np.float32)]), 0)
    return np.log(course) if signal == "request_latency" else course


def _ms(log_seconds: float) -> str:
    milliseconds = math.exp(log_seconds) * 1e3
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
