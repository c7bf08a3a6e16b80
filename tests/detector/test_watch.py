"""From windows to incidents, on simulated fleets: no false alarm, every fault, in time, and each one once."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.detector.faults import FAULTS, VICTIM, failing, hanging, signals, slow, together
from tests.detector.fleet import Fleet, Noise, Scene, Stage
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.columns import pack_values
from trimtab.detector.silent_cause import INPUT
from trimtab.rootcause.rank import Ranking

SECOND = 1_000_000_000


def many(fleets: int, instances: int, seed: int) -> Stage:
    """Many fleets at once: each is a node, with a model of its own."""
    return Stage(Fleet([(f"m{k}",) * instances for k in range(fleets)], seed=seed))


def delays(stage: Stage, victims: set[str]) -> list[float]:
    opened = {i.subject: (i.opened_unix_ns - stage.fleet.onset_ns) / SECOND for i in stage.incidents}
    return [opened.get(victim, math.inf) for victim in victims]


@pytest.mark.parametrize(("instances", "seconds_max"), [(4, 10), (2, 20), (1, 25)])
def test_slow_instances_are_found_and_healthy_ones_left_alone(instances: int, seconds_max: float) -> None:
    stage = many(12, instances, seed=11)
    stage.run(150)
    assert stage.incidents == []
    victims = {node.instances[0] for node in stage.fleet.nodes}
    stage.fleet.strike(slow(3, *victims))
    stage.run(30)
    found = delays(stage, victims)
    assert np.isfinite(found).all()
    assert np.mean(np.asarray(found) <= seconds_max) >= 0.9, sorted(found)
    assert {i.subject for i in stage.incidents} <= victims


def test_a_blip_opens_nothing() -> None:
    stage = many(10, 4, seed=3)
    stage.fleet.nodes[0].noise.blips_per_second = 0
    stage.run(60)
    for _ in range(4):
        stage.fleet.strike(slow(3, *(node.instances[1] for node in stage.fleet.nodes)))
        stage.run(3)
        stage.fleet.strike(None)
        stage.run(15)
    assert stage.incidents == []


def test_who_has_the_worst_of_a_fault_of_all_is_not_told_alone() -> None:
    stage = Stage(Fleet([("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(60)
    slow_disk = signals("n0", disk_await_seconds=0.08, psi_io_some_ratio=0.5)
    stage.fleet.strike(together(slow_disk, slow(4), slow(2, VICTIM)))
    stage.run(60)
    assert [i.subject for i in stage.incidents] == ["model a"]
    assert stage.incidents[0].causes[0].mechanism == "disk latency"


def test_who_is_ill_among_the_well_does_not_wait_for_them() -> None:
    stage = Stage(Fleet([("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(60)
    stage.fleet.strike(together(slow(1.2), slow(3, VICTIM)))
    stage.run(20)
    assert [i.subject for i in stage.incidents] == [VICTIM]


def test_all_together_is_one_incident_of_the_model_or_the_node() -> None:
    stage = Stage(Fleet([("a",) * 2, ("a",) * 2]))
    stage.run(60)
    stage.fleet.strike(slow(4))
    stage.run(60)
    assert [(i.subject, i.model) for i in stage.incidents] == [("model a", "a")]
    assert [i.incident for i in stage.state.instances] == [""] * 4

    stage = Stage(Fleet([("a", "b"), ("a", "b"), ("a", "b")]))
    stage.run(60)
    stage.fleet.strike(slow(4, *stage.fleet.nodes[1].instances))
    stage.run(60)
    assert [(i.subject, i.node) for i in stage.incidents] == [("n1", "n1")]
    assert {i.node for i in stage.state.instances if i.incident} == {"n1"}


def test_dead_workers_and_a_hanging_server_need_no_warm_up() -> None:
    for fault in (signals(VICTIM, math.inf, workers_ready=0, runtime_answers=1), hanging):
        stage = Stage(Fleet())
        stage.run(3)
        stage.fleet.strike(fault)
        stage.run(9)
        assert [i.subject for i in stage.incidents] == [VICTIM]
        state = next(i for i in stage.state.instances if i.id == VICTIM)
        assert (state.incident, state.score) == ("i-1", 1)


def test_an_instance_that_loads_its_model_is_not_dead() -> None:
    stage = Stage(Fleet())
    stage.fleet.strike(signals(VICTIM, math.inf, workers_ready=0))
    stage.run(40)
    assert stage.incidents == []


def test_errors_are_found_and_told() -> None:
    stage = Stage(Fleet())
    stage.run(60)
    stage.fleet.strike(failing)
    stage.run(9)
    (incident,) = stage.incidents
    assert incident.subject == VICTIM
    assert "of answers are errors (before 0%)" in incident.symptom


def drained(fault: object, share: float = 0.0) -> object:
    """The fault, and an actuator that takes the traffic away after ten seconds."""

    def both(scene: Scene, elapsed: float) -> None:
        fault(scene, elapsed)  # type: ignore[operator]
        if VICTIM in scene.load and elapsed > 10:
            scene.load[VICTIM] = share
            scene.signals[VICTIM] |= {"cpu_throttled_ratio": 0.0, "cpu_run_queue_ratio": 0.0, "cpu_used_cores": 0.01}

    return both


def test_a_quota_in_force_holds_the_incident_of_a_drained_instance() -> None:
    quota = together(slow(4, VICTIM), signals(VICTIM, cpu_limit_cores=0.2, cpu_throttled_ratio=0.7))
    stage = Stage(Fleet(), Ranking())
    stage.run(60)
    stage.fleet.strike(drained(quota))  # type: ignore[arg-type]
    stage.run(300)
    assert [(i.subject, i.status, i.reopened) for i in stage.incidents] == [(VICTIM, pb.Incident.STATUS_OPEN, 0)]
    stage.fleet.strike(None)
    stage.run(90)
    assert [i.status for i in stage.incidents] == [pb.Incident.STATUS_RESOLVED]


def test_a_trickle_of_errors_holds_it_too() -> None:
    stage = Stage(Fleet(), Ranking())
    stage.run(60)
    stage.fleet.strike(drained(failing, share=0.03))  # type: ignore[arg-type]
    stage.run(240)
    assert [(i.status, i.reopened) for i in stage.incidents] == [(pb.Incident.STATUS_OPEN, 0)]


def test_it_is_one_incident_through_restarts_and_relapses() -> None:
    stage = Stage(Fleet(), Ranking())
    stage.run(60)
    stage.fleet.strike(slow(4, VICTIM))
    stage.run(15)
    stage.restart()
    stage.run(60)
    assert [(i.id, i.status) for i in stage.incidents] == [("i-1", pb.Incident.STATUS_OPEN)]
    stage.fleet.strike(None)
    stage.run(90)
    assert [(i.id, i.status) for i in stage.incidents] == [("i-1", pb.Incident.STATUS_RESOLVED)]
    stage.run(40)
    stage.fleet.strike(slow(4, VICTIM))
    stage.run(15)
    assert [(i.id, i.status, i.reopened) for i in stage.incidents] == [("i-1", pb.Incident.STATUS_OPEN, 1)]


@pytest.mark.parametrize("seed", range(3))
def test_what_all_suffer_from_right_after_the_warm_up_is_not_learnt(seed: int) -> None:
    stage = Stage(Fleet((("m",) * 3,), seed=seed), Ranking())
    stage.run(33)
    stage.fleet.strike(slow(4))
    stage.run(60)
    assert [(i.subject, i.causes[0].mechanism) for i in stage.incidents] == [("model m", "model regression")]


def test_a_relapse_by_another_fault_is_explained_by_that() -> None:
    stage = Stage(Fleet(), Ranking())
    stage.run(60)
    stage.fleet.strike(FAULTS["cgroup CPU quota"])
    stage.run(30)
    stage.fleet.strike(None)
    stage.run(120)
    assert [(i.status, i.causes[0].mechanism) for i in stage.incidents] == [
        (pb.Incident.STATUS_RESOLVED, "cgroup CPU quota")
    ]
    stage.fleet.strike(FAULTS["network loss"])
    stage.run(30)
    (again,) = stage.incidents
    assert (again.status, again.reopened, again.causes[0].mechanism) == (pb.Incident.STATUS_OPEN, 1, "network loss")


def test_a_slow_fault_is_not_learnt() -> None:
    def creeping(scene: Scene, elapsed: float) -> None:
        if VICTIM in scene.slower:
            scene.slower[VICTIM] *= 1.01**elapsed

    stage = Stage(Fleet(noise=Noise(bursts_per_second=0, blips_per_second=0)))
    stage.run(60)
    stage.fleet.strike(creeping)
    stage.run(120)
    assert [i.subject for i in stage.incidents] == [VICTIM]


def test_stale_telemetry_says_nothing_of_the_instances() -> None:
    stage = Stage(Fleet())
    stage.run(60)
    stage.fleet.strike(slow(4, VICTIM))
    stage.run(3)
    for _ in range(60):
        stage.fleet.now_ns += SECOND
        state = stage.watch.tick(stage.fleet.now_ns)
    assert [i.subject for i in stage.incidents] == [INPUT]
    assert all(math.isnan(i.score) and i.age_seconds > 50 for i in state.instances)
    stage.fleet.now_ns += 700 * SECOND
    assert list(stage.watch.tick(stage.fleet.now_ns).instances) == []


def test_an_instance_that_is_gone_for_good_ends_its_incident() -> None:
    stage = Stage(Fleet())
    stage.run(60)
    stage.fleet.strike(slow(4, VICTIM))
    stage.run(15)
    for _ in range(1300):
        stage.fleet.now_ns += SECOND
        stage.watch.tick(stage.fleet.now_ns)
    assert [(i.subject, i.status) for i in stage.incidents] == [
        (VICTIM, pb.Incident.STATUS_RESOLVED),
        (INPUT, pb.Incident.STATUS_OPEN),
    ]


def test_the_runtimes_own_figures_serve_where_the_kernel_tells_none() -> None:
    def blind(scene: Scene, elapsed: float) -> None:
        slow(4, VICTIM)(scene, elapsed) if elapsed > 60 else None

    stage = Stage(Fleet())
    stage.fleet.strike(blind)
    for _ in range(75):
        for window in stage.fleet.step():
            table = next(k for k, t in enumerate(window.schema.tables) if t.subjects[0].id == VICTIM)
            series = [s.name for s in window.schema.tables[table].series]
            values = window.values[table].copy()
            values[series.index("requests_per_second")] = np.nan
            window.message.values[table] = pack_values(values)
            del window.message.sketches[:]
            stage.watch.observe([window])
        state = stage.watch.tick(stage.fleet.now_ns)
    assert [i.subject for i in stage.incidents] == [VICTIM]
    assert all(math.isnan(i.latency_p95_seconds) for i in state.instances)


def test_the_state_of_the_fleet_is_complete() -> None:
    stage = Stage(Fleet([("a", "a", "b")], gpus=True))
    stage.run(50)
    assert [i.id for i in stage.state.instances] == stage.fleet.instances
    for i in stage.state.instances:
        assert (i.node, list(i.addresses), i.incident, i.mechanism) == ("n0", [f"127.0.0.1:{i.id[3:]}"], "", "")
        assert 0.008 < i.latency_p50_seconds < i.latency_p95_seconds <= i.latency_p99_seconds < 0.2
        assert 8 < i.requests_per_second < 18
        assert 0 <= i.score < 0.9
        assert 0.4 < i.utilisation < 0.6
        assert i.workers == 2
        assert math.isnan(i.confidence)
        assert (i.error_ratio, round(i.in_flight + i.queue)) == (0, 0)
