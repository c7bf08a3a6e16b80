"""Weights that people set: checked, stored, and then told to the actuator with every state of the fleet, also after a restart."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from trimtab.agent.clock import Clock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed
from trimtab.agent.wire.overrides import MODEL, OVERRIDES_MAX, about, brief, in_force
from trimtab.collector.arrow import Columns
from trimtab.collector.by_hand import NOTE_MAX, NotFound, check_text, few, once_stored
from trimtab.collector.feed import FleetSlot
from trimtab.collector.journal import StoredJournal
from trimtab.collector.store import Store
from trimtab.collector.writer import Rows, Writer

SECONDS_MAX = 366 * 86400.0
SILENT_SECONDS = 30.0
"""A decision that is older is not in force any more: the actuator is gone, and the weights are neutral."""
_FORGET = "DELETE FROM overrides USING incoming WHERE overrides.target = incoming.target"
_ENTER = """
INSERT INTO overrides BY NAME
SELECT * REPLACE (make_timestamp(since) AS since, if(until = 0, NULL, make_timestamp(until)) AS until, from_hex(message) AS message)
FROM incoming
"""
_FIND = "SELECT message FROM overrides ORDER BY since"
_KINDS = {pb.Override.KIND_WEIGHT: "weight", pb.Override.KIND_FREEZE: "freeze", pb.Override.KIND_NEUTRAL: "neutral"}


class Overrides:
    """One order after the other takes effect, each once it is stored. For any thread."""

    def __init__(self, store: Store, writer: Writer, *, journal: StoredJournal, fleet: FleetSlot, clock: Clock) -> None:
        """Take up what is stored. Raises StoreError."""
        self._writer, self._journal, self._fleet, self._clock = writer, journal, fleet, clock
        self._asked = threading.Lock()
        """Held from looking at what is in force until it has changed."""
        with store.reading() as connection:
            found = [pb.Override.FromString(message) for (message,) in connection.execute(_FIND).fetchall()]
        self._overrides = {one.target: one for one in found}

    def in_force(self) -> dict[str, pb.Override]:
        """By target."""
        found = in_force(self._overrides.values(), self._clock.unix_ns())
        return {one.target: one for one in sorted(found, key=lambda one: one.target)}

    def told(self, fleet: pb.FleetState) -> pb.FleetState:
        """The state with what is in force."""
        overrides = self.in_force()
        if not overrides:
            return fleet
        out = pb.FleetState()
        out.CopyFrom(fleet)
        out.overrides.extend(overrides.values())
        return out

    def take(self, request: pb.SteerRequest) -> pb.SteerReply:
        """What came of it. Raises Malformed, naming the field, NotFound, and StoreError when it cannot be stored now."""
        check_text("who", request.who, TEXT_MAX)
        with self._asked:
            match request.WhichOneof("content"):
                case "override":
                    return self._override(request.who, request.override)
                case "auto":
                    return self._auto(request.auto.target)
        raise Malformed("content: neither override nor auto")

    def _override(self, who: str, request: pb.OverrideRequest) -> pb.SteerReply:
        check_text("override.target", request.target, TEXT_MAX, empty=True)
        check_text("override.reason", request.reason, NOTE_MAX, empty=True)
        if not 0 <= request.seconds <= SECONDS_MAX:  # NaN fails too
            raise Malformed(f"override.seconds: {request.seconds} is not in [0, {SECONDS_MAX:g}]")
        if request.kind not in _KINDS:
            raise Malformed("override.kind: neither weight, freeze nor neutral")
        fleet, known = self._instances(), self.in_force()
        members = _members(request.target, fleet)
        if request.target and not members:
            what = f"serves {request.target!r}" if request.target.startswith(MODEL) else f"is called {request.target!r}"
            raise NotFound(f"no instance {what}; `trimtab instances` lists them")
        now = self._clock.unix_ns() // 1000
        made = pb.Override(target=request.target, kind=request.kind, who=who, reason=request.reason)
        made.since_unix_ns = now * 1000
        made.until_unix_ns = (now + round(request.seconds * 1e6)) * 1000 if request.seconds else 0
        if request.kind == pb.Override.KIND_WEIGHT:
            _check_weight(request, fleet, known)
            made.weight = request.weight
        elif request.kind == pb.Override.KIND_FREEZE:
            made.frozen.update({name: weight for name, weight in self._weights().items() if name in members})
        covered = _covered(request.target, members, known)
        if len(known) - len(covered) >= OVERRIDES_MAX:
            raise Malformed(
                f"override.target: {OVERRIDES_MAX} overrides are in force; `trimtab weights auto` ends some"
            )
        rows: Rows = [(_FORGET, {"target": [*covered, made.target]}), (_ENTER, _columns(made))]
        self._store(f"override {made.target} {now}", rows, covered, {made.target: made})
        return pb.SteerReply(overrides=[brief(made)])

    def _auto(self, target: str) -> pb.SteerReply:
        check_text("auto.target", target, TEXT_MAX, empty=True)
        known = self.in_force()
        covered = _covered(target, _members(target, self._instances()), known)
        if not covered:
            what = f"{target!r} is not" if target else "nothing is"
            raise NotFound(f"{what} set by hand; set now: {few([_name(one) for one in known])}")
        key = f"override {target} {self._clock.unix_ns() // 1000}"
        self._store(key, [(_FORGET, {"target": covered})], covered, {})
        return pb.SteerReply(overrides=[brief(known[one]) for one in covered])

    def _instances(self) -> Sequence[pb.InstanceState]:
        _, fleet = self._fleet.wait(-1, 0)
        return fleet.instances if fleet else ()

    def _weights(self) -> dict[str, float]:
        """Those in force that are not neutral, by instance: of the last decision."""
        for decision in self._journal.decisions(1):
            if self._clock.unix_ns() - decision.unix_ns <= SILENT_SECONDS * 1e9:
                return {one.instance: one.weight for one in decision.weights if one.weight < 1}
        return {}

    def _store(self, key: str, rows: Rows, without: Sequence[str], made: dict[str, pb.Override]) -> None:
        def apply() -> None:
            left = {target: one for target, one in self.in_force().items() if target not in without}
            self._overrides = left | made

        once_stored(self._writer, key, rows, apply)


def _members(target: str, fleet: Sequence[pb.InstanceState]) -> set[str]:
    """The instances that a target is."""
    return {one.id for one in fleet if about(target, one.id, one.model)}


def _check_weight(
    request: pb.OverrideRequest, fleet: Sequence[pb.InstanceState], known: Mapping[str, pb.Override]
) -> None:
    """Raises Malformed where nobody can have meant it."""
    if not 0 <= request.weight <= 1:  # NaN fails too
        raise Malformed(f"override.weight: {request.weight} is not in [0, 1]; 1 is the neutral weight")
    if not request.target or request.target.startswith(MODEL):
        raise Malformed("override.target: a weight is set for one instance; give its name")
    [model] = [one.model for one in fleet if one.id == request.target]
    peers = {one.id for one in fleet if one.model == model} - {request.target}
    if request.weight == 0 and all(one in known and _is_zero(known[one]) for one in peers):
        raise Malformed(f"override.weight: 0 would leave no instance of {model or 'its model'} with any weight")


def _covered(target: str, instances: set[str], known: dict[str, pb.Override]) -> list[str]:
    """The overrides that are about nothing but what `target` is."""
    return [one for one in known if not target or one == target or one in instances]


def _is_zero(override: pb.Override) -> bool:
    return override.kind == pb.Override.KIND_WEIGHT and override.weight == 0


def _name(target: str) -> str:
    return target or "all instances"


def _columns(override: pb.Override) -> Columns:
    return {
        "target": [override.target],
        "kind": [_KINDS[override.kind]],
        "weight": [override.weight if override.kind == pb.Override.KIND_WEIGHT else None],
        "since": [override.since_unix_ns // 1000],
        "until": [override.until_unix_ns // 1000],
        "who": [override.who],
        "reason": [override.reason],
        "message": [override.SerializeToString().hex()],
    }
