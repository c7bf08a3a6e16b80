"""How well each mechanism of the table fits how the signals of one instance moved, also beside the others that fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire import telemetry_pb2 as telemetry
from trimtab.detector.history import NODE
from trimtab.detector.quantity import quantity
from trimtab.rootcause.case import Case
from trimtab.rootcause.evidence import of_event
from trimtab.rootcause.movement import Movement, Movements
from trimtab.rootcause.siblings import with_siblings
from trimtab.rootcause.signatures import SIGNATURES, Sign, Signature

EVIDENCE_MAX = 6
UNKNOWN = 0.2
"""What is less sure than that no mechanism fits is not told."""
_EVENT_CONFIDENCE = 0.97
# A node's signal, when other instances of that node are well and nothing of the instance's own moved with it.
_NODE_ALONE = 0.6
_EVENT_SECONDS_BEFORE = 10.0
Found = tuple[Sign, tuple[Movements, Movement]]


def fitting(case: Case) -> list[pb.Cause]:
    """One cause of each mechanism that fits, the more specific first."""
    fits = [fit for signature in SIGNATURES if (fit := _fit(case, signature)) is not None]
    return [_cause(fit, sure) for fit in fits if (sure := beside(fit, fits)) >= UNKNOWN]


@dataclass(frozen=True, slots=True)
class Fit:
    """A signature that fits, and by what."""

    case: Case
    signature: Signature
    happened: list[pb.Evidence]
    leads: list[Found]
    needs: list[Found]
    supports: list[Found]

    def confidence(self, beside: frozenset[str] = frozenset()) -> float:
        """How sure it is; 0 where all that leads to it moves anyway: signals `beside` are no evidence."""
        leads = [one for one in self.leads if one[0].signal not in beside]
        supports = [one for one in self.supports if one[0].signal not in beside]
        if not self.happened and not leads:
            return 0.0
        confidence = 1 - (1 - self.signature.confidence) * (2 / 3) ** len(supports)
        if self.happened:
            confidence = max(confidence, _EVENT_CONFIDENCE)
        elif leads[0][0].kind == NODE and not _own_moved(self.case, [*leads, *self.needs, *supports]):
            confidence *= _NODE_ALONE
        return min(confidence, 0.99)


def _fit(case: Case, signature: Signature) -> Fit | None:
    """How the signature fits, if it does."""
    if any(case.moved(sign, common=True) for sign in signature.unless):
        return None
    fit = Fit(
        case,
        signature,
        happened=[of_event(event) for event in _events(case, signature)],
        leads=_moved(case, signature.leads, signature.common),
        needs=_moved(case, signature.needs),
        supports=_moved(case, signature.supports),
    )
    whole = bool(fit.leads) and len(fit.needs) == len(signature.needs)
    return fit if fit.happened or whole else None


def _moved(case: Case, signs: Iterable[Sign], common: bool = False) -> list[Found]:
    """Those that moved, with `common` also those that did on the peers as well."""
    found = [(sign, case.moved(sign) or (case.moved(sign, True) if common else None)) for sign in signs]
    return [(sign, moved) for sign, moved in found if moved is not None]


def beside(fit: Fit, others: Sequence[Fit]) -> float:
    """How sure it is beside surer ones, which may move some of its signals by themselves.

    If another one is so with probability p, only what that one does not entail is evidence of this: p · rest + (1 - p) · whole.
    """
    confidence = fit.confidence()
    for other in others:
        sure = other.confidence()
        if other is not fit and sure >= fit.confidence():
            confidence = min(confidence, sure * fit.confidence(other.signature.entails) + (1 - sure) * confidence)
    return confidence


def _cause(fit: Fit, confidence: float) -> pb.Cause:
    case, signature = fit.case, fit.signature
    told: dict[tuple[str, str], pb.Evidence] = {}
    for sign, found in [*fit.leads, *fit.needs, *fit.supports]:
        told.setdefault((found[1].subject, sign.signal), case.evidence(sign, found))
    listed = [*told.values(), *fit.happened][:EVIDENCE_MAX]
    lead = listed[0]
    summary = signature.summary.format(
        subject=lead.subject,
        instance=case.instance,
        signal=lead.signal,
        before=f"{lead.before:.0%}" if lead.signal.endswith("_ratio") else quantity(lead.before, lead.unit),
        after=f"{lead.after:.0%}" if lead.signal.endswith("_ratio") else quantity(lead.after, lead.unit),
    )
    cause = pb.Cause(
        subject=lead.subject,
        mechanism=signature.mechanism,
        confidence=confidence,
        summary=summary,
        remedy=signature.remedy,
        evidence=listed,
    )
    if signature.link and fit.leads:
        with_siblings(case, fit.leads[0][0], signature.link, cause)
    return cause


def _own_moved(case: Case, signs: Iterable[Found]) -> bool:
    """Whether no healthy instance shares the node, or something moved that is this instance's own."""
    shared = [peer for peer in case.peers if peer.startswith(f"{case.node}/")]
    return not shared or any(sign.kind != NODE for sign, _ in signs)


def _events(case: Case, signature: Signature) -> list[telemetry.Event]:
    mine = {case.instance, *case.gpus(case.instance)}
    since = case.since_unix_ns - round(_EVENT_SECONDS_BEFORE * 1e9)
    return [
        e
        for e in case.history.events(case.node, since)
        if e.name in signature.events
        and (e.subject in mine or (e.subject == case.node and signature.mechanism == "out of memory"))
    ]
