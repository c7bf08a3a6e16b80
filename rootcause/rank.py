"""Ranks the mechanisms that fit how the signals of a degraded subject moved, against its peers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import GPU, INSTANCE, NODE, History
from trimtab.detector.topology import Topology
from trimtab.rootcause.case import Case
from trimtab.rootcause.dependency import blamed, slow_dependency, with_callers
from trimtab.rootcause.evidence import evidence, levels
from trimtab.rootcause.fit import EVIDENCE_MAX, UNKNOWN, fitting
from trimtab.rootcause.movement import Movement, Movements, steps_of
from trimtab.rootcause.signatures import (
    CPU_USED,
    ERROR_RATIO,
    LATENCY,
    NEIGHBOUR_REMEDY,
    REGRESSION_REMEDY,
    REQUESTS,
    RUN_QUEUE,
    SYMPTOMS,
    UNKNOWN_REMEDY,
    Sign,
)

CAUSES_MAX = 3
MEMBERS_MAX = 64
_MEMBERS_SHARE = 0.6


class Ranking:
    """The explainer of the rootcause floor (see `trimtab.detector.explain.Explainer`)."""

    def __init__(self) -> None:
        self._topology = Topology()

    def explain(self, history: History, subject: str, since_unix_ns: int, peers: Sequence[str]) -> list[pb.Cause]:
        self._topology.update(history)
        nodes = self._topology.nodes(subject)
        if "/" in subject and not nodes and not subject.startswith("model "):
            return _explain_one(Case(history, self._topology, subject, since_unix_ns, peers))
        of_model = subject.startswith("model ") and not nodes
        members = [i for node in nodes or [subject] for i, _ in history.all(INSTANCE, node)]
        if of_model:
            members = history.instances(subject.removeprefix("model "))
        spread = members[:: max(1, math.ceil(len(members) / MEMBERS_MAX))]
        cases = [Case(history, self._topology, member, since_unix_ns) for member in spread]
        return _explain_all(cases, subject, of_model)

    def blamed(self, history: History, instance: str, since_unix_ns: int) -> list[str]:
        self._topology.update(history)
        return blamed(Case(history, self._topology, instance, since_unix_ns))


def _explain_one(case: Case) -> list[pb.Cause]:
    found = _best([*_fitting(case), *_neighbours(case)]) or [_unknown(case)]
    with_callers([case], found[0])
    return found


def _fitting(case: Case) -> list[pb.Cause]:
    """One of each mechanism that fits this instance by itself, the more specific first."""
    dependency = slow_dependency(case)
    return [*fitting(case), *([dependency] if dependency else [])]


def _explain_all(cases: Sequence[Case], subject: str, of_model: bool) -> list[pb.Cause]:
    """What most members have in common."""
    shared: dict[str, list[pb.Cause]] = {}
    for case in cases:
        for cause in _fitting(case):
            shared.setdefault(cause.mechanism, []).append(cause)
    causes = [
        max(found, key=lambda c: c.confidence) for found in shared.values() if len(found) >= _MEMBERS_SHARE * len(cases)
    ]
    # That all fail, or all are slow, is not what one instance does: it is the model, unless the machine explains it.
    causes = [c for c in causes if c.mechanism != "fail-fast errors"]
    for cause in causes:
        cause.summary = f"{cause.summary}; the same on most instances of {subject}"
    regression = _regression(cases, subject) if of_model else None
    found = _best([*causes, *([regression] if regression else [])])
    found = found or [_unknown(cases[0]) if cases else pb.Cause(subject=subject, mechanism="unknown", confidence=0.1)]
    with_callers(cases, found[0])
    return found


def _best(causes: Iterable[pb.Cause]) -> list[pb.Cause]:
    # The sort is stable: of equals, the more specific comes first.
    return sorted(causes, key=lambda c: -c.confidence)[:CAUSES_MAX]


def _neighbours(case: Case) -> list[pb.Cause]:
    """Another instance of the node, or of the GPU, whose load rose as this one began to suffer."""
    suffering = case.moved(RUN_QUEUE)
    gpus = set(case.gpus(case.instance))
    causes = []
    for other, _ in case.history.all(INSTANCE, case.node):
        if other == case.instance:
            continue
        movements = case.movements(other)
        if movements is None or not (suffering or gpus & set(case.gpus(other))):
            continue
        rose = [(s, movements.of(s.signal)) for s in (CPU_USED, REQUESTS) if s.moved(movements.of(s.signal))]
        # Whose own requests rose with the neighbour's is under the same surge.
        if not rose or case.moved(REQUESTS):
            continue
        told = [evidence(movements, m, s.sparse, s.scale(m), ()) for s, m in rose]
        told += [case.evidence(RUN_QUEUE, suffering)] if suffering else []
        causes.append(
            pb.Cause(
                subject=other,
                mechanism="noisy neighbour",
                confidence=0.9 if suffering and rose[0][0] is CPU_USED else 0.7,
                summary=f"the load of {other}, on the same {'GPU' if not suffering else 'node'}, rose as {case.instance} began to suffer",
                remedy=NEIGHBOUR_REMEDY,
                evidence=told,
            )
        )
    return _best(causes)[:1]


def _regression(cases: Sequence[Case], subject: str) -> pb.Cause | None:
    """All instances of the model are worse; what the machine does is for the other signatures to tell."""
    worse = []
    for case in cases:
        found = [(sign, moved) for sign in (ERROR_RATIO, LATENCY) if (moved := case.moved(sign)) is not None]
        worse += [(case, *found[0])] if found else []
    if len(worse) < _MEMBERS_SHARE * len(cases) or not worse:
        return None
    return pb.Cause(
        subject=subject,
        mechanism="model regression",
        confidence=0.7,
        summary=f"{len(worse)} of {len(cases)} instances of {subject} got worse together, and nothing on their machines explains it",
        remedy=REGRESSION_REMEDY,
        evidence=[case.evidence(sign, moved) for case, sign, moved in worse[:EVIDENCE_MAX]],
    )


def _unknown(case: Case) -> pb.Cause:
    """No mechanism fits: the signals that stepped farthest beyond what they do by themselves, as far as the peers' did not."""
    movers: list[tuple[float, Sign, tuple[Movements, Movement]]] = []
    for kind in (INSTANCE, GPU, NODE):
        for subject in case.subjects(kind, case.instance):
            movements = case.movements(subject)
            steps = steps_of(movements) if movements else {}
            for signal in movements.signals if movements else ():
                if movements is None or signal in SYMPTOMS:
                    continue
                movement = movements.of(signal)
                before, after = levels(movement, sparse=False)
                floor = 0.1 * max(abs(before), abs(after))
                sign = Sign(kind, signal, 1 if after >= before else -1, floor)
                if floor > 0 and sign.moved(movement) and case.moved(sign):
                    movers.append((steps[signal], sign, (movements, movement)))
    movers.sort(key=lambda m: -m[0])
    return pb.Cause(
        subject=case.instance,
        mechanism="unknown",
        confidence=UNKNOWN,
        summary=f"no known mechanism explains what happened to {case.instance}",
        remedy=UNKNOWN_REMEDY,
        evidence=[case.evidence(sign, found) for _, sign, found in movers[:EVIDENCE_MAX]],
    )
