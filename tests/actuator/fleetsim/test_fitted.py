"""A service time from a recorded sketch serves requests as the recorded ones were."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run, waits
from trimtab import TrimtabError
from trimtab.actuator.fleetsim.fitted import service_of
from trimtab.actuator.fleetsim.scenario import Arrivals, Instance, Scenario
from trimtab.agent.sketch.loglinear import of_seconds


def test_latencies_of_a_quiet_instance_come_back() -> None:
    recorded = np.random.default_rng(1).gamma(2, 0.01, size=50_000) + 0.005
    scenario = Scenario(
        seconds=200,
        arrivals=Arrivals(200),
        instances=(Instance(workers=64),),
        service=service_of(of_seconds(recorded)),
    )
    again = waits(run(scenario)[1])
    assert again.mean() == pytest.approx(recorded.mean(), rel=0.02)
    shares = (0.05, 0.5, 0.9, 0.99)
    assert np.quantile(again, shares) == pytest.approx(np.quantile(recorded, shares), rel=0.03)


def test_overhead_is_taken_away() -> None:
    service = service_of(of_seconds(np.full(100, 0.02)), overhead_seconds=0.005)
    assert service.expected_seconds == pytest.approx(0.015, rel=1 / 64)
    assert min(service_of(of_seconds(np.full(100, 0.02)), overhead_seconds=1.0).quantiles_seconds) == 0


def test_an_empty_sketch_is_refused() -> None:
    with pytest.raises(TrimtabError, match="sketch"):
        service_of(of_seconds(np.empty(0)))
