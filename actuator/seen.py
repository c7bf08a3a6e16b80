"""What the policies saw, as it is recorded with a decision, and as it is read again by who plays or learns it over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

import numpy as np

from trimtab.actuator.state import State, Vector
from trimtab.agent.wire import query_pb2 as pb

COLUMNS = tuple(f.name for f in fields(State) if f.type == "Vector")
"""The numbers of an instance that a policy sees."""


def seen(states: Sequence[State]) -> pb.Seen:
    """The states of one decision, in the order of its weights. Six digits of each number are kept."""
    out = pb.Seen(columns=COLUMNS)
    for state in states:
        for name, incident, mechanism in zip(state.ids, state.incidents, state.mechanisms, strict=True):
            if incident:
                out.incidents[name], out.mechanisms[name] = incident, mechanism
    if states:
        blocks = [np.stack([getattr(state, name) for name in COLUMNS]) for state in states]
        out.values = np.concatenate(blocks, axis=1).astype("<f4").tobytes()
    return out


def states(decision: pb.Decision) -> list[State]:
    """The states that a recorded decision was made in, without addresses; none where they were not recorded.

    What trimtab did not know of yet when it was recorded is NaN.
    """
    if not decision.HasField("seen"):
        return []
    said, size = decision.seen, len(decision.weights)
    values = np.frombuffer(said.values, "<f4").astype(np.float64).reshape(len(said.columns), size)
    known = dict(zip(said.columns, values, strict=True))
    out, at = [], 0
    for _, group in groupby(decision.weights, key=lambda w: (w.model, "" if w.model else w.instance)):
        names = tuple(w.instance for w in group)
        here = slice(at, at + len(names))
        out.append(
            _state(decision.weights[at].model, names, {name: column[here] for name, column in known.items()}, said)
        )
        at += len(names)
    return out


def _state(model: str, names: tuple[str, ...], known: dict[str, Vector], said: pb.Seen) -> State:
    columns: dict[str, Any] = {name: known.get(name, np.full(len(names), np.nan)) for name in COLUMNS}
    incidents = tuple(said.incidents.get(name, "") for name in names)
    return State(
        model=model,
        ids=names,
        addresses=((),) * len(names),
        degraded=np.asarray([bool(one) for one in incidents]),
        incidents=incidents,
        mechanisms=tuple(said.mechanisms.get(name, "") for name in names),
        **columns,
    )
