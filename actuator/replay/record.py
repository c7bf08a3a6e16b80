"""Reads what an incident's instances did out of the store, online or from the file."""

from __future__ import annotations

import math

import numpy as np

from trimtab import TrimtabError
from trimtab.actuator.replay.recording import Incident, Recording
from trimtab.actuator.replay.weights import recorded_weights
from trimtab.actuator.replay.windows import LIMITS, columns_of, constant, latencies, text, windows_of
from trimtab.agent.wire.places import PLACES
from trimtab.collector.node_tables import printable
from trimtab.collector.offline import Ask

BEFORE_SECONDS = 180
"""What shows the usual, ahead of the onset."""
BEFORE_SECONDS_MIN = 20
SECONDS_MAX = 900
INSTANCES_MAX = 100
_INCIDENT = """
SELECT id, subject, node, model, mechanism, epoch_us(since), epoch_us(opened), epoch_us(resolved),
       (SELECT epoch_us(max(start)) FROM arrivals)
FROM incidents WHERE id = {id}
"""
_OF_PLACE = "SELECT node FROM subjects WHERE kind = 'node' AND current AND labels[{place}] = {name}"


def read(ask: Ask, id_: str, model: str = "") -> Recording:
    """The recording of an incident. `model`: which one, where it is about several. Raises TrimtabError that says what is missing."""
    incident, newest_us = _incident(ask, id_)
    peers = _peers(ask, incident, model)
    origin_us = (incident.since_unix_ns // 1_000_000_000 - BEFORE_SECONDS) * 1_000_000
    until_us = (incident.resolved_unix_ns or 0) // 1000 or newest_us
    seconds = min(SECONDS_MAX, math.ceil((until_us - origin_us) / 1e6))
    if seconds <= BEFORE_SECONDS:
        raise TrimtabError(f"incident {incident.id}: no window is stored since its onset; ask again in some seconds")
    end_us = origin_us + seconds * 1_000_000
    windows = windows_of(ask, incident, peers, origin_us, end_us)
    instances = [name for name in peers if name in windows]
    # Before the collector began nothing is known.
    begun = max(0, min(math.floor(one["starts"][0]) for one in windows.values()))
    before = BEFORE_SECONDS - begun
    if before < BEFORE_SECONDS_MIN:
        there = f"incident {incident.id}: windows of {max(0, before)} s before its onset are stored"
        raise TrimtabError(f"{there}; it takes {BEFORE_SECONDS_MIN} s to know what was usual")
    origin_us, seconds = origin_us + begun * 1_000_000, seconds - begun
    for one in windows.values():
        one["starts"] -= begun
    columns = [columns_of(windows[name], seconds) for name in instances]
    matrices = {name: np.column_stack([c[name] for c in columns]) for name in columns[0]}
    weights, policy = recorded_weights(ask, instances, origin_us, seconds)
    return Recording(
        incident=incident,
        origin_unix_ns=origin_us * 1000,
        onset_second=before,
        instances=tuple(instances),
        subjects=tuple(k for k, name in enumerate(instances) if peers[name]),
        **matrices,
        **{to: constant(instances, windows, of) for to, of in LIMITS.items()},
        latencies=latencies(instances, windows),
        weights=weights,
        policy=policy,
    )


def _incident(ask: Ask, id_: str) -> tuple[Incident, int]:
    """And when the newest window of the store began, in microseconds."""
    found = ask(_INCIDENT.format(id=text(id_)))
    if not found:
        raise TrimtabError(f"no incident {id_!r}; `trimtab incidents` lists them")
    [name, subject, node, model, mechanism, since, opened, resolved, newest] = found[0]
    ended = None if resolved is None else resolved * 1000
    return Incident(name, subject, node, model, mechanism or "", since * 1000, opened * 1000, ended), newest or 0


def _peers(ask: Ask, incident: Incident, model: str) -> dict[str, bool]:
    """The instances that serve the incident's model, and of each whether the incident is about it."""
    rows = ask("SELECT instance, node, coalesce(model, '') FROM instances ORDER BY instance")
    there = _nodes(ask, incident)
    about = {i: m for i, n, m in rows if incident.subject == i or n in there}
    about = about or {i: m for i, _, m in rows if incident.model and incident.model in (m, *m.split(","))}
    models = {m for m in about.values() if not model or m == model}
    if not models:
        what = f"model {model!r}" if model else printable(incident.subject)
        raise TrimtabError(
            f"incident {incident.id}: the store knows no instance of {what}; `trimtab instances` lists them"
        )
    if len(models) > 1:
        names = ", ".join(sorted(map(printable, models)))
        raise TrimtabError(f"incident {incident.id} is about several models: choose one with --model ({names})")
    [served] = models
    # An instance whose model is not known has no peers.
    peers = {i: i in about for i, _, m in rows if m == served and (m or i in about)}
    if len(peers) > INSTANCES_MAX:
        raise TrimtabError(f"{len(peers)} instances serve {printable(served)}: at most {INSTANCES_MAX} can be replayed")
    return peers


def _nodes(ask: Ask, incident: Incident) -> set[str]:
    """The nodes that the incident is about as a whole: one, or those of a rack or switch."""
    place, _, name = incident.subject.partition(" ")
    if place in PLACES:
        return {node for (node,) in ask(_OF_PLACE.format(place=text(place), name=text(name)))}
    return {incident.node} if incident.subject == incident.node else set()
