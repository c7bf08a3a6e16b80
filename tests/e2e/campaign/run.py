"""One run: trimtab gets to know the healthy fleet, one fault comes, and what trimtab says of it is written down."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

import msgspec

from tests.e2e.campaign.cannot import Cannot
from tests.e2e.campaign.classes import CLASSES, HEALTHY
from tests.e2e.campaign.ground import Ground
from tests.e2e.campaign.record import Clients, Record, Told, sort_out
from tests.e2e.fleet import Instance
from tests.e2e.observe import Observer
from tests.e2e.report import phase
from trimtab.agent.wire import query_pb2 as pb

WARM_SECONDS_MAX = 90.0
BASELINE_SECONDS = 20.0
"""Of what clients saw before the fault."""
_GATHER_SECONDS = 6.0
"""Two explanations: evidence grows while a fault lasts."""


def run(ground: Ground, fault: str, instance: Instance) -> Record:
    """Inject `fault` at `instance`, undo it, and wait until the fleet is well again. Raises TrimtabError when something died."""
    chosen = CLASSES[fault]
    subjects = () if fault == HEALTHY else chosen.subjects(ground, instance)
    record = Record(fault, ground.subject(instance), subjects, chosen.mechanisms)
    ground.gpus.write()
    try:
        with ExitStack() as prepared:
            prepared.enter_context(chosen.prepare(ground, instance))
            observer = prepared.enter_context(ground.watched())
            if not ground.until(lambda: ground.warm(observer), WARM_SECONDS_MAX):
                alarms = ", ".join(i.subject for i in observer.incidents.values()) or "no incident"
                raise Cannot(f"trimtab did not see a healthy fleet within {WARM_SECONDS_MAX:.0f} s: {alarms}")
            ground.wait(chosen.known_seconds)
            began, began_unix_ns = time.monotonic(), time.time_ns()
            with chosen.apply(ground, instance):
                ground.until(lambda: _is_explained(observer, began_unix_ns, subjects), chosen.seconds_max)
                ended = time.monotonic()
                told, others = sort_out(map(_told, observer.incidents.values()), began_unix_ns, subjects)
    except Cannot as error:
        return msgspec.structs.replace(record, cannot=str(error))
    finally:
        ground.recover()
    return msgspec.structs.replace(
        record,
        injected_unix_ns=began_unix_ns,
        told=told,
        others=tuple(others),
        before=_clients(ground, began - BASELINE_SECONDS, began),
        during=_clients(ground, began, ended),
    )


def _is_explained(observer: Observer, began_unix_ns: int, subjects: tuple[str, ...]) -> bool:
    patience = time.time_ns() - _GATHER_SECONDS * 1e9
    opened = [i.opened_unix_ns for i in observer.incidents.values() if i.subject in subjects]
    return any(began_unix_ns <= at <= patience for at in opened)


def _told(incident: pb.Incident) -> Told:
    cause = incident.causes[0] if incident.causes else pb.Cause()
    return Told(incident.subject, cause.mechanism, round(cause.confidence, 3), incident.opened_unix_ns)


def _clients(ground: Ground, start: float, end: float) -> Clients:
    seen = phase("", ground.load.requests(), start, end)
    values = (seen.p50_seconds, seen.p99_seconds, seen.error_ratio)
    return Clients(*(None if math.isnan(value) else round(value, 4) for value in values))
