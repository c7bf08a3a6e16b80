"""How balancers choose: shares that weights promise, and the rules that HAProxy and Envoy are known to follow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.actuator.fleetsim.scenes import run
from trimtab.actuator.fleetsim import choose, layout, prequal, views
from trimtab.actuator.fleetsim.fleet import in_balancer_units
from trimtab.actuator.fleetsim.scenario import BALANCERS, Arrivals, Balancers, Instance, Scenario, Service, instances

FEW = settings(max_examples=60, deadline=None)
weights = st.lists(st.integers(1, 256), min_size=1, max_size=8)


def seen_by(name: str, given_weights: list[int], inflight: list[int] | None = None) -> layout.Fleet:
    """A fleet's tables with these weights in effect, before the first request."""
    n = len(given_weights)
    tables = layout.empty(Scenario(instances=instances([1] * n), balancers=Balancers(name)))
    tables.instances["base"] = given_weights
    if inflight is not None:
        tables.views["inflight"][0] = inflight
    views.refresh(tables, 0, 0.0)
    return tables


@FEW
@given(weights, st.integers(1, 300))
def test_round_robin_gives_each_its_share(given_weights: list[int], picks: int) -> None:
    """After any number of picks nobody is off its share by more than 2."""
    for name in ("round_robin", "envoy_round_robin"):
        tables = seen_by(name, given_weights)
        counts: Counter[int] = Counter()
        for _ in range(picks):
            if name == "round_robin":
                chosen = choose.round_robin(tables.views[0], tables.balancers, 0, 0)
            elif tables.balancers[0]["equal"]:
                chosen = choose.in_turn(tables.views[0], tables.balancers, 0)
            else:
                chosen = choose.earliest_deadline(tables.views[0], tables.balancers, 0, False)
            counts[chosen] += 1
        share = np.array(given_weights) / sum(given_weights)
        got = np.array([counts[i] for i in range(len(share))])
        # EDF may have begun anywhere within the first round of the schedule.
        slack = 2 if name == "round_robin" else 2 + len(share) * share
        assert (np.abs(got - picks * share) <= slack).all()


@pytest.mark.parametrize("name", ["round_robin", "envoy_round_robin"])
def test_weighted_round_robin_in_a_run(name: str) -> None:
    scenario = Scenario(seconds=60, arrivals=Arrivals(200), balancers=Balancers(name), service=Service(1e-4))
    fleet, _ = run(scenario, (1.0, 0.5, 0.25, 0.25))
    got = fleet.summary().by_instance
    assert np.abs(got / got.sum() - np.array([0.5, 0.25, 0.125, 0.125])).max() < 2e-3


def test_drawing_by_weight() -> None:
    """The plain twin: numpy's search in cumulative weights."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        given_weights = rng.integers(0, 5, size=rng.integers(1, 9))
        given_weights[rng.integers(len(given_weights))] = 3
        tables = seen_by("random", given_weights.tolist())
        u = rng.random()
        cumulative = np.cumsum(given_weights)
        assert choose.drawn(tables.views[0], u) == np.searchsorted(cumulative, u * cumulative[-1], side="right")


@FEW
@given(st.lists(st.tuples(st.integers(1, 256), st.integers(0, 9)), min_size=1, max_size=8))
def test_leastconn(servers: list[tuple[int, int]]) -> None:
    """HAProxy's key, in whole numbers; an idle server comes before all."""
    given_weights, inflight = zip(*servers, strict=True)
    tables = seen_by("leastconn", list(given_weights), list(inflight))
    keys = [(n + 1) * 4096 // (16 * w) if n else 0 for w, n in servers]
    assert keys[choose.leastconn(tables.views[0], 0)] == min(keys)


def test_leastconn_takes_who_waited_longest_of_equals() -> None:
    fleet, ticks = run(Scenario(seconds=20, arrivals=Arrivals(5), balancers=Balancers("leastconn")))
    assert fleet.summary().by_instance.max() - fleet.summary().by_instance.min() <= 6
    assert sum(t.arrived for t in ticks) > 60


def test_leastconn_does_not_heed_small_weights_of_idle_servers() -> None:
    """What was measured on HAProxy: weight 1 of 200 still drew 26 % of the requests."""
    scenario = Scenario(seconds=60, arrivals=Arrivals(20), balancers=Balancers("leastconn"))
    fleet, _ = run(scenario, (0.006, 1.0, 1.0, 1.0))
    share = fleet.summary().by_instance / fleet.summary().by_instance.sum()
    assert share[0] > 0.15
    fleet, _ = run(scenario, (0.005, 1.0, 1.0, 1.0))
    assert fleet.summary().by_instance[0] == 0


def test_random2_prefers_who_has_fewer_for_its_weight() -> None:
    tables = seen_by("random2", [256, 256, 128], [4, 1, 1])
    picks = Counter(choose.random2(tables.views[0], 0, 7, k) for k in range(20_000))
    # Instance 0 is chosen when both draws are it; 2 unless 1 is drawn.
    shares = np.array([picks[i] for i in range(3)]) / 20_000
    assert np.abs(shares - [0.16, 0.64, 0.2]).max() < 0.02


def test_least_request_with_equal_weights_is_power_of_two() -> None:
    tables = seen_by("envoy_least_request", [256] * 4, [3, 2, 1, 0])
    picks = Counter(choose.least_request(tables.views[0], tables.balancers, 0, 7, k) for k in range(20_000))
    shares = np.array([picks[i] for i in range(4)]) / 20_000
    assert np.abs(shares - np.array([1, 3, 5, 7]) / 16).max() < 0.02


def test_least_request_with_other_weights_counts_active_requests() -> None:
    """Weight 2 with one active request is due as often as weight 1 with none."""
    tables = seen_by("envoy_least_request", [200, 100], [1, 0])
    picks = Counter(choose.least_request(tables.views[0], tables.balancers, 0, 7, k) for k in range(1000))
    assert abs(picks[0] - 500) <= 2


def test_peak_ewma_remembers_a_peak() -> None:
    tables = seen_by("peak_ewma", [256, 256])
    view = tables.views[0]
    choose.heard(view, 0, 0.0, 0.5)
    choose.heard(view, 0, 0.0, 0.1)
    assert view[0]["ewma"] == 0.5
    assert choose.ewma_now(view, 0, 10.0) == pytest.approx(0.5 / np.e)
    choose.heard(view, 1, 10.0, 0.1)
    view["inflight"] = [1, 1]
    assert {choose.peak_ewma(view, tables.balancers, 0, 10.0, 7, k) for k in range(50)} == {1}
    view["inflight"] = [0, 9]
    assert {choose.peak_ewma(view, tables.balancers, 0, 10.0, 7, k) for k in range(50)} == {0}


def test_prequal_takes_the_cold_and_quick() -> None:
    pool = np.zeros(4, dtype=layout.PROBE)
    pool["rif"], pool["latency"] = [9, 1, 2, 8], [0.01, 0.3, 0.2, 0.05]
    assert prequal.best(pool, 4, hot=5) == 2
    assert prequal.worst(pool, 4, hot=5) == 0
    assert prequal.best(pool, 4, hot=1) == 1
    assert prequal.worst(pool, 4, hot=10) == 1


def test_hot_is_above_the_quantile() -> None:
    rng = np.random.default_rng(3)
    rifs = rng.integers(0, 20, size=100)
    counts = np.bincount(rifs, minlength=layout.RIF_BUCKETS)[None]
    hot = prequal.hot_from(counts, 0, 100)
    assert (rifs < hot).mean() >= prequal.Q_RIF > (rifs < hot - 1).mean()


@pytest.mark.parametrize("name", BALANCERS)
def test_equal_instances_get_alike(name: str) -> None:
    """And so it does not matter in which order they are listed."""
    fleet, _ = run(Scenario(seconds=120, arrivals=Arrivals(120), balancers=Balancers(name, count=2)))
    share = fleet.summary().by_instance / fleet.summary().by_instance.sum()
    assert np.abs(share - 0.25).max() < 0.02


@pytest.mark.parametrize(
    "name", ["leastconn", "random2", "central_queue", "envoy_least_request", "peak_ewma", "prequal"]
)
def test_who_looks_at_load_beats_who_does_not(name: str) -> None:
    """On the same requests, with one instance three times slower."""
    slow = {"instances": instances((1 / 3, 1, 1, 1)), "arrivals": Arrivals(120), "seconds": 200}
    looking, _ = run(Scenario(balancers=Balancers(name), **slow))
    blind, _ = run(Scenario(balancers=Balancers("random"), **slow))
    assert looking.summary().mean_seconds < blind.summary().mean_seconds


def test_orca_finds_the_speeds() -> None:
    """Weights from load reports: a server that is half as fast gets half as much."""
    scenario = Scenario(
        seconds=150,
        arrivals=Arrivals(150),
        instances=instances((0.5, 1, 1, 2)),
        service=Service(0.01),
        balancers=Balancers("orca_wrr"),
    )
    _, ticks = run(scenario)
    late = np.concatenate([t.answers["instance"] for t in ticks[50:]])
    share = np.bincount(late) / len(late)
    assert np.abs(share - np.array([0.5, 1, 1, 2]) / 4.5).max() < 0.03


def test_connections_are_limited_and_the_rest_waits_in_the_balancer() -> None:
    scenario = Scenario(
        seconds=30,
        arrivals=Arrivals(400),
        instances=(Instance(workers=4),) * 2,
        balancers=Balancers("leastconn", count=2, connections_max=3),
    )
    fleet, ticks = run(scenario)
    assert max(t.in_flight.max() for t in ticks) == 6
    assert fleet.summary().in_system > 12
    assert fleet.summary().errors == 0


def test_weights_are_written_as_the_actuator_writes_them() -> None:
    assert in_balancer_units(np.array([1.0, 0.5, 0.001, 0.0]), "random2").tolist() == [256, 128, 1, 0]
    assert in_balancer_units(np.array([1.0, 1.0]), "leastconn").tolist() == [256, 256]
    assert in_balancer_units(np.array([1.0, 0.005]), "leastconn").tolist() == [256, 0]
    assert in_balancer_units(np.array([0.0, 0.0]), "random2").tolist() == [1, 1]


def test_several_balancers_each_have_their_own_view() -> None:
    """In turn, each of two begins its own round with the first instance."""
    times = tuple(0.1 * (k + 1) for k in range(8))
    scenario = Scenario(
        seconds=2,
        arrivals=Arrivals(kind="recorded", times_seconds=times),
        balancers=Balancers("round_robin", count=2, in_turn=True),
    )
    _, ticks = run(scenario)
    answers = np.concatenate([t.answers for t in ticks])
    assert answers["instance"][np.argsort(answers["number"])].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
