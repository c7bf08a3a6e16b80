"""A simulated fleet whose seconds go into a real collector as an agent would tell them: what is stored can be held against the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.collector.sender import CLOCK, Recording, collecting, publish, schema, window
from tests.collector.test_query import until
from trimtab.actuator.fleetsim.faults import SIGNALS
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.state import Vector
from trimtab.agent.sketch.loglinear import of_seconds
from trimtab.agent.wire import query_pb2 as q
from trimtab.agent.wire.columns import pack_sketches

SECOND_NS = 1_000_000_000
SEEN = (
    "requests_per_second", "request_errors_per_second", "errors_per_second", "requests_in_flight", "queue_depth", "workers_ready",
)  # fmt: skip
TOLD = ("predictions_per_second", "inference_latency_seconds", "queue_latency_seconds")
TOLD_AFTER_SECONDS = 6


@dataclass(frozen=True, slots=True)
class Truth:
    """What users had of it, from the onset to the end: of answers, errors included."""

    port: int
    mean_seconds: float
    p99_seconds: float
    error_ratio: float
    subject: str


@contextmanager
def stored(
    state: Path, scenario: Scenario, onset: int, told: bool = True, decide: Callable[[Tick], Vector] | None = None
) -> Iterator[Truth]:
    """A collector that knows the run, an incident i-1 of the first fault's instance, and, with `decide`, the decisions of who steered."""
    fleet, weights = Fleet(scenario), np.ones(len(scenario.instances))
    names = [f"n/{8080 + k}" for k in range(len(weights))]
    of = schema({"instance": (SEEN + (TOLD if told else ()), names)})
    begin_ns = (CLOCK.unix_ns() // SECOND_NS - scenario.seconds - 1) * SECOND_NS
    windows, decisions, latency, failed = [], [], [], []
    while not fleet.done:
        tick = fleet.step(weights)
        windows.append(_window(of, tick, scenario, begin_ns, told))
        if tick.second >= onset:
            latency.append(np.array(tick.answers["latency"]))
            failed.append(np.array(tick.answers["failed"]))
        if decide:
            last, weights = weights, decide(tick)
            if tick.second % 10 == 0 or (weights != last).any():
                decisions.append(_decision(names, weights, begin_ns + (tick.second + 1) * SECOND_NS - 1))
    subject = names[scenario.faults[0].instance]
    analysis = Recording()
    with collecting(state, analysis=analysis) as (collector, telemetry, query):
        publish(telemetry, of, *windows, node="n")
        since = begin_ns + onset * SECOND_NS
        analysis.journal.save_incident(_incident(subject, since, begin_ns + scenario.seconds * SECOND_NS))
        for decision in decisions:
            query.RecordDecision(decision)
        until(lambda: len(query.Incidents(q.IncidentsRequest()).incidents) == 1)
        every = np.concatenate(latency)
        yield Truth(
            collector.port, float(every.mean()), float(np.quantile(every, 0.99, method="inverted_cdf")),
            float(np.concatenate(failed).mean()), subject,
        )  # fmt: skip


def _window(of: Any, tick: Tick, scenario: Scenario, begin_ns: int, told: bool) -> Any:
    """A second as the kernel and the runtime tell of it."""
    n, answers, alone = len(scenario.instances), tick.answers, dict(zip(SIGNALS, tick.alone, strict=True))
    answered = np.bincount(answers["instance"][answers["instance"] >= 0], minlength=n)
    failed = np.bincount(answers["instance"][answers["instance"] >= 0], answers["failed"][answers["instance"] >= 0], n)
    workers = np.array([float(i.workers) for i in scenario.instances])
    values = [answered, failed, failed, alone["in_flight"], alone["queue"], workers]
    if told:
        known = np.where(answered > 0, answered, np.nan)
        service = alone["utilisation"] * workers / known
        values += [answered, service, np.maximum(0, alone["latency_seconds"] - service)]
    full = np.flatnonzero(answered).tolist()
    sketches = [of_seconds(np.array(answers["latency"][answers["instance"] == k])) for k in full]
    start_ns = begin_ns + tick.second * SECOND_NS
    return window(
        tick.second + 1,
        of,
        [values],
        sketches=[pack_sketches(0, "request_latency", "s", full, sketches)] if full else [],
        start_unix_ns=start_ns,
        start_boottime_ns=CLOCK.boottime_ns() - (CLOCK.unix_ns() - start_ns),
    )


def _incident(subject: str, since_ns: int, end_ns: int) -> q.Incident:
    return q.Incident(
        id="i-1", status=q.Incident.STATUS_RESOLVED, subject=subject, node="n", model="m", since_unix_ns=since_ns,
        opened_unix_ns=since_ns + TOLD_AFTER_SECONDS * SECOND_NS, resolved_unix_ns=end_ns, symptom="slow", score=0.9,
        causes=[q.Cause(subject=subject, mechanism="CPU contention", confidence=0.9)],
    )  # fmt: skip


def _decision(names: list[str], weights: Vector, unix_ns: int) -> q.Decision:
    told = [q.Weight(instance=n, model="m", wished=w, weight=w) for n, w in zip(names, weights.tolist(), strict=True)]
    return q.Decision(unix_ns=unix_ns, version=1, mode="active", policy="proportional", weights=told)
