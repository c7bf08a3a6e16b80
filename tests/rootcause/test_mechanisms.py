"""Every mechanism is found when its signals move: on the right subject, in one incident, at the right time."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.detector.faults import CARD, FAULTS, NEIGHBOUR, NODE, VICTIM, signals, together
from tests.detector.fleet import Fault, Fleet, Noise, Scene, Stage
from trimtab.detector import drift_cause
from trimtab.detector.history import INSTANCE, History
from trimtab.detector.silent_cause import NO_INPUT, NODE_SILENT, PLACE_SILENT
from trimtab.detector.topology import Topology
from trimtab.rootcause import dependency
from trimtab.rootcause.case import Case
from trimtab.rootcause.fit import Fit, beside
from trimtab.rootcause.rank import Ranking
from trimtab.rootcause.signatures import SIGNATURES, Sign, Signature

SUBJECTS = {"traffic surge": "model a", "model regression": "model a"}
CAUSE_SUBJECTS = {
    "CPU contention": NODE,
    "memory pressure": NODE,
    "out of memory": NODE,
    "disk latency": NODE,
    "noisy neighbour": NEIGHBOUR,
}


def struck(mechanism: str) -> Stage:
    # Without blips, one of which just before the fault would be its beginning for anybody who looks at the course.
    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(45)
    assert stage.incidents == []
    stage.fleet.strike(FAULTS[mechanism])
    stage.run(36 if mechanism in SUBJECTS else 16)
    return stage


def untold(fault: Fault) -> Fault:
    """The same, of a runtime that does not count its errors."""

    def both(scene: Scene, elapsed: float) -> None:
        scene.tells_errors = False
        fault(scene, elapsed)

    return both


def test_errors_that_only_the_kernel_sees_are_found() -> None:
    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.fleet.strike(untold(lambda scene, elapsed: None))
    stage.run(45)
    stage.fleet.strike(untold(FAULTS["fail-fast errors"]))
    stage.run(16)
    (incident,) = stage.incidents
    assert incident.subject == VICTIM
    assert incident.causes[0].mechanism == "fail-fast errors"


@pytest.mark.parametrize(("await_seconds", "mechanism"), [(0.006, "disk latency"), (0.0004, "unknown")])
def test_a_solid_state_disk_is_slow_long_before_ten_milliseconds(await_seconds: float, mechanism: str) -> None:
    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.fleet.strike(signals(NODE, disk_await_seconds=0.0001))
    stage.run(45)
    stage.fleet.strike(signals(NODE, 3, disk_await_seconds=await_seconds))
    stage.run(16)
    assert stage.incidents[0].causes[0].mechanism == mechanism


@pytest.mark.parametrize("mechanism", FAULTS)
def test_mechanism_is_named(mechanism: str) -> None:
    stage = struck(mechanism)
    (incident,) = stage.incidents
    assert incident.subject == SUBJECTS.get(mechanism, VICTIM)
    cause = incident.causes[0]
    assert cause.mechanism == mechanism, [(c.mechanism, c.confidence) for c in incident.causes]
    assert 0 < cause.confidence < 1
    assert cause.summary
    assert cause.remedy
    if mechanism.startswith(("GPU", "ECC", "row", "XID", "PCIe", "NVLink")):
        assert cause.subject == CARD
    assert cause.subject == CAUSE_SUBJECTS.get(mechanism, cause.subject)
    # A burst that all of them had just before cannot be told from what all of them have now.
    blur = 6e9 if mechanism in SUBJECTS else 3e9
    assert abs(incident.since_unix_ns - stage.fleet.onset_ns) <= blur


@pytest.mark.parametrize(
    "mechanism", ["cgroup CPU quota", "GPU thermal throttling", "network loss", "fail-fast errors"]
)
def test_evidence_can_be_checked(mechanism: str) -> None:
    stage = struck(mechanism)
    evidence = stage.incidents[0].causes[0].evidence[0]
    assert evidence.before != evidence.after
    assert abs(evidence.deviation) >= 4
    assert abs(evidence.changed_unix_ns - stage.fleet.onset_ns) <= 3e9
    assert len(evidence.course) == 60
    before, after = np.nanmedian(evidence.course[:29]), np.nanmedian(evidence.course[32:])
    assert abs(after - evidence.after) < abs(after - evidence.before)
    assert abs(before - evidence.before) < abs(before - evidence.after)
    if mechanism == "cgroup CPU quota":
        assert (evidence.signal, evidence.unit, round(evidence.peers)) == ("cpu_limit_cores", "cores", 4)


def test_what_moved_on_healthy_peers_alike_explains_nothing() -> None:
    def everywhere(scene: Scene, elapsed: float) -> None:
        FAULTS["unknown"](scene, elapsed)
        for subject, values in scene.signals.items():
            if "cpu_run_queue_ratio" in values and subject.startswith("n"):
                values["cpu_run_queue_ratio"] = 0.6

    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(45)
    stage.fleet.strike(everywhere)
    stage.run(20)
    assert [c.mechanism for c in stage.incidents[0].causes] == ["unknown"]


def surging(errors: float, everywhere: bool) -> str:
    """What is told when the victim fails, and gets eight times the requests: alone, or as all do."""

    def fault(scene: Scene, elapsed: float) -> None:
        for instance in scene.load:
            if everywhere or instance == VICTIM:
                scene.load[instance] *= 8
                scene.signals[instance]["queue_depth"] = 40.0
        if VICTIM in scene.failing:
            scene.failing[VICTIM] = errors

    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(60)
    stage.fleet.strike(fault)
    stage.run(20)
    return stage.incidents[0].causes[0].mechanism


def test_errors_under_a_surge_of_all_are_the_surge() -> None:
    assert surging(0.6, everywhere=True) == "traffic surge"


def test_errors_that_draw_requests_are_fail_fast() -> None:
    assert surging(0.6, everywhere=False) == "fail-fast errors"


def test_the_unknown_is_told_with_what_stepped_beyond_its_own_steps() -> None:
    def fault(scene: Scene, elapsed: float) -> None:
        FAULTS["unknown"](scene, elapsed)
        if VICTIM in scene.signals:
            # No mechanism is about either. The memory moves farther, but it does so all the time.
            scene.signals[VICTIM] |= {"threads": 90.0, "memory_resident_bytes": 4e9}

    def wandering(scene: Scene, elapsed: float) -> None:
        if VICTIM in scene.signals and int(elapsed) % 24 < 12:
            scene.signals[VICTIM]["memory_resident_bytes"] = 3e9

    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.fleet.strike(wandering)
    stage.run(60)
    stage.fleet.strike(fault)
    stage.run(20)
    (cause,) = stage.incidents[0].causes
    assert (cause.mechanism, cause.evidence[0].signal) == ("unknown", "threads")


def test_a_missing_signal_is_no_movement() -> None:
    def blind(scene: Scene, elapsed: float) -> None:
        FAULTS["unknown"](scene, elapsed)
        for values in scene.signals.values():
            for name in ("throttle_thermal", "cpu_limit_cores", "workers_ready", "pcie_width", "runtime_answers"):
                if name in values:
                    values[name] = float("nan")

    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(45)
    stage.fleet.strike(blind)
    stage.run(20)
    assert [c.mechanism for c in stage.incidents[0].causes] == ["unknown"]


@pytest.mark.parametrize(("degraded", "told"), [((0, 1), "1 of 2 others"), ((0,), "0 of 2 others")])
def test_gpus_that_share_a_root_port_are_told_of(degraded: tuple[int, ...], told: str) -> None:
    def fault(scene: Scene, elapsed: float) -> None:
        FAULTS["unknown"](scene, elapsed)
        for number in degraded:
            if (card := f"n0/gpu/GPU-{number}") in scene.signals:
                scene.signals[card]["pcie_width"] = 4.0

    root = {"pcie_root": "0000:40:01.1"}
    cards = {f"n0/gpu/GPU-{number}": root for number in range(3)} | {"n0/gpu/GPU-3": {"pcie_root": "0000:80:01.1"}}
    fleet = Fleet([("a",) * 4, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0), labels=cards)
    stage = Stage(fleet, Ranking())
    stage.run(45)
    stage.fleet.strike(fault)
    stage.run(16)
    cause = stage.incidents[0].causes[0]
    assert (cause.mechanism, cause.subject) == ("PCIe degraded", CARD)
    assert f"; the same on {told} below root port 0000:40:01.1" in cause.summary
    assert [e.subject for e in cause.evidence if e.signal == "pcie_width"] == [f"n0/gpu/GPU-{n}" for n in degraded]


def causes_of(fault: Fault) -> dict[str, float]:
    """What is told of an instance, by confidence."""
    stage = Stage(Fleet([("a",) * 3, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(45)
    stage.fleet.strike(fault)
    stage.run(20)
    (incident,) = stage.incidents
    assert incident.subject == VICTIM
    return {cause.mechanism: cause.confidence for cause in incident.causes}


QUOTA, HOG = FAULTS["cgroup CPU quota"], signals(NODE, cpu_other_cores=2.4)
PRESSURE = signals(NODE, psi_cpu_some_ratio=0.5)


def test_waiting_for_a_cpu_that_a_quota_explains_is_no_second_cause() -> None:
    alone = causes_of(QUOTA)
    assert alone.keys() == {"cgroup CPU quota"}
    assert causes_of(together(QUOTA, PRESSURE)) == alone


def test_a_hog_beside_a_quota_is_told_as_surely_as_without() -> None:
    hog, both = causes_of(together(FAULTS["CPU contention"], PRESSURE)), causes_of(together(QUOTA, HOG, PRESSURE))
    assert list(both) == ["cgroup CPU quota", "CPU contention"]
    assert hog["CPU contention"] == pytest.approx(0.9)
    # What the quota explains, the pressure, makes the hog no surer.
    assert both["CPU contention"] == pytest.approx(0.85, abs=0.005)


def test_a_clock_that_heat_explains_is_no_fault_of_the_board() -> None:
    assert causes_of(FAULTS["GPU thermal throttling"]).keys() == {"GPU thermal throttling"}
    assert "GPU hardware slowdown" in causes_of(FAULTS["GPU hardware slowdown"])


@st.composite
def fits(draw: st.DrawFn) -> list[Fit]:
    names = "abcd"
    case = Case(History(180), Topology(), VICTIM, 0)
    still: Any = (None, None)

    def fit() -> Fit:
        entails = frozenset(draw(st.sets(st.sampled_from(names))))
        confidence = draw(st.floats(0.5, 0.95))
        signature = Signature("m", confidence, (), summary="", remedy="", entails=entails)
        leads, supports = (draw(st.lists(st.sampled_from(names), min_size=n)) for n in (1, 0))
        found = [[(Sign(INSTANCE, name, 1, 1.0), still) for name in some] for some in (leads, supports)]
        return Fit(case, signature, [], found[0], [], found[1])

    return [fit() for _ in range(draw(st.integers(1, 4)))]


@given(fits())
def test_what_others_explain_never_makes_surer_and_leaves_the_surest_alone(some: list[Fit]) -> None:
    before, after = [fit.confidence() for fit in some], [beside(fit, some) for fit in some]
    assert all(0 <= now <= then for then, now in zip(before, after, strict=True))
    if before.count(max(before)) == 1:
        assert max(after) == max(before)
    for fit, then, now in zip(some, before, after, strict=True):
        explained = frozenset().union(*(one.signature.entails for one in some if one is not fit))
        if fit.confidence(explained) == then:
            assert now == then


def bridged(*ends: int, joined: Mapping[int, dict[str, str]]) -> Stage:
    """Four instances on a GPU each, of which those at these `ends` lose NVLinks and are slower; `joined`: labels by GPU."""

    def fault(scene: Scene, elapsed: float) -> None:
        for number in ends:
            if (instance := f"n0/{8080 + 10 * number}") in scene.slower:
                scene.slower[instance] *= 3
                scene.signals[f"n0/gpu/GPU-{number}"]["nvlink_links_up"] = 17.0

    cards = {f"n0/gpu/GPU-{k}": {"pci": f"0000:4{k}:00"} | joined.get(k, {}) for k in range(4)}
    fleet = Fleet([("a",) * 4, ("a",) * 3], seed=5, gpus=True, noise=Noise(blips_per_second=0), labels=cards)
    stage = Stage(fleet, Ranking())
    stage.run(45)
    stage.fleet.strike(fault)
    stage.run(30)
    return stage


SWITCHED = {k: {"nvlink_switches": "0000:c5:00,0000:c6:00"} for k in range(3)}
# That the second knows of the link is enough.
JOINED = {1: {"nvlink_gpus": "0000:40:00"}}


@pytest.mark.parametrize(
    ("joined", "told"),
    [
        (JOINED, "; the same on 1 of 1 other joined to it by NVLink"),
        (SWITCHED, "; the same on 1 of 2 others on NVSwitch 0000:c5:00, 0000:c6:00"),
    ],
)
def test_a_fault_of_what_nvlink_joins_is_one_incident(joined: dict[int, dict[str, str]], told: str) -> None:
    stage = bridged(0, 1, joined=joined)
    (incident,) = stage.incidents
    cause = incident.causes[0]
    other = {VICTIM: "n0/gpu/GPU-1", NEIGHBOUR: CARD}[incident.subject]
    assert cause.mechanism == "NVLink degraded"
    assert told in cause.summary
    assert other in [e.subject for e in cause.evidence]
    # Who has no incident of his own is known to be part of it, and is well again by itself.
    of = {one.id: one.incident for one in stage.state.instances}
    assert of[VICTIM] == of[NEIGHBOUR] == incident.id
    stage.fleet.strike(None)
    stage.run(180)
    assert {one.incident for one in stage.state.instances} == {""}
    assert len(stage.incidents) == 1


def test_what_is_left_ill_when_the_other_end_is_well_is_told() -> None:
    stage = bridged(0, 1, joined=JOINED)
    told = stage.incidents[0].subject
    left = {VICTIM: 1, NEIGHBOUR: 0}[told]

    def half(scene: Scene, elapsed: float) -> None:
        if f"n0/gpu/GPU-{left}" in scene.signals:
            scene.slower[f"n0/{8080 + 10 * left}"] *= 3
            scene.signals[f"n0/gpu/GPU-{left}"]["nvlink_links_up"] = 17.0

    stage.fleet.strike(half)
    stage.run(180)
    assert [incident.subject for incident in stage.incidents] == [told, f"n0/{8080 + 10 * left}"]


def test_gpus_that_nothing_joins_have_faults_of_their_own() -> None:
    stage = bridged(0, 1, joined={})
    assert {incident.subject for incident in stage.incidents} == {VICTIM, NEIGHBOUR}
    assert not any("joined" in incident.causes[0].summary for incident in stage.incidents)


def test_every_mechanism_is_documented() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "rootcause.md").read_text()
    known = {s.mechanism for s in SIGNATURES} | {"noisy neighbour", "model regression", "unknown"}
    assert known == set(FAULTS)
    others = {dependency.MECHANISM, drift_cause.MECHANISM, NODE_SILENT, PLACE_SILENT, NO_INPUT}
    assert set(re.findall(r"^### (.+)$", page, re.MULTILINE)) == known | others


def test_a_cause_that_is_nearly_proved_is_told_sooner() -> None:
    seconds = {}
    for mechanism in ("cgroup CPU quota", "unknown"):
        stage = struck(mechanism)
        seconds[mechanism] = (stage.incidents[0].opened_unix_ns - stage.fleet.onset_ns) / 1e9
    assert seconds["cgroup CPU quota"] <= seconds["unknown"] - 2


def test_a_server_that_is_stopped_in_bursts_is_stalled() -> None:
    def bursts(scene: Scene, elapsed: float) -> None:
        FAULTS["unknown"](scene, elapsed)
        if VICTIM in scene.signals and elapsed % 3 < 1:
            scene.signals[VICTIM]["processes_stopped"] = 2.0

    stage = Stage(Fleet([("a",) * 3], seed=5, noise=Noise(blips_per_second=0)), Ranking())
    stage.run(45)
    stage.fleet.strike(bursts)
    stage.run(16)
    assert stage.incidents[0].causes[0].mechanism == "server stalled"
