"""Whether the cause of an incident is still there, though the instance may look well because no traffic reaches it."""

from __future__ import annotations

import math

import numpy as np

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import Courses, History, request_rates

_LEVEL_SECONDS = 10.0
# Rates of what happens now and then, and what only a trickle of requests can show, need longer.
_RATE_SECONDS = 30.0


def in_force(history: History, cause: pb.Cause) -> bool | None:
    """Whether the cause's leading signal is nearer to what it was after the onset than before; None where that is not known."""
    evidence = cause.evidence[0] if cause.evidence else None
    if cause.mechanism == "unknown" or evidence is None or evidence.event or not math.isfinite(evidence.after):
        return False
    courses = history.courses(evidence.subject)
    now = _now(courses, evidence.signal) if courses is not None else math.nan
    if not math.isfinite(now):
        return None
    if is_total(evidence.signal):
        return now > 0
    before = evidence.before if math.isfinite(evidence.before) else 0.0
    return abs(now - evidence.after) < abs(now - before)


def is_total(signal: str) -> bool:
    """Whether the signal only ever grows: what counts is whether it still does."""
    return signal in {"process_restarts", "ecc_uncorrected_total"}


def _now(courses: Courses, signal: str) -> float:
    step = (courses.times_ns[1] - courses.times_ns[0]) / 1e9
    seconds = _RATE_SECONDS if signal.endswith(("_per_second", "_ratio")) or is_total(signal) else _LEVEL_SECONDS
    last = slice(-max(1, round(seconds / step)), None)
    if signal == "error_ratio":
        errors, requests = courses.course("errors_per_second")[last], request_rates(courses)[last]
        return float(np.nansum(errors) / np.nansum(requests)) if np.nansum(requests) > 0 else math.nan
    recent = courses.course(signal)[last]
    recent = recent[~np.isnan(recent)]
    if not len(recent):
        return math.nan
    return float(np.ptp(recent)) if is_total(signal) else float(recent.mean())
