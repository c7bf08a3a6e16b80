"""What a rack or a switch does to all that stands there is one incident about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector.faults import slow
from tests.detector.fleet import Fault, Fleet, Noise, Scene, Stage
from trimtab.agent.wire.columns import Malformed
from trimtab.agent.wire.places import NAME_MAX, PLACES, check_places, places
from trimtab.detector.decide import Verdicts
from trimtab.detector.rows import Rows
from trimtab.detector.together import NODES_OF_PLACE_MIN, SHARE_OF_GROUP, is_places
from trimtab.rootcause.rank import Ranking

RACKS = {"n0": {"rack": "r1"}, "n1": {"rack": "r1"}, "n2": {"rack": "r2"}, "n3": {"rack": "r2"}}
HERE = ("n0", "n1")


def stage(nodes: Sequence[Sequence[str]], labels: Mapping[str, Mapping[str, str]] = RACKS, seed: int = 5) -> Stage:
    found = Stage(
        Fleet(nodes, seed=seed, noise=Noise(blips_per_second=0, bursts_per_second=0), labels=labels), Ranking()
    )
    found.run(60)
    assert found.incidents == []
    return found


def struck(found: Stage, *nodes: str) -> list[str]:
    """The subjects of the incidents a minute after all instances of these nodes got slower."""
    found.fleet.strike(slow(4, *(i for i in found.fleet.instances if i.partition("/")[0] in nodes)))
    found.run(60)
    return [i.subject for i in found.incidents]


PEERS = [("a", "b")] * 4
"""Whoever is slow has peers that are well."""
NO_PEERS = [(f"{k}a", f"{k}b") for k in range(4)]
ALONE = [("a",)] * 4


@pytest.mark.parametrize("nodes", [PEERS, NO_PEERS, ALONE], ids=["peers", "no peers", "one a node"])
def test_a_rack_that_suffers_is_one_incident(nodes: Sequence[Sequence[str]]) -> None:
    found = stage(nodes)
    assert struck(found, *HERE) == ["rack r1"]
    (incident,) = found.incidents
    assert incident.node == ""
    assert {i.node for i in found.state.instances if i.incident == incident.id} == set(HERE)
    found.fleet.strike(None)
    found.run(90)
    assert [i.resolved_unix_ns > 0 for i in found.incidents] == [True]


def test_without_labels_it_is_one_of_each_node() -> None:
    assert set(struck(stage(PEERS, {}), *HERE)) == {"n0", "n1"}


def test_a_switch_counts_as_well() -> None:
    switches = {node: {"switch": f"s{node[1]}", **labels} for node, labels in RACKS.items()}
    switches["n2"]["switch"] = switches["n1"]["switch"] = "s12"
    assert struck(stage(PEERS, switches), "n1", "n2") == ["switch s12"]


def test_one_node_of_a_rack_is_only_that() -> None:
    assert struck(stage(PEERS), "n1") == ["n1"]


def test_where_the_others_suffer_as_well_it_is_not_the_rack() -> None:
    assert struck(stage([("a", "a")] * 4), "n0", "n1", "n2", "n3") == ["model a"]


def test_a_model_that_is_served_nowhere_else_is_the_models_fault() -> None:
    assert struck(stage([("a", "a"), ("a", "a"), ("b", "b"), ("b", "b"), ("b", "b")]), *HERE) != ["rack r1"]


def test_a_fault_that_was_there_before_does_not_hide_it() -> None:
    found = stage([("a", "b")] * 6, RACKS | {"n4": {"rack": "r1"}})
    found.fleet.strike(slow(4, "n0/8080"))
    found.run(30)
    assert [i.subject for i in found.incidents] == ["n0/8080"]
    assert struck(found, *HERE, "n4") == ["n0/8080", "rack r1"]


def test_what_they_share_is_told_as_the_cause() -> None:
    def fault(scene: Scene, elapsed: float) -> None:
        for instance in scene.slower:
            if instance.partition("/")[0] in HERE:
                scene.slower[instance] *= 4
                scene.signals[instance]["tcp_retransmits_per_second"] = 6.0

    found = stage(PEERS)
    found.fleet.strike(fault)
    found.run(40)
    (incident,) = found.incidents
    assert (incident.subject, incident.causes[0].mechanism) == ("rack r1", "network loss")
    assert "the same on most instances of rack r1" in incident.causes[0].summary


@pytest.mark.parametrize("seed", range(3))
def test_two_that_are_ill_for_a_moment_are_no_rack(seed: int) -> None:
    def fault(scene: Scene, elapsed: float) -> None:
        whole: Fault = slow(4, "n0/8080", "n0/8090")
        whole(scene, elapsed)
        if 8 <= elapsed < 10:
            slow(4, "n1/8080", "n1/8090")(scene, elapsed)

    found = stage(PEERS, seed=seed)
    found.fleet.strike(fault)
    found.run(60)
    assert [i.subject for i in found.incidents] == ["n0"]


@pytest.mark.parametrize("seed", range(2))
def test_racks_add_no_alarm_to_a_noisy_fleet(seed: int) -> None:
    racks = {f"n{k}": {"rack": f"r{k // 2}", "switch": f"s{k // 4}"} for k in range(8)}
    found = []
    for labels in ({}, racks):
        noisy = Stage(Fleet([(f"a{k % 2}", "b") for k in range(8)], seed=seed, labels=labels), Ranking())
        noisy.run(250)
        found.append([(i.subject, i.opened_unix_ns) for i in noisy.incidents])
    assert found[0] == found[1]


def verdicts(count: int, **some: np.ndarray) -> Verdicts:
    names = Verdicts.__annotations__
    return Verdicts(**{name: some.get(name, np.zeros(count, dtype=np.bool_)) for name in names})


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from(["", "a", "b"]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=14,
    ),
    st.sets(st.integers(0, 4)),
)
def test_the_law_of_a_place(instances: list[tuple[int, str, bool, bool]], standing: set[int]) -> None:
    """Each instance: its node, its model, whether it is ill, and whether it is somewhat slow."""
    rows = Rows()
    labelled = {f"n{node}": ("rack r",) for node in standing}
    rows.update({f"n{node}/{k}": model for k, (node, model, _, _) in enumerate(instances)}, labelled)
    order = [int(i.partition("/")[2]) for i in rows.ids]
    ill = np.asarray([instances[k][2] for k in order])
    raised = np.asarray([instances[k][3] for k in order])
    all_fresh = np.ones(len(instances), dtype=np.bool_)
    group = rows.members("rack r")
    found = is_places(group, ill, verdicts(len(order), fresh=all_fresh, raised=raised), rows)
    others = [row for row in range(len(order)) if row not in group]
    sick = [row for row in group if ill[row]]
    if found:
        assert len(sick) >= SHARE_OF_GROUP * len(group)
        assert len({rows.nodes[row] for row in sick}) >= NODES_OF_PLACE_MIN
        assert others
        assert np.mean(raised[others]) < 0.5
    if len({rows.nodes[row] for row in group}) >= 2 and ill[group].all() and others and not raised[others].any():
        shared = {rows.models[row] for row in group}
        assert found == (len(shared) > 1 or "" in shared or bool(shared & {rows.models[row] for row in others}))


@given(st.dictionaries(st.sampled_from([*PLACES, "row"]), st.text(max_size=NAME_MAX + 3)))
def test_names_of_places_are_short_and_printable(labels: dict[str, str]) -> None:
    good = all(len(labels.get(p, "")) <= NAME_MAX and labels.get(p, "").isprintable() for p in PLACES)
    if good:
        check_places("labels", labels)
        assert places(labels) == tuple(f"{p} {labels[p]}" for p in PLACES if labels.get(p))
    else:
        with pytest.raises(Malformed, match=r"^labels\.(rack|switch): not at most 64 printable characters$"):
            check_places("labels", labels)
        assert len(places(labels)) < len(PLACES)
