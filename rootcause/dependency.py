"""Slow dependencies: an instance suffers because another one does that it calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.quantity import quantity
from trimtab.rootcause.blame import Callees, blame
from trimtab.rootcause.case import Case
from trimtab.rootcause.signatures import ANSWERS, DEPENDENCY_REMEDY, DEVIATIONS_MIN, ERROR_RATIO, LATENCY, Sign

MECHANISM = "slow dependency"
REACHED_MAX = 128
"""Instances that one calls, directly or not, beyond which no more are looked at."""
CALLERS_MAX = 64
"""Of the callers of one instance so many are looked at, and taken for all of them."""
EXPLAINED_MIN = 0.5
"""The share of what an instance suffers from that its callees must add."""
_CONFIDENCE = 0.9
_LISTED_MIN = 0.1
_TOLD_MAX = 2

Shares = Mapping[str, float]


def blamed(case: Case) -> list[str]:
    """See `trimtab.detector.explain.Explainer`."""
    found = _explained(case)
    return _worst_first(case, found[1]) if found else []


def slow_dependency(case: Case) -> pb.Cause | None:
    """The cause, where those that it calls add most of what it suffers from."""
    found = _explained(case)
    if found is None:
        return None
    sign, shares = found
    worst, *others = _worst_first(case, shares)
    how = f"which {case.instance} calls"
    if worst not in case.topology.callees[case.instance]:
        how = f"which is called by those that {case.instance} calls"
    also = f"; so did {len(others)} other{'s' * (len(others) > 1)} that it calls" if others else ""
    known = [_evidence(case, subject, ANSWERS if _hangs(case, subject) else sign) for subject in (worst, *others)]
    evidence = [each for each in [*known[: _TOLD_MAX + 1], _evidence(case, case.instance, sign)] if each is not None]
    return pb.Cause(
        subject=worst,
        mechanism=MECHANISM,
        confidence=_CONFIDENCE * (1 - shares[case.instance]),
        summary=f"{worst}, {how}, {_change(evidence[0])}{also}",
        remedy=DEPENDENCY_REMEDY,
        evidence=evidence,
    )


def with_callers(cases: Sequence[Case], cause: pb.Cause) -> None:
    """Let the cause tell how many of those that call these instances got worse with them."""
    members = {case.instance for case in cases}
    callers = sorted({c for case in cases for c in case.topology.callers.get(case.instance, ())} - members)
    hit = []
    for caller in callers[:CALLERS_MAX] if cases else ():
        sign = next((s for s in (LATENCY, ERROR_RATIO) if _moved(cases[0], caller, s)), None)
        if sign is not None and (told := _evidence(cases[0], caller, sign)) is not None:
            hit.append(told)
    if hit:
        looked_at = min(len(callers), CALLERS_MAX)
        cause.summary += f"; {len(hit)} of {looked_at} that call it got worse with it"
        cause.evidence.extend(hit[:_TOLD_MAX])


def _explained(case: Case) -> tuple[Sign, Shares] | None:
    """The symptom that the callees explain best, and the share of each subject in it; None where it is the instance's own."""
    within = _within(case.topology.callees, case.instance)
    if not within[case.instance]:
        return None
    signs = [sign for sign in (LATENCY, ERROR_RATIO) if _moved(case, case.instance, sign)]
    found = [(sign, _shares(case, sign, within)) for sign in signs]
    by_callees = [sum(shares.values()) - shares[case.instance] for _, shares in found]
    best = max(by_callees, default=0.0)
    return found[by_callees.index(best)] if best >= EXPLAINED_MIN else None


def _within(callees: Callees, instance: str) -> dict[str, list[str]]:
    """The calls among what is reached from an instance, nearest first.

    Those in circles are left out: they do not tell whose fault it is.
    """
    found: dict[str, list[str]] = {instance: []}
    for subject in (order := [instance]):
        for callee in callees.get(subject, ()):
            if callee not in found and len(found) < REACHED_MAX:
                found[callee] = []
                order.append(callee)
            if callee in found:
                found[subject].append(callee)
    below = {subject: _below(found, subject) for subject in found}
    return {subject: [c for c in calls if subject not in below[c]] for subject, calls in found.items()}


def _below(callees: Callees, subject: str) -> set[str]:
    """All that is reached from the subject; itself only where its calls come back to it."""
    found: set[str] = set()
    for one in (order := [subject]):
        more = [callee for callee in callees[one] if callee not in found]
        found.update(more)
        order += more
    return found


def _shares(case: Case, sign: Sign, within: Callees) -> dict[str, float]:
    added, sure = {}, {}
    for subject, part in _parts(case, within).items():
        movements = case.movements(subject)
        if movements is None:
            continue
        movement = movements.of(sign.signal)
        change = sign.change(movement)
        more = change * _requests(case, subject) * part
        added[subject] = more if more > 0 else 0.0
        sure[subject] = change / (DEVIATIONS_MIN * sign.scale(movement)) if change > 0 else 0.0
    for subject in within:
        # Whose answers never come has no latency, and adds all that its callers wait.
        if subject != case.instance and _hangs(case, subject):
            added[subject], sure[subject] = added.get(case.instance, 0.0), 1.0
    return blame(added, sure, within, case.instance)


def _parts(case: Case, within: Callees) -> dict[str, float]:
    """The share of each one's requests that come from the instance, as if each caller called in proportion to its own requests."""
    parts = dict.fromkeys(within, 0.0) | {case.instance: 1.0}
    for subject in within:
        for callee in within[subject]:
            if callee != case.instance:
                share = _requests(case, subject) / max(_requests_of_callers(case, callee), 1e-9)
                parts[callee] = min(1.0, parts[callee] + parts[subject] * min(share, 1.0))
    return parts


def _requests_of_callers(case: Case, callee: str) -> float:
    """Per second, of all its callers together."""
    callers = case.topology.callers[callee]
    known = [_requests(case, caller) for caller in callers[:CALLERS_MAX]]
    return sum(known) * len(callers) / len(known)


def _requests(case: Case, subject: str) -> float:
    """Per second since the onset; 0 where that is not known."""
    movements = case.movements(subject)
    rates = [movements.of(s).after for s in ("requests_per_second", "predictions_per_second")] if movements else []
    return next((rate for rate in rates if math.isfinite(rate)), 0.0)


def _moved(case: Case, subject: str, sign: Sign) -> bool:
    # Whether the peers moved alike does not matter: they call the same.
    movements = case.movements(subject)
    return movements is not None and sign.moved(movements.of(sign.signal))


def _hangs(case: Case, subject: str) -> bool:
    movements = case.movements(subject)
    return (
        movements is not None
        and not math.isfinite(movements.of(LATENCY.signal).after)
        and ANSWERS.moved(movements.of(ANSWERS.signal))
    )


def _worst_first(case: Case, shares: Shares) -> list[str]:
    callees = sorted(shares.keys() - {case.instance}, key=lambda subject: (-shares[subject], subject))
    return [subject for subject in callees if shares[subject] >= _LISTED_MIN] or callees[:1]


def _evidence(case: Case, subject: str, sign: Sign) -> pb.Evidence | None:
    movements = case.movements(subject)
    return case.evidence(sign, (movements, movements.of(sign.signal)), peers=()) if movements is not None else None


def _change(told: pb.Evidence) -> str:
    if told.signal == ANSWERS.signal:
        return "answers nothing"
    if told.signal == ERROR_RATIO.signal:
        return f"fails more: {told.before:.0%} → {told.after:.0%} of its answers are errors"
    return f"got slower: {quantity(told.before, told.unit)} → {quantity(told.after, told.unit)}"
