"""What is told of a model drift: where in the distribution of its scores the predictions moved, since when, and on which instances."""

from __future__ import annotations

import math

import numpy as np

from trimtab.agent.wire import query_pb2 as pb
from trimtab.detector.history import History
from trimtab.detector.scores import BINS, Counts, by_subject, distance, shares
from trimtab.detector.usual import PREDICTIONS_MIN, Change

MECHANISM = "model drift"
CONFIDENCE = 0.9
REMEDY = (
    "Compare the inputs with those that the model was trained on. If the world has changed, train it anew: "
    "with another version what is usual is learnt anew, too. If it is meant to be so: trimtab incidents accept ID."
)
_ABOUT = "predictions of model "
_SIGNAL = "prediction_share_bin_"
_NAMED_MAX = 3
_MIDDLES = (np.arange(BINS) + 0.5) / BINS


def about(model: str) -> str:
    """The subject of its incident. Not "model NAME": that one may be slow at the same time."""
    return f"{_ABOUT}{model}"


def is_drift(subject: str) -> bool:
    """Whether an incident about it is one of drift."""
    return subject.startswith(_ABOUT)


def symptom(change: Change) -> str:
    """One line: how much moved, and where most."""
    most = sorted(_by_change(change)[:2])
    where = ", ".join(f"bin {k} {change.before[k]:.0%} → {change.after[k]:.0%}" for k in most)
    return f"{distance(change.before, change.after):.0%} of its predictions moved: {where}"


def cause(history: History, model: str, change: Change) -> pb.Cause:
    """The shares of all bins before and after, those that moved most first."""
    mean_before, mean_after = float(change.before @ _MIDDLES), float(change.after @ _MIDDLES)
    return pb.Cause(
        subject=about(model),
        mechanism=MECHANISM,
        confidence=CONFIDENCE,
        summary=f"the mean score of {model} went from {mean_before:.2f} to {mean_after:.2f}, {_where(history, model, change)}",
        remedy=REMEDY,
        evidence=[
            pb.Evidence(
                subject=about(model),
                signal=f"{_SIGNAL}{k}",
                unit="1",
                before=change.before[k],
                after=change.after[k],
                peers=math.nan,
                deviation=math.nan,
                changed_unix_ns=change.since_unix_ns,
                course=change.course[:, k].tolist(),
            )
            for k in _by_change(change)
        ],
    )


def told(incident: pb.Incident) -> tuple[Counts, Counts] | None:
    """The shares before and after that an incident tells of, also one from before a restart; None where it tells of none."""
    evidence = [each for cause in incident.causes[:1] for each in cause.evidence]
    found = {each.signal: each for each in evidence}
    names = [f"{_SIGNAL}{k}" for k in range(BINS)]
    if not found.keys() >= set(names):
        return None
    return np.asarray([found[n].before for n in names]), np.asarray([found[n].after for n in names])


def _by_change(change: Change) -> list[int]:
    order: list[int] = np.argsort(-np.abs(change.after - change.before), kind="stable").tolist()
    return order


def _where(history: History, model: str, change: Change) -> str:
    """On which instances: if only on some, it is rather they that are broken than the world that changed."""
    counts = by_subject(history, model, change.since_unix_ns)
    judged = {subject: shares(c) for subject, c in counts.items() if c.sum() >= PREDICTIONS_MIN}
    half = distance(change.before, change.after) / 2
    moved = [subject for subject, each in judged.items() if distance(each, change.before) >= half]
    if not moved or len(moved) == len(judged):
        return f"on all of its {len(judged)} instances"
    named = ", ".join(moved[:_NAMED_MAX]) + (", …" if len(moved) > _NAMED_MAX else "")
    return f"only on {len(moved)} of its {len(judged)} instances: {named}"
