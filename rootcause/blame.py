"""Whose fault it is when instances call each other: who adds what the users suffer from, less what its own callees add to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Callees = Mapping[str, Sequence[str]]
"""Whom each subject calls."""

# What is left of a subject whose callees explain all that it adds: better than nothing, where those are not at fault after all.
_EXPLAINED_AWAY = 0.05


def reached(callees: Callees, symptom: str) -> list[str]:
    """The subject with the symptom and all that it calls, directly or not, nearest first. Faults travel from callee to caller."""
    found = [symptom]
    for subject in found:
        found += [callee for callee in callees.get(subject, ()) if callee not in found]
    return found


def blame(added: Mapping[str, float], sure: Mapping[str, float], callees: Callees, symptom: str) -> dict[str, float]:
    """For each subject that the symptom can come from, its share in [0, 1] of what was added in total; all 0 where nothing was.

    `added` is in one unit for all: seconds that the requests of a subject took longer than usual, all together, or requests that failed
    more than usual. A callee that is very slow but seldom called adds little; so a rarely used dependency does not outrank the service that
    all requests go through. `sure` in [0, 1] is how far beyond its usual range a subject is.
    """
    subjects = reached(callees, symptom)
    own = {}
    for subject in subjects:
        total = max(added.get(subject, 0.0), 0.0)
        passed_on = sum(max(added.get(callee, 0.0), 0.0) for callee in callees.get(subject, ()))
        own[subject] = max(total - passed_on, _EXPLAINED_AWAY * total) * min(max(sure.get(subject, 0.0), 0.0), 1.0)
    everything = sum(own.values())
    return {subject: share / everything if everything > 0 else 0.0 for subject, share in own.items()}
