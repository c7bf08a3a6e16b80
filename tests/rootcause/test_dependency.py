"""Instances that call others: the callee is blamed, one fault is one incident, and whose own fault it is has its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector.fleet import Fault, Fleet, Noise, Scene, Stage
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.calls import pack
from trimtab.rootcause.dependency import MECHANISM
from trimtab.rootcause.rank import Ranking

FRONT, OTHER_FRONT = ("n0/8080", "n0/8090"), ("n1/8080",)
BERT = "n2/8080"
PEERS = ("n2/8090", "n2/8100")
CALLS = dict.fromkeys((*FRONT, *OTHER_FRONT), (BERT,))
"""Three instances of "front" on two nodes call one of the three of "bert" on a third."""


def stage(calls: Mapping[str, Sequence[str]], nodes: Sequence[Sequence[str]], seed: int = 5) -> Stage:
    """The instances that call each other do so over addresses of their own; each gets a request for every one of its callers."""
    found = [f"n{k}/{8080 + 10 * i}" for k, models in enumerate(nodes) for i in range(len(models))]
    where = {i: f"10.0.{i[1]}.1:{i.partition('/')[2]}" for i in found}
    labels = {i: {"addresses": where[i], **pack([where[c] for c in calls.get(i, ())])} for i in found}
    quiet = Noise(blips_per_second=0, bursts_per_second=0)
    fleet = Fleet(nodes, seed=seed, noise=quiet, labels=labels)
    strike = fleet.strike

    def with_load(fault: Fault) -> None:
        def both(scene: Scene, elapsed: float) -> None:
            for instance in scene.load:
                scene.load[instance] = max(1.0, sum(instance in callees for callees in calls.values()))
            fault(scene, elapsed)

        strike(both)

    fleet.strike = with_load  # type: ignore[assignment, method-assign]
    fleet.strike(lambda scene, elapsed: None)
    return Stage(fleet, Ranking())


def fronted(calls: Mapping[str, Sequence[str]] = CALLS) -> Stage:
    return stage(calls, [("front", "front"), ("front", "other"), ("bert", "bert", "bert")])


def waiting(callers: Sequence[str], added: float, fault: Fault) -> Fault:
    """Requests to these take longer by `added` times the usual service time: as long as they wait for whom they call."""

    def both(scene: Scene, elapsed: float) -> None:
        for caller in callers:
            if caller in scene.slower:
                scene.slower[caller] += added
        fault(scene, elapsed)

    return both


QUOTA = {"cpu_limit_cores": 0.2, "cpu_throttled_ratio": 0.7, "cpu_run_queue_ratio": 0.6, "cpu_used_cores": 0.15}


def slower(instance: str, factor: float) -> Fault:
    def fault(scene: Scene, elapsed: float) -> None:
        if instance in scene.slower:
            scene.slower[instance] *= factor
        if instance == BERT in scene.signals:
            scene.signals[BERT] |= QUOTA

    return fault


def test_a_slow_callee_is_one_incident_of_its_own() -> None:
    found = fronted()
    found.run(60)
    assert found.incidents == []
    found.fleet.strike(waiting([*FRONT, *OTHER_FRONT], 3, slower(BERT, 4)))
    found.run(60)
    (incident,) = found.incidents
    assert (incident.subject, incident.causes[0].mechanism) == (BERT, "cgroup CPU quota")
    assert "3 of 3 that call it got worse with it" in incident.causes[0].summary
    assert {e.subject for e in incident.causes[0].evidence if e.signal == "request_latency"} <= {*FRONT, *OTHER_FRONT}
    assert [i.id for i in found.state.instances if i.incident] == [BERT], "no weight is taken from who only waits"


def test_without_the_calls_they_are_several() -> None:
    found = fronted({})
    found.run(60)
    found.fleet.strike(waiting([*FRONT, *OTHER_FRONT], 3, slower(BERT, 4)))
    found.run(60)
    assert {i.subject for i in found.incidents} > {BERT}


def test_a_caller_that_comes_first_waits_for_the_incident_of_the_callee() -> None:
    # Alone on its node and without peers, the callee needs three times as long.
    found = stage({"n0/8080": ("n1/8080",)}, [("front", "front", "front"), ("bert",)])
    found.run(60)
    found.fleet.strike(waiting(["n0/8080"], 5, slower("n1/8080", 6)))
    found.run(12)
    assert found.incidents == []
    found.run(40)
    assert [i.subject for i in found.incidents] == ["n1/8080"]


def test_a_callee_and_its_caller_on_one_node_are_not_the_nodes_fault() -> None:
    found = stage({"n0/8080": ("n0/8090",)}, [("front", "bert"), ("front", "bert"), ("front", "bert")])
    found.run(60)
    found.fleet.strike(waiting(["n0/8080"], 3, slower("n0/8090", 4)))
    found.run(60)
    assert [i.subject for i in found.incidents] == ["n0/8090"]


def test_where_the_callee_has_no_incident_the_caller_tells_of_it() -> None:
    found = fronted()
    found.run(60)
    slow = waiting(FRONT[:1], 3, slower(BERT, 4))
    found.fleet.strike(slow)
    found.run(20)
    causes = Ranking().explain(found.watch._history, FRONT[0], found.fleet.onset_ns, OTHER_FRONT)
    assert (causes[0].mechanism, causes[0].subject) == (MECHANISM, BERT)
    assert f"{BERT}, which {FRONT[0]} calls, got slower: " in causes[0].summary
    lead, own = causes[0].evidence
    assert (lead.subject, lead.signal, own.subject) == (BERT, "request_latency", FRONT[0])
    assert lead.after > 3 * lead.before
    assert own.after > own.before
    assert 0.5 < causes[0].confidence < 0.9


def test_its_own_fault_is_its_own_though_it_calls_others() -> None:
    found = fronted()
    found.run(60)
    found.fleet.strike(slower(FRONT[0], 5))
    found.run(40)
    (incident,) = found.incidents
    assert incident.subject == FRONT[0]
    assert MECHANISM not in {c.mechanism for c in incident.causes}


def test_a_callee_that_adds_little_does_not_excuse_it() -> None:
    found = fronted()
    found.run(60)
    # The callee is three times slower, its caller by fifteen service times, of which it waited only two.
    found.fleet.strike(waiting(FRONT[:1], 15, slower(BERT, 3)))
    found.run(40)
    assert {i.subject for i in found.incidents} == {FRONT[0], BERT}
    causes = {i.subject: i.causes for i in found.incidents}
    assert MECHANISM not in {c.mechanism for c in causes[FRONT[0]]}


CHAIN = {"n0/8080": ("n1/8080",), "n1/8080": ("n2/8080",)}
LAYERS = [("front",) * 3, ("middle",) * 3, ("bert",) * 3]


def test_through_a_chain_the_last_is_blamed() -> None:
    found = stage(CHAIN, LAYERS)
    found.run(60)
    found.fleet.strike(waiting(["n0/8080", "n1/8080"], 3, slower("n2/8080", 4)))
    found.run(40)
    assert [i.subject for i in found.incidents] == ["n2/8080"]
    assert found.explainer.blamed(found.watch._history, "n0/8080", found.fleet.onset_ns) == ["n2/8080"]
    causes = found.explainer.explain(found.watch._history, "n0/8080", found.fleet.onset_ns, ())
    assert causes[0].summary.startswith("n2/8080, which is called by those that n0/8080 calls, got slower")


def test_in_a_circle_each_is_judged_by_itself() -> None:
    found = stage({**CHAIN, "n2/8080": ("n0/8080",)}, LAYERS)
    found.run(60)
    found.fleet.strike(waiting(["n0/8080", "n1/8080"], 3, slower("n2/8080", 4)))
    found.run(40)
    assert {i.subject for i in found.incidents} == {"n0/8080", "n1/8080", "n2/8080"}


def test_who_waits_for_a_server_that_hangs_fails_for_its_sake() -> None:
    def fault(scene: Scene, elapsed: float) -> None:
        if BERT in scene.slower:
            scene.slower[BERT] = math.inf
            scene.signals[BERT] |= {"runtime_answers": 0.0, "cpu_used_cores": 0.0, "workers_ready": math.nan}
        for caller in FRONT[:1]:
            if caller in scene.failing:
                scene.failing[caller] = 0.5

    found = fronted()
    found.run(60)
    found.fleet.strike(fault)
    found.run(40)
    (incident,) = found.incidents
    assert (incident.subject, incident.causes[0].mechanism) == (BERT, "server stalled")
    causes = found.explainer.explain(found.watch._history, FRONT[0], found.fleet.onset_ns, OTHER_FRONT)
    told = next(c for c in causes if c.mechanism == MECHANISM)
    assert "answers nothing" in told.summary


def test_it_is_held_for_long_and_what_comes_later_is_its_own() -> None:
    found = fronted({FRONT[0]: (BERT,)})
    found.run(60)
    slow = waiting(FRONT[:1], 3, slower(BERT, 4))
    found.fleet.strike(slow)
    found.run(240)
    assert [i.subject for i in found.incidents] == [BERT], "longer than the history reaches"

    def both(scene: Scene, elapsed: float) -> None:
        slow(scene, elapsed)
        slower(FRONT[0], 4)(scene, elapsed)

    found.fleet.strike(both)
    found.run(20)
    assert [i.subject for i in found.incidents] == [BERT, FRONT[0]]
    assert [i.status for i in found.incidents] == [pb.Incident.STATUS_OPEN] * 2


def test_when_the_callee_is_well_again_the_caller_speaks_for_itself() -> None:
    found = fronted({FRONT[0]: (BERT,)})
    found.run(60)
    found.fleet.strike(waiting(FRONT[:1], 3, slower(BERT, 4)))
    found.run(40)
    found.fleet.strike(waiting(FRONT[:1], 3, lambda scene, elapsed: None))
    found.run(100)
    assert [(i.subject, i.status) for i in found.incidents] == [
        (BERT, pb.Incident.STATUS_RESOLVED),
        (FRONT[0], pb.Incident.STATUS_OPEN),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_quiet_fleets_that_call_each_other_raise_nothing(seed: int) -> None:
    found = stage({"n0/8080": ("n1/8080", "n1/8090"), "n1/8080": ("n0/8080",)}, [("a",) * 3, ("b",) * 3], seed)
    found.run(200)
    assert found.incidents == []


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["n0/8080", "n0/8090", "n1/8080"]),
        st.lists(st.sampled_from(["n0/8080", "n0/8090", "n1/8080", "n1/8090"]), max_size=4),
        max_size=3,
    )
)
def test_whatever_the_graph_there_is_an_answer(calls: dict[str, list[str]]) -> None:
    found = stage(calls, [("a", "b"), ("a", "b")])
    found.run(40)
    found.fleet.strike(waiting(["n0/8080", "n0/8090"], 3, slower("n1/8090", 4)))
    found.run(12)
    history, explainer = found.watch._history, Ranking()
    for instance in found.fleet.instances:
        blamed = explainer.blamed(history, instance, found.fleet.onset_ns)
        assert instance not in blamed
        assert len(set(blamed)) == len(blamed)
        causes = explainer.explain(history, instance, found.fleet.onset_ns, ())
        assert [c for c in causes if not 0 < c.confidence < 1] == []


def test_requests_of_others_do_not_count_as_its_own() -> None:
    """Whoever takes a tenth of the callee's requests is not excused by what the callee adds to all of them."""
    nodes = [("front",) * 5, ("front",) * 5, ("bert", "bert", "bert")]
    callee = "n2/8080"
    callers = [f"n{k}/{8080 + 10 * i}" for k in range(2) for i in range(5)]
    found = stage(dict.fromkeys(callers, (callee,)), nodes)
    found.run(60)

    def fault(scene: Scene, elapsed: float) -> None:
        if callee in scene.load:
            scene.load[callee] = 10.0
            scene.slower[callee] *= 1.5
        for caller in callers:
            if caller in scene.slower:
                scene.slower[caller] += 0.5 if caller != callers[0] else 3.5

    found.fleet.strike(fault)
    found.run(20)
    assert found.explainer.blamed(found.watch._history, callers[0], found.fleet.onset_ns) == []
