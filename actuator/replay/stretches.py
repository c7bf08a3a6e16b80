"""What went wrong with an instance since the onset, in stretches of time within which it stayed alike."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.replay.bins import Stretch, bins, judged
from trimtab.actuator.replay.recording import Recording
from trimtab.actuator.replay.usual import Usual

SLOWER_MIN = 1.25
"""A service that changed by less is as it was; noise widens that: a mean of n requests is known to about cv / sqrt(n)."""
ALIKE = 1.3
"""Neighbours whose factors differ by less are one stretch."""
DEVIATIONS = 2.5
"""Standard errors that are still chance."""
ERRORS_MIN = 0.02
ERRORS_ALIKE = 0.1
STUCK_SECONDS = 3
"""Requests under way and not one answered for so long: it serves nothing."""
_EXPECTED_MIN = 8.0
"""So many requests should have come by its share of the traffic, and none was answered: the same."""
_BEGUN_SECONDS = 2
"""So long after it was stuck, answers had begun before."""


def stretches(recording: Recording, usual: Usual, instance: int) -> list[Stretch]:
    """In their order, without gaps, from the onset to the end, or from when it got stuck, if that was before; factor 1: nothing changed."""
    stuck = _stuck(recording, instance)
    found: list[Stretch] = []
    begin = min(recording.onset_second, int(np.flatnonzero(stuck)[0]) if stuck.any() else recording.seconds)
    edges = np.flatnonzero(np.diff(stuck[begin:].astype(np.int8))) + 1 + begin
    marks = [begin, *edges.tolist(), recording.seconds]
    clean = ~_after(stuck)
    for first, end in pairwise(marks):
        if stuck[first]:
            found.append(Stretch(first, end, stuck=True))
        else:
            found += [judged(recording, usual, instance, clean, b) for b in bins(recording, instance, first, end)]
    joined = _joined(_carried(found), usual.cv)
    return [_settled(one, usual.cv) for one in joined]


def _stuck(recording: Recording, instance: int) -> NDArray[np.bool_]:
    """bool [seconds]: seconds in which it answered nothing, of runs in which it should have."""
    out = np.zeros(recording.seconds, dtype=bool)
    silent = recording.requests[:, instance] == 0
    busy = np.nan_to_num(recording.in_flight[:, instance]) > 0
    share = recording.weights[:, instance] / recording.weights.sum(axis=1).clip(min=1e-9)
    expected = np.nansum(recording.requests, axis=1) * share
    edges = np.flatnonzero(np.diff(np.concatenate(([0], silent.astype(np.int8), [0])))).reshape(-1, 2)
    for first, end in edges.tolist():
        waited = end - first >= STUCK_SECONDS and bool(busy[first:end].all())
        # The onset is known to some seconds; what was over by then is another matter.
        here = end > recording.onset_second
        out[first:end] = here and (waited or expected[first:end].sum() >= _EXPECTED_MIN)
    return out


def _after(stuck: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """bool [seconds]: soon after it was stuck, when what it works on had begun before."""
    out = np.zeros(len(stuck), dtype=bool)
    for late in range(1, _BEGUN_SECONDS + 1):
        out[late:] |= stuck[:-late]
    return out


def _carried(found: list[Stretch]) -> list[Stretch]:
    """Of whom nothing was seen, as while it was drained, it is taken that it stayed as it was seen last; before that, as usual."""
    out: list[Stretch] = []
    for one in found:
        if one.requests == 0 and not one.stuck:
            last = out[-1] if out else one
            out.append(replace(last, first=one.first, end=one.end, requests=0.0, unseen_seconds=one.end - one.first))
        else:
            out.append(one)
    return out


def _joined(found: list[Stretch], cv: float) -> list[Stretch]:
    """Neighbours that are alike, as far as one can tell from so few requests, are one."""
    out: list[Stretch] = []
    for one in found:
        last = out[-1] if out else None
        if last is None or not _alike(last, one, cv):
            out.append(one)
            continue
        total = last.requests + one.requests
        share = one.requests / total if total else 0.0
        out[-1] = replace(
            last,
            end=one.end,
            factor=last.factor + share * (one.factor - last.factor),
            error_ratio=last.error_ratio + share * (one.error_ratio - last.error_ratio),
            requests=total,
            unseen_seconds=last.unseen_seconds + one.unseen_seconds,
        )
    return out


def _alike(a: Stretch, b: Stretch, cv: float) -> bool:
    if a.stuck or b.stuck:
        return a.stuck and b.stuck
    apart = math.sqrt(1 / max(a.requests, 1) + 1 / max(b.requests, 1))
    both = (a.error_ratio * a.requests + b.error_ratio * b.requests) / max(1.0, a.requests + b.requests)
    by_chance = DEVIATIONS * math.sqrt(both * (1 - both)) * apart
    if abs(a.error_ratio - b.error_ratio) > max(ERRORS_ALIKE, by_chance):
        return False
    ratio = abs(math.log(a.factor / b.factor))
    return ratio <= max(math.log(ALIKE), DEVIATIONS * cv * apart)


def _settled(one: Stretch, cv: float) -> Stretch:
    """As usual, where it is not known to be otherwise."""
    least = max(SLOWER_MIN, 1 + DEVIATIONS * cv / math.sqrt(max(one.requests, 1)))
    usual = 1 / least <= one.factor <= least
    failing = one.error_ratio >= ERRORS_MIN
    return replace(one, factor=1.0 if usual else one.factor, error_ratio=one.error_ratio if failing else 0.0)
