"""What a scenario may not hold, and what an outcome says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run, waits
from trimtab import TrimtabError
from trimtab.actuator.cost import ERROR_COST
from trimtab.actuator.fleetsim.faults import Fault, TelemetryFault
from trimtab.actuator.fleetsim.fleet import Fleet
from trimtab.actuator.fleetsim.outcome import Ledger
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service, instances

NAN, INF = math.nan, math.inf
WRONG: list[tuple[str, Callable[[], Any]]] = [
    ("seed", lambda: Scenario(seed=-1)),
    ("seconds", lambda: Scenario(seconds=0)),
    ("overhead_seconds", lambda: Scenario(overhead_seconds=NAN)),
    ("instances", lambda: Scenario(instances=())),
    ("instances", lambda: Scenario(instances=instances([1] * 1001))),
    ("instances[1].speed", lambda: Scenario(instances=instances((1, 0)))),
    ("instances[0].workers", lambda: Scenario(instances=(Instance(workers=65),))),
    ("instances[0].batch_shared", lambda: Scenario(instances=(Instance(batch_shared=1.1),))),
    ("arrivals.rate_per_second", lambda: Scenario(arrivals=Arrivals(INF))),
    ("arrivals.kind", lambda: Scenario(arrivals=Arrivals(kind="steady"))),
    ("arrivals.times_seconds", lambda: Scenario(arrivals=Arrivals(kind="recorded"))),
    ("arrivals.times_seconds", lambda: Scenario(arrivals=Arrivals(kind="recorded", times_seconds=(2.0, 1.0)))),
    ("arrivals.profile", lambda: Scenario(arrivals=Arrivals(profile=(1.0, NAN)))),
    ("service.mean_seconds", lambda: Scenario(service=Service(0))),
    ("service.quantiles_seconds", lambda: Scenario(service=Service(kind="quantiles"))),
    ("balancers.name", lambda: Scenario(balancers=Balancers("first"))),
    ("balancers.count", lambda: Scenario(balancers=Balancers(count=9))),
    ("faults[0].instance", lambda: Scenario(faults=(Fault(4, "slow"),))),
    ("faults[0].kind", lambda: Scenario(faults=(Fault(0, "odd"),))),
    ("faults[0].end_seconds", lambda: Scenario(faults=(Fault(0, "slow", 5, 5),))),
    ("faults[0].end_seconds", lambda: Scenario(faults=(Fault(0, "slow", 5, NAN),))),
    ("faults[0].factor", lambda: Scenario(faults=(Fault(0, "slow", factor=NAN),))),
    ("faults[0].on_seconds", lambda: Scenario(faults=(Fault(0, "flapping", on_seconds=0.2),))),
    ("telemetry_faults[0].kind", lambda: Scenario(telemetry_faults=(TelemetryFault(0, "gone"),))),
    ("telemetry_faults[0].signal", lambda: Scenario(telemetry_faults=(TelemetryFault(0, "lying", signal="x"),))),
    (
        "telemetry_faults[0].late_seconds",
        lambda: Scenario(telemetry_faults=(TelemetryFault(0, "late", late_seconds=999),)),
    ),
    ("weights", lambda: Fleet(Scenario()).step([1, 1, 1])),
    ("weights", lambda: Fleet(Scenario()).step([1, 1, 1, NAN])),
    ("weights", lambda: Fleet(Scenario()).step([1, 1, 1, 1.01])),
    ("weights", lambda: Fleet(Scenario()).step([1, 1, 1, -0.1])),
]


@pytest.mark.parametrize(("field", "make"), WRONG, ids=[f"{k}-{w[0]}" for k, w in enumerate(WRONG)])
def test_the_impossible_is_refused_in_one_line_that_names_it(field: str, make: Callable[[], Any]) -> None:
    with pytest.raises(TrimtabError) as refused:
        make()
    assert str(refused.value).startswith(field)
    assert "\n" not in str(refused.value)


def test_a_scenario_is_over_when_it_is_over() -> None:
    fleet = Fleet(Scenario(seconds=1))
    fleet.step([1, 1, 1, 1])
    assert fleet.done
    with pytest.raises(TrimtabError, match="is over"):
        fleet.step([1, 1, 1, 1])


def test_load() -> None:
    assert Scenario(arrivals=Arrivals(120), service=Service(0.02)).load == pytest.approx(0.6)


def test_an_outcome_is_of_all_requests() -> None:
    scenario = Scenario(
        seconds=30,
        arrivals=Arrivals(150),
        faults=(Fault(0, "fail_fast", ratio=0.5),),
        overhead_seconds=0.003,
        slo_seconds=0.06,
    )
    fleet, ticks = run(scenario)
    answers = np.concatenate([t.answers for t in ticks])
    fine = answers["latency"][answers["failed"] == 0]
    outcome = fleet.summary()
    assert outcome.requests == len(answers)
    assert outcome.errors == len(answers) - len(fine)
    assert outcome.mean_seconds == pytest.approx(fine.mean())
    assert (outcome.p50_seconds, outcome.p99_seconds) == pytest.approx(tuple(np.quantile(fine, (0.5, 0.99))))
    assert outcome.goodput == pytest.approx((fine <= 0.06).sum() / len(answers))
    assert waits(ticks).min() >= 0.003
    last = ticks[-1].answers
    expected = last["latency"].mean() * (1 + ERROR_COST * last["failed"].mean())
    assert ticks[-1].cost_seconds == outcome.cost_seconds[-1] == pytest.approx(expected)


def test_quantiles_beyond_the_limit_are_of_a_sample() -> None:
    ledger = Ledger(1, 1.0, seed=1, latencies_max=2000)
    rng = np.random.default_rng(1)
    for _ in range(40):
        seconds = rng.random(500)
        ledger.add(seconds, np.zeros(500), np.zeros(500, dtype=int))
    outcome = ledger.outcome(0, 0)
    assert outcome.requests == 20_000
    assert outcome.p50_seconds == pytest.approx(0.5, abs=0.04)
    assert outcome.p99_seconds == pytest.approx(0.99, abs=0.01)


def test_nothing_happened_is_unknown_and_not_zero() -> None:
    fleet, ticks = run(Scenario(seconds=2, arrivals=Arrivals(0)))
    assert math.isnan(fleet.summary().mean_seconds)
    assert math.isnan(fleet.summary().error_ratio)
    assert np.isnan(ticks[0].latency_seconds).all()
    assert np.isnan(ticks[0].error_ratio).all()
    assert (ticks[0].requests_per_second == 0).all()
