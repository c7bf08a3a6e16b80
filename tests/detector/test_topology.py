"""Who calls whom: the laws of the graph, whatever the labels say."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.calls import CALLEES_MAX, pack
from trimtab.agent.wire.columns import schema_hash
from trimtab.collector.window import Window
from trimtab.detector.history import History
from trimtab.detector.topology import Topology
from trimtab.rootcause.blame import reached

Labels = Mapping[str, Mapping[str, str]]


def window(node: str, instances: Labels, of_node: Mapping[str, str] | None = None, seq: int = 1) -> Window:
    schema = pb.Schema()
    table = schema.tables.add(kind=pb.SUBJECT_KIND_NODE, series=[pb.Series(name="cpu_cores", unit="cores")])
    table.subjects.add(id=node, labels=of_node or {})
    table = schema.tables.add(kind=pb.SUBJECT_KIND_INSTANCE)
    for id_, labels in instances.items():
        table.subjects.add(id=id_, labels=labels)
    schema.hash = schema_hash(schema)
    message = pb.Window(seq=seq, schema_hash=schema.hash, start_unix_ns=seq * 10**9, duration_ns=10**9)
    message.values.extend([bytes(8), b""])
    return Window(node, "spool", seq, message.start_unix_ns, message.duration_ns, schema, message)


def topology(*windows: Window) -> Topology:
    history, out = History(60), Topology()
    for each in windows:
        history.observe(each)
    out.update(history)
    return out


def serving(*addresses: str, calls: tuple[str, ...] = (), **more: str) -> dict[str, str]:
    return {"addresses": ",".join(addresses), **pack(calls), **more}


def test_addresses_lead_to_instances_across_nodes() -> None:
    found = topology(
        window("n0", {"n0/80": serving("127.0.0.1:80", "10.0.0.1:80", calls=("10.0.0.2:81", "10.0.0.9:5432"))}),
        window("n1", {"n1/81": serving("10.0.0.2:81", "[fd00::2]:81")}),
        window("n2", {"n2/80": serving("10.0.0.3:80", calls=("[fd00::2]:81",))}),
    )
    assert found.callees == {"n0/80": ("n1/81",), "n2/80": ("n1/81",)}
    assert found.callers == {"n1/81": ("n0/80", "n2/80")}


def test_loopback_stays_on_its_host_and_in_its_namespace() -> None:
    here = {
        "n0/80": serving("127.0.0.1:80", calls=("127.0.0.1:81", "[::1]:82")),
        "n0/81": serving("127.0.0.1:81"),
        "n0/80@7": serving("172.17.0.2:80", calls=("127.0.0.1:81", "127.0.0.1:82")),
        "n0/82@7": serving("172.17.0.2:82"),
    }
    there = {"n1/81": serving("127.0.0.1:81"), "n1/82": serving("127.0.0.1:82", calls=("127.0.0.1:80",))}
    found = topology(window("n0", here), window("n1", there))
    assert found.callees == {"n0/80": ("n0/81",), "n0/80@7": ("n0/82@7",)}


def test_of_several_with_one_address_the_near_one_is_meant() -> None:
    bridged = {"n0/8080@7": serving("172.17.0.2:8080"), "n0/9090": serving(calls=("172.17.0.2:8080",))}
    far = {"n2/9090": serving(calls=("172.17.0.2:8080",))}
    found = topology(window("n0", bridged), window("n1", {"n1/8080@8": serving("172.17.0.2:8080")}), window("n2", far))
    assert found.callees == {"n0/9090": ("n0/8080@7",)}


def test_a_call_by_grpc_is_one_too() -> None:
    both = serving("127.0.0.1:8080", "10.0.0.1:8080", grpc_port="7070")
    found = topology(
        window("n0", {"n0/8080": both, "n0/1": serving(calls=("127.0.0.1:7070",))}),
        window("n1", {"n1/1": serving(calls=("10.0.0.1:7070",))}),
    )
    assert found.callees == {"n0/1": ("n0/8080",), "n1/1": ("n0/8080",)}


def test_it_follows_what_changes() -> None:
    history, found = History(60), Topology()
    callee = {"n0/81": serving("10.0.0.1:81")}
    history.observe(window("n0", callee | {"n0/80": serving(calls=("10.0.0.1:81",))}))
    found.update(history)
    assert found.callees == {"n0/80": ("n0/81",)}
    history.observe(window("n0", callee | {"n0/80": serving()}, {"rack": "r7", "switch": "s1"}, seq=2))
    found.update(history)
    assert (found.callees, found.callers, found.places) == ({}, {}, {"n0": ("rack r7", "switch s1")})
    history.nodes.clear()
    found.update(history)
    assert found.places == {}


PORT = st.sampled_from(["80", "81", "82", "0", "65536", "x", ""])
HOST = st.sampled_from(["127.0.0.1", "[::1]", "10.0.0.1", "10.0.0.2", "[fd00::1]", "localhost", "", "[", "::"])
ADDRESSES = st.lists(st.tuples(HOST, PORT).map(":".join), max_size=6)
LABELS = st.builds(
    lambda addresses, calls, grpc: {"addresses": ",".join(addresses), **pack(calls), "grpc_port": grpc},
    ADDRESSES,
    ADDRESSES,
    PORT,
)
FLEET = st.dictionaries(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["80", "81", "82@7", "81@7"])), LABELS, max_size=9
)


@settings(max_examples=200, deadline=None)
@given(FLEET, st.randoms())
def test_the_laws_of_the_graph(fleet: dict[tuple[str, str], dict[str, str]], chance: object) -> None:
    windows = [
        window(node, {f"{node}/{tail}": labels for (of, tail), labels in fleet.items() if of == node})
        for node in {node for node, _ in fleet}
    ]
    found = topology(*windows)
    instances = {f"{node}/{tail}" for node, tail in fleet}
    edges = {(caller, callee) for caller, callees in found.callees.items() for callee in callees}
    assert {end for edge in edges for end in edge} <= instances
    assert all(caller != callee for caller, callee in edges), "nobody calls itself"
    assert edges == {(caller, callee) for callee, callers in found.callers.items() for caller in callers}
    assert all(found.callees.values())
    for instance in instances:
        near = reached(found.callees, instance)
        assert len(near) == len(set(near)) <= len(instances), "circles end"
    chance.shuffle(windows)  # type: ignore[attr-defined]
    again = topology(*windows)
    assert (again.callees, again.callers) == (found.callees, found.callers), "the order of the nodes does not matter"
    for caller, callee in edges:
        labels = fleet[tuple(caller.split("/", 1))]  # type: ignore[index]
        if not any(host in labels["calls"] for host in ("10.", "fd00")):
            assert caller.partition("/")[0] == callee.partition("/")[0], "loopback means the same host"


@given(st.integers(0, 300))
def test_no_more_callees_than_the_limit(count: int) -> None:
    instances = {f"n1/{port}": serving(f"10.0.0.1:{port}") for port in range(1, count + 1)}
    calls = tuple(f"10.0.0.1:{port}" for port in range(1, count + 1))
    found = topology(window("n0", {"n0/80": serving(calls=calls)}), window("n1", instances))
    assert len(found.callees.get("n0/80", ())) == min(count, CALLEES_MAX)
