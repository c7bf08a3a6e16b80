"""Scenarios that several tests share, and a way to run one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from trimtab.actuator.fleetsim.faults import KINDS, Fault
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import BALANCERS, Arrivals, Balancers, Instance, Scenario, Service


def run(scenario: Scenario, weights: Sequence[float] | None = None) -> tuple[Fleet, list[Tick]]:
    """All seconds under the same weights; neutral by default."""
    fleet = Fleet(scenario)
    even = np.ones(len(scenario.instances)) if weights is None else np.asarray(weights, dtype=float)
    return fleet, [fleet.step(even) for _ in range(scenario.seconds)]


def waits(ticks: Sequence[Tick]) -> np.ndarray:
    """Latencies in the order of arrival."""
    answers = np.concatenate([t.answers for t in ticks])
    return answers["latency"][np.argsort(answers["number"])]


services = st.builds(
    Service,
    mean_seconds=st.floats(0.002, 0.2),
    kind=st.sampled_from(("lognormal", "deterministic", "exponential", "quantiles")),
    quantiles_seconds=st.just((0.001, 0.01, 0.5)),
)
instances = st.builds(
    Instance,
    speed=st.floats(0.1, 4),
    workers=st.integers(1, 3),
    queue_max=st.integers(0, 20),
    batch_max=st.integers(1, 5),
    batch_delay_seconds=st.sampled_from((0.0, 0.01, 0.3)),
    batch_shared=st.floats(0, 1),
    joins_seconds=st.sampled_from((0.0, 0.0, 2.0)),
)
arrivals = st.builds(
    Arrivals,
    rate_per_second=st.floats(0, 300),
    kind=st.sampled_from(("poisson", "gamma", "bursty")),
    profile=st.sampled_from(((), (0.0, 2.0))),
)
balancers = st.builds(
    Balancers,
    name=st.sampled_from(BALANCERS),
    count=st.integers(1, 4),
    connections_max=st.sampled_from((0, 0, 1, 3)),
    in_turn=st.booleans(),
    outlier_ejection=st.booleans(),
)


@st.composite
def faults(draw: st.DrawFn, count: int) -> Fault:
    onset = draw(st.floats(0, 3))
    return Fault(
        instance=draw(st.integers(0, count - 1)),
        kind=draw(st.sampled_from(KINDS)),
        onset_seconds=onset,
        end_seconds=draw(st.sampled_from((onset + 1.3, float("inf")))),
        ratio=draw(st.floats(0, 1)),
        requests=draw(st.sampled_from((0, 7))),
    )


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """Anything, with everything in it."""
    fleet = draw(st.lists(instances, min_size=1, max_size=6))
    return Scenario(
        seed=draw(st.integers(0, 2**63 - 1)),
        seconds=6,
        arrivals=draw(arrivals),
        instances=tuple(fleet),
        service=draw(services),
        balancers=draw(balancers),
        faults=tuple(draw(st.lists(faults(len(fleet)), max_size=4))),
        in_flight_max=draw(st.sampled_from((5, 100_000))),
    )
