"""Faults, each against arithmetic or a plain twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.fleetsim.scenes import run, waits
from trimtab.actuator.fleetsim import layout, progress
from trimtab.actuator.fleetsim.arrivals import Stream
from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service, instances

STEADY = {"service": Service(0.02, "deterministic"), "instances": instances([1]), "balancers": Balancers("round_robin")}


def at(*times: float) -> Arrivals:
    return Arrivals(kind="recorded", times_seconds=times)


def latencies(*times: float, seconds: int = 3, faults: tuple[Fault, ...] = (), **others: object) -> list[float]:
    """Of requests at these times to one instance that takes 20 ms."""
    _, ticks = run(Scenario(seconds=seconds, arrivals=at(*times), faults=faults, **(STEADY | others)))  # type: ignore[arg-type]
    return waits(ticks).round(9).tolist()


def test_slow_from_its_onset_to_its_end() -> None:
    fault = Fault(0, "slow", 1, 2, factor=3)
    expected = [0.02, 0.04, 0.06, 0.01 + 0.05 / 3, 0.02]
    assert latencies(0.5, 0.99, 1.5, 1.99, 2.5, faults=(fault,)) == pytest.approx(expected)


def test_stuck_serves_nothing_meanwhile() -> None:
    assert latencies(0.99, 1.5, faults=(Fault(0, "stuck", 1, 1.7),)) == pytest.approx([0.72, 0.23])


def test_stuck_for_ever() -> None:
    fleet, ticks = run(Scenario(seconds=8, arrivals=at(0.5, 1.5), faults=(Fault(0, "stuck", 1),), **STEADY))  # type: ignore[arg-type]
    assert (len(waits(ticks)), fleet.summary().in_system, ticks[-1].utilisation[0]) == (1, 1, 1.0)


def test_stuck_and_flapping_for_ever_ends() -> None:
    faults = (Fault(0, "stuck", 0), Fault(0, "flapping", 0))
    fleet, _ = run(Scenario(seconds=3, arrivals=at(0.5), faults=faults, **STEADY))  # type: ignore[arg-type]
    assert fleet.summary().in_system == 1


def test_flapping() -> None:
    fault = Fault(0, "flapping", 1, period_seconds=0.5, on_seconds=0.2, factor=4)
    assert latencies(0.9, 1.1, 1.3, 1.6, 1.69, faults=(fault,)) == pytest.approx(
        [0.02, 0.08, 0.02, 0.08, 0.01 + 0.0175]
    )


def test_quota() -> None:
    """20 ms of every 100: 50 ms of work that begin a period take 210 ms."""
    service = Service(0.05, "deterministic")
    fault = Fault(0, "quota", 1, quota_seconds=0.02, period_seconds=0.1)
    assert latencies(0.1, 1.0, 1.95, faults=(fault,), service=service) == pytest.approx(
        [0.05, 0.21, 0.02 + 0.03 + 0.1 + 0.01]
    )


def test_cold_start_by_requests_and_by_time() -> None:
    few = Fault(0, "cold_start", 1, factor=5, requests=2)
    assert latencies(0.5, 1.0, 1.2, 1.4, faults=(few,)) == pytest.approx([0.02, 0.1, 0.1, 0.02])
    while_new = Fault(0, "cold_start", 1, 1.3, factor=5)
    assert latencies(0.5, 1.0, 1.2, 1.4, faults=(while_new,)) == pytest.approx([0.02, 0.1, 0.1, 0.02])


def test_fail_fast_looks_idle_and_draws_requests() -> None:
    fault = Fault(0, "fail_fast", 0)
    scenario = Scenario(seconds=200, arrivals=Arrivals(120), balancers=Balancers("leastconn"), faults=(fault,))
    outcome = run(scenario)[0].summary()
    assert outcome.errors == outcome.by_instance[0]
    assert outcome.error_ratio > 0.3
    blind = Scenario(seconds=200, arrivals=Arrivals(120), balancers=Balancers("round_robin"), faults=(fault,))
    assert run(blind)[0].summary().error_ratio == pytest.approx(0.25, abs=1e-3)
    some = Scenario(
        seconds=200,
        arrivals=Arrivals(120),
        balancers=Balancers("round_robin"),
        faults=(Fault(0, "fail_fast", ratio=0.3),),
    )
    assert run(some)[0].summary().error_ratio == pytest.approx(0.075, abs=0.01)


def test_outliers_are_ejected() -> None:
    """One that only fails is out but for 5 errors every 30 s and more; one that fails now and then mostly stays."""
    scene = {"seconds": 100, "arrivals": Arrivals(120)}
    ejecting = Balancers("random2", outlier_ejection=True)
    always = run(Scenario(balancers=ejecting, faults=(Fault(0, "fail_fast", 5),), **scene))[0].summary()  # type: ignore[arg-type]
    assert 5 <= always.errors <= 40
    some = run(Scenario(balancers=ejecting, faults=(Fault(0, "fail_fast", 5, ratio=0.3),), **scene))[0].summary()  # type: ignore[arg-type]
    assert some.error_ratio > 0.02


def test_success_rate_outliers_need_five_hosts() -> None:
    """Consecutive errors miss 40 % errors mostly; the success rate finds them within a sweep or two."""
    fault = (Fault(0, "fail_fast", 0, ratio=0.4),)
    found = {}
    for count in (4, 10):
        scenario = Scenario(
            seconds=29,
            arrivals=Arrivals(30 * count),
            instances=instances([1] * count),
            balancers=Balancers("random2", outlier_ejection=True),
            faults=fault,
        )
        _, ticks = run(scenario)
        late = np.concatenate([t.answers for t in ticks[21:]])
        found[count] = (late["instance"] == 0).mean() * count
    assert found[10] == 0


def test_a_full_queue_refuses_at_once() -> None:
    short = (Instance(queue_max=2),)
    assert latencies(1.0, 1.001, 1.002, 1.003, 1.004, instances=short) == pytest.approx([0.02, 0.039, 0.058, 0, 0])
    fleet, _ = run(Scenario(seconds=3, arrivals=at(*np.linspace(1, 1.01, 5)), **(STEADY | {"instances": short})))  # type: ignore[arg-type]
    assert (fleet.summary().errors, fleet.summary().refused) == (2, 0)


def test_batches_fill_or_wait() -> None:
    """Four at most, 0.1 s at most; the shared part of the work is done once."""
    batching = (Instance(batch_max=4, batch_delay_seconds=0.1, batch_shared=0.5),)
    alone = latencies(1.0, instances=batching)
    assert alone == pytest.approx([0.12])
    # The fourth fills the batch, which takes 0.5 * 20 + 0.5 * 80 ms; the fifth waits for it, and then for others.
    full = latencies(1.0, 1.01, 1.02, 1.03, 1.04, instances=batching)
    assert full == pytest.approx([0.08, 0.07, 0.06, 0.05, 0.04 + 0.1 + 0.02])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.floats(0, 0.2), st.integers(0, 1000))
def test_a_batch_never_exceeds_its_size(batch_max: int, delay: float, seed: int) -> None:
    """Requests of one batch finish at one instant."""
    batching = (Instance(batch_max=batch_max, batch_delay_seconds=delay, queue_max=1000),)
    scenario = Scenario(seed=seed, seconds=8, arrivals=Arrivals(150), instances=batching)
    fleet, ticks = run(scenario)
    arrived = np.cumsum([t.arrived for t in ticks])
    stream = Stream(scenario.arrivals, scenario.seed)
    times = np.concatenate([stream.second(k) for k in range(8)])
    answers = np.concatenate([t.answers for t in ticks])
    finished = (times[answers["number"]] + answers["latency"]).round(9)
    assert np.unique(finished, return_counts=True)[1].max(initial=0) <= batch_max
    assert fleet.summary().requests <= arrived[-1]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_finish_against_small_steps(data: st.DataObject) -> None:
    """The plain twin walks in steps of 50 µs."""
    kinds = data.draw(
        st.lists(st.sampled_from(("slow", "stuck", "flapping", "cold_start", "quota")), max_size=3, unique=True)
    )
    faults = tuple(
        Fault(
            0,
            kind,
            (onset := data.draw(st.integers(0, 20)) / 20),
            onset + data.draw(st.integers(1, 20)) / 20,
            factor=2.5,
        )
        for kind in kinds
    )
    tables = layout.empty(Scenario(instances=instances([1.5]), faults=faults))
    start, work = data.draw(st.floats(0, 1)), data.draw(st.floats(0.001, 0.3))
    done = progress.finish(tables.instances, tables.workers, tables.faults, 0, start, work)
    assert done == pytest.approx(_small_steps(faults, start, work), abs=4e-3)


def _small_steps(faults: tuple[Fault, ...], start: float, work: float, speed: float = 1.5, step: float = 5e-5) -> float:
    t, left, used, period = start, work, 0.0, -1
    while left > 0:
        rate, allowed = speed, True
        for f in faults:
            if not f.onset_seconds <= t < f.end_seconds:
                continue
            if f.kind in {"slow", "cold_start"} or (
                f.kind == "flapping" and (t - f.onset_seconds) % f.period_seconds < f.on_seconds
            ):
                rate /= f.factor
            elif f.kind == "stuck":
                allowed = False
            elif f.kind == "quota":
                if math.floor(t / f.period_seconds) != period:
                    period, used = math.floor(t / f.period_seconds), 0.0
                allowed = allowed and used < f.quota_seconds
        if allowed:
            left -= rate * step
            used += step
        t += step
    return t
