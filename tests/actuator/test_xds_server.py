"""The xDS server and clients that are slow, many, wrong or strangers."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from tests.actuator.conftest import NODE, until
from tests.agent.authority import ADDRESS, Authority
from trimtab import Exit, TrimtabError
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.xds import server as module
from trimtab.actuator.targets.xds import stream as streams
from trimtab.actuator.targets.xds.resources import ASSIGNMENT, CLUSTER
from trimtab.actuator.targets.xds.server import REQUEST_BYTES_MAX, STREAMS_MAX, Xds
from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import Tls
from trimtab.agent.wire import xds_pb2 as pb
from trimtab.agent.wire.channel import Dialer

ADS = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
EDS = "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints"
CODE = grpc.StatusCode


class Client:
    """One stream, of which the test says every word."""

    def __init__(self, channel: grpc.Channel, method: str = ADS) -> None:
        call = channel.stream_stream(
            method,
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=pb.DiscoveryResponse.FromString,
        )
        self._words: queue.Queue[pb.DiscoveryRequest | bytes] = queue.Queue()
        self.responses = call(iter(self._words.get, b"end"), timeout=20)

    def say(self, **fields: object) -> None:
        self._words.put(pb.DiscoveryRequest(**fields))

    def utter(self, raw: bytes) -> None:
        self._words.put(raw)

    def code(self) -> grpc.StatusCode:
        """How the stream ended."""
        with pytest.raises(grpc.RpcError) as ended:
            next(self.responses)
        return ended.value.code()


def snapshot(version: int, weight: float, model: str = "m") -> Snapshot:
    return Snapshot("active", (Assignment("a/1", model, ("10.0.0.1:80",), weight),), version, version)


def weight(response: pb.DiscoveryResponse) -> int:
    [resource] = response.resources
    [endpoint] = pb.ClusterLoadAssignment.FromString(resource.value).endpoints
    return endpoint.load_balancing_weight.value


@pytest.fixture
def xds() -> Iterator[Xds]:
    made = Xds(Start("xds", "127.0.0.1:0", NODE), SystemClock())
    yield made
    made.close()


@pytest.fixture
def client(xds: Xds) -> Iterator[Callable[..., Client]]:
    with grpc.insecure_channel(f"127.0.0.1:{xds.port}") as channel:
        yield lambda method=ADS: Client(channel, method)


@pytest.mark.parametrize(("method", "kind"), [(ADS, ASSIGNMENT), (EDS, ASSIGNMENT), (EDS, "")])
def test_each_change_once_and_at_once(xds: Xds, client: Callable[..., Client], method: str, kind: str) -> None:
    one = client(method)
    one.say(type_url=kind, resource_names=["m"])
    for version, share in enumerate((0.5, 0.5, 0.25), 1):
        xds.publish(snapshot(version, share))
        if version != 2:
            response = next(one.responses)
            assert (response.version_info, weight(response)) == (str(version), 1000 * share)
            one.say(type_url=kind, resource_names=["m"], response_nonce=response.nonce)
    until(xds.told, 5, "it has all there is")


def test_a_slow_client_gets_the_newest_and_no_queue_grows(xds: Xds, client: Callable[..., Client]) -> None:
    one = client()
    one.say(type_url=ASSIGNMENT, resource_names=["m"])
    for version in range(1, 3001):
        xds.publish(snapshot(version, version / 3000))
    received = 0
    while weight(next(one.responses)) < 1000:
        received += 1
    assert received < 3000


def test_who_does_not_answer_is_told_of(
    xds: Xds, client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    xds.publish(snapshot(1, 0.5))
    one = client()
    one.say(type_url=ASSIGNMENT, resource_names=["m"], node={"id": "mute\x1b["})
    next(one.responses)
    assert (xds.trouble(), xds.told()) == ("", False)
    monkeypatch.setattr(streams, "ANSWER_SECONDS", -1.0)
    assert xds.trouble().startswith("'mute\\x1b[' has not answered to ClusterLoadAssignment")


def test_what_is_not_served_is_told_and_ends_nothing(xds: Xds, client: Callable[..., Client]) -> None:
    xds.publish(snapshot(1, 0.5))
    one = client()
    one.say(type_url="type.googleapis.com/envoy.config.route.v3.RouteConfiguration", resource_names=["r"])
    one.say(type_url=ASSIGNMENT, resource_names=["m"], node={"id": "n"})
    next(one.responses)
    assert xds.trouble() == "'n' asks for 'RouteConfiguration', which trimtab does not serve"


def test_limits_end_the_stream_and_are_counted(xds: Xds, client: Callable[..., Client]) -> None:
    many, long, large, garbage = client(), client(), client(), client()
    many.say(type_url=CLUSTER, resource_names=["x"] * 1025)
    assert many.code() is CODE.INVALID_ARGUMENT
    long.say(type_url=CLUSTER, resource_names=["x" * 257])
    assert long.code() is CODE.INVALID_ARGUMENT
    garbage.utter(b"\xff" * 9)
    assert garbage.code() is CODE.INVALID_ARGUMENT
    assert xds.refused == 3
    assert "3 streams were refused" in xds.trouble()
    large.utter(b"\x0a" + b"\xff" * (REQUEST_BYTES_MAX + 1))
    assert large.code() is CODE.RESOURCE_EXHAUSTED
    until(lambda: not xds._streams, 5, "nothing is left of them")


def test_one_client_too_many_is_told_so(
    xds: Xds, client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert STREAMS_MAX == 64
    monkeypatch.setattr(module, "STREAMS_MAX", 2)
    xds.publish(snapshot(1, 1))
    both = [client(), client()]
    for one in both:
        one.say(type_url=ASSIGNMENT, resource_names=["m"])
        next(one.responses)
    assert client().code() is CODE.RESOURCE_EXHAUSTED
    both[0].responses.cancel()
    until(lambda: len(xds._streams) == 1, 5, "a place that was left is free")
    third = client()
    third.say(type_url=ASSIGNMENT, resource_names=["m"])
    next(third.responses)


def test_the_end_of_the_server_ends_the_streams(xds: Xds, client: Callable[..., Client]) -> None:
    xds.publish(snapshot(1, 0.5))
    one = client()
    one.say(type_url=ASSIGNMENT, resource_names=["m"])
    next(one.responses)
    xds.neutral()
    response = next(one.responses)
    assert (response.version_info, weight(response)) == ("1.neutral", 1000)
    xds.close()
    assert list(one.responses) == []


def test_what_cannot_be_done_is_told(tmp_path: Path) -> None:
    start = Start("xds", "127.0.0.1:0", NODE, networks=("10.0.0.0/8",), members=str(tmp_path / "missing" / "m"))
    xds = Xds(start, SystemClock())
    try:
        xds.publish(Snapshot("active", (Assignment("a/1", "m", ("192.168.0.1:80",), 1.0),), 1, 1))
        assert xds.trouble() == "no address at which balancers reach a/1; see actuator.xds_networks"
        xds.publish(snapshot(2, 1))
        assert xds.trouble().startswith("the members of clusters cannot be kept: ")
        with pytest.raises(TrimtabError, match=r"actuator\.xds_listen") as error:
            Xds(Start("xds", f"127.0.0.1:{xds.port}", NODE), SystemClock())
        assert error.value.exit_code is Exit.LISTEN
    finally:
        xds.close()


def test_beyond_loopback_only_who_has_a_certificate_of_ours(tmp_path: Path) -> None:
    ours, strangers = Authority().issue(tmp_path / "ours"), Authority("stranger").issue(tmp_path / "strangers")
    mixed = Tls(ca=ours.ca, certificate=strangers.certificate, key=strangers.key)
    with pytest.raises(TrimtabError, match=r"set tls\.ca"):
        Xds(Start("xds", f"{ADDRESS}:0", NODE), SystemClock())
    xds = Xds(Start("xds", f"{ADDRESS}:0", NODE, ours), SystemClock())
    try:
        xds.publish(snapshot(1, 0.5))
        for tls, welcome in ((ours, True), (mixed, False)):
            with Dialer(f"{ADDRESS}:{xds.port}", tls, "test").open() as channel:
                one = Client(channel)
                one.say(type_url=ASSIGNMENT, resource_names=["m"])
                if welcome:
                    assert weight(next(one.responses)) == 500
                else:
                    assert one.code() is CODE.UNAVAILABLE
    finally:
        xds.close()
