"""The protocol's laws: whatever a client does, it ends up with what there is, and is believed only with the nonce it was given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.actuator.targets.xds.members import Member
from trimtab.actuator.targets.xds.resources import ASSIGNMENT, CLUSTER, LISTENER, TYPES, World, weight
from trimtab.actuator.targets.xds.subscription import NAMES_MAX, Subscription, Subscriptions
from trimtab.agent.wire import xds_pb2 as pb
from trimtab.agent.wire.columns import Malformed

NAMES = ("a", "b", "c:81", "nobody")


def world(version: int, shares: dict[str, float]) -> World:
    clusters = {name[:1]: {f"n/{name}": Member(f"10.0.0.1:{80 + ord(name[0])}", w)} for name, w in shares.items()}
    return World(str(version), clusters)


class Client:
    """Holds what it accepted; its request is due after each response and each change of its mind."""

    def __init__(self, kind: str) -> None:
        self.subscription = Subscription(kind)
        self.names: tuple[str, ...] = ()
        self.held: dict[str, bytes] = {}
        self.nonces: list[str] = []
        self.refused = 0

    def receive(self, response: pb.DiscoveryResponse, accept: bool) -> None:
        assert response.nonce not in self.nonces
        self.nonces.append(response.nonce)
        request = pb.DiscoveryRequest(resource_names=self.names, response_nonce=response.nonce)
        if accept:
            for resource in response.resources:
                assert resource.type_url == response.type_url == self.subscription.kind
                message = pb.ClusterLoadAssignment.FromString(resource.value)
                self.held[message.cluster_name] = resource.value
        else:
            self.refused += 1
            request.error_detail.message = "no"
        self.subscription.hear(request)

    def ask(self, names: tuple[str, ...]) -> None:
        self.names = names
        nonce = self.nonces[-1] if self.nonces else ""
        self.subscription.hear(pb.DiscoveryRequest(resource_names=names, response_nonce=nonce))


_EVENTS = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0.0, 0.5, 1.0])),
    st.sets(st.sampled_from(NAMES)).map(lambda names: tuple(sorted(names))),
    st.booleans(),
    st.just("stale"),
)


@given(st.lists(_EVENTS, max_size=30))
def test_a_client_ends_up_with_what_there_is(events: list[object]) -> None:
    now, client = world(0, {}), Client(ASSIGNMENT)
    for version, event in enumerate(events, 1):
        if isinstance(event, dict):
            now = world(version, event)
        elif isinstance(event, tuple):
            client.ask(event)
        elif event == "stale" and client.nonces:
            client.subscription.hear(pb.DiscoveryRequest(resource_names=["x"], response_nonce=client.nonces[0] + "0"))
        elif isinstance(event, bool) and (response := client.subscription.due(now)):
            client.receive(response, event)
    responses = 0
    while response := client.subscription.due(now):
        client.receive(response, accept=True)
        responses += 1
        assert responses == 1, "one answer holds all that is due"
    assert client.subscription.refusals == client.refused
    assert client.subscription.names == client.names, "what came with another nonce was void"
    assert client.subscription.settled(now)
    if responses:
        wanted = now.resources(ASSIGNMENT, client.names) or {}
        assert {name: client.held[name] for name in wanted} == wanted


def test_what_was_refused_is_not_sent_again_until_it_differs() -> None:
    client = Client(ASSIGNMENT)
    client.ask(("a",))
    first = client.subscription.due(world(1, {"a": 0.5}))
    assert first
    client.receive(first, accept=False)
    assert client.subscription.refused == "no"
    assert client.subscription.due(world(2, {"a": 0.5})) is None
    again = client.subscription.due(world(3, {"a": 1}))
    assert again
    assert again.version_info == "3"
    client.receive(again, accept=True)
    assert (client.subscription.refused, client.subscription.refusals) == ("", 1)


def test_one_refusal_counts_once() -> None:
    subscription = Subscription(ASSIGNMENT)
    subscription.hear(pb.DiscoveryRequest(resource_names=["a"]))
    assert subscription.due(world(1, {"a": 1}))
    no = pb.DiscoveryRequest(
        resource_names=["a"], response_nonce="1", error_detail=pb.Status(message="x" * 999 + "\x1b[")
    )
    assert [subscription.hear(no) for _ in range(5)] == [True, False, False, False, False]
    assert subscription.refusals == 1
    assert subscription.refused.isprintable()
    assert len(subscription.refused) <= 201


def test_who_asks_again_for_what_it_has_is_answered() -> None:
    """As Envoy does when it warms a cluster up anew."""
    client, now = Client(ASSIGNMENT), world(1, {"a": 1, "b": 1})
    for names in (("a",), ("a", "b"), ("a",), (), ("a",)):
        client.ask(names)
        response = client.subscription.due(now)
        assert (response is None) == (names == ())
        if response:
            client.receive(response, accept=True)


@pytest.mark.parametrize("kind", [CLUSTER, LISTENER])
def test_no_cluster_is_ever_said_to_be_gone(kind: str) -> None:
    make: Callable[[bytes], pb.Cluster | pb.Listener]
    make = pb.Cluster.FromString if kind == CLUSTER else pb.Listener.FromString
    wants = Subscriptions()
    wants.hear(pb.DiscoveryRequest(type_url=kind, resource_names=["b", "nobody"]))
    for now in (world(1, {}), world(2, {"a": 1})):
        responses = wants.due(now)
        if now.version == "1":
            [response] = responses
            assert [make(r.value).name for r in response.resources] == ["b", "nobody"]
        else:
            assert responses == []


def test_everything_is_every_cluster_and_no_listener() -> None:
    wants = Subscriptions()
    for kind in TYPES:
        wants.hear(pb.DiscoveryRequest(type_url=kind, resource_names=[]))
    [listeners] = wants.due(world(1, {}))
    assert (listeners.type_url, len(listeners.resources)) == (LISTENER, 0)
    [clusters] = wants.due(world(2, {"b": 1, "a": 1}))
    assert [pb.Cluster.FromString(r.value).name for r in clusters.resources] == ["a", "b"]


@pytest.mark.parametrize("names", [["x"] * (NAMES_MAX + 1), ["x" * 257]])
def test_limits(names: list[str]) -> None:
    with pytest.raises(Malformed, match="resource_names"):
        Subscriptions().hear(pb.DiscoveryRequest(type_url=CLUSTER, resource_names=names))
    wants = Subscriptions()
    for k in range(100):
        wants.hear(pb.DiscoveryRequest(type_url=f"type.{k}", resource_names=["x"]))
    assert len(wants.others) == 8


@given(st.lists(st.one_of(st.just(0.0), st.floats(0, 1)), min_size=1, max_size=9))
def test_weights_follow_shares_and_somebody_always_takes_requests(shares: list[float]) -> None:
    members = {f"n/{k}": Member(f"10.0.0.{k}:80", share) for k, share in enumerate(shares)}
    made = World("1", {"m": members}).resources(ASSIGNMENT, ("m",))
    assert made
    endpoints = pb.ClusterLoadAssignment.FromString(made["m"]).endpoints
    assert len({e.locality.sub_zone for e in endpoints}) == len(shares)
    draining = [e.lb_endpoints[0].health_status == pb.HEALTH_STATUS_DRAINING for e in endpoints]
    assert draining == [share == 0 and any(shares) for share in shares]
    for endpoint, share in zip(endpoints, shares, strict=True):
        value = endpoint.load_balancing_weight.value
        assert value == endpoint.lb_endpoints[0].load_balancing_weight.value >= 1
        assert abs(value - 1000 * (share if any(shares) else 1)) <= 1
    assert weight(1.0) == 1000


def test_another_port_has_the_same_shares_and_shared_hosts_are_neutral() -> None:
    members = {"a/1": Member("10.0.0.1:80", 0.5), "b/1": Member("10.0.0.2:80", 0.2), "b/2": Member("10.0.0.2:81", 0.1)}
    now = World("1", {"m": members, "x:9": {"c/1": Member("10.0.0.3:9")}})
    assert now.members("m:7070") == {"a/1": Member("10.0.0.1:7070", 0.5), "b/1": Member("10.0.0.2:7070", 1.0)}
    assert now.members("x:9") == {"c/1": Member("10.0.0.3:9")}, "a model's own name comes first"
    for name in ("m:", "m:0", "m:65536", "m:http", "y:80", ":80"):
        assert now.members(name) == {}
