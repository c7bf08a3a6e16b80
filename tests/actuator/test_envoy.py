"""Against a real Envoy: it goes by the weights, sends nothing to who is drained, and outlasts what happens to either side."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.actuator.conftest import NODE, Backends, free_port, requests, until
from tests.actuator.real_envoy import Envoy, with_tls
from tests.agent.authority import ADDRESS, Authority
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.xds import resources
from trimtab.actuator.targets.xds.resources import World
from trimtab.actuator.targets.xds.server import Xds
from trimtab.agent.clock import SystemClock

ADS = "ads: {}"
EDS_ALONE = """api_config_source: { api_type: GRPC, transport_api_version: V3,
          grpc_services: [{ envoy_grpc: { cluster_name: trimtab } }] }"""


class Fleet:
    """Backends, and the xDS server that knows them as instances of `resnet`."""

    def __init__(self, directory: Path, count: int = 4) -> None:
        self.backends = Backends(count)
        self.ports = self.backends.ports
        self.start = Start("xds", f"127.0.0.1:{free_port()}", NODE, members=str(directory / "members.json"))
        self.version = 0
        self.xds = Xds(self.start, SystemClock())

    def snapshot(self, *shares: float) -> Snapshot:
        self.version += 1
        known = (
            Assignment(f"{NODE}/{p}", "resnet", (f"127.0.0.1:{p}",), share)
            for p, share in zip(self.ports, shares, strict=True)
        )
        return Snapshot("active", tuple(known), self.version, self.version)

    def publish(self, *shares: float) -> None:
        """And wait until all who listen have acknowledged it."""
        self.xds.publish(self.snapshot(*shares))
        until(self.xds.told, 15, "it is acknowledged")

    def restart(self, start: Start, wait: Callable[[], object] = lambda: None) -> None:
        self.xds.close()
        wait()
        self.xds = Xds(start, SystemClock())

    def close(self) -> None:
        self.xds.close()
        self.backends.close()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def envoy(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[..., Envoy]]:
    """Makes an Envoy that follows the fleet: `envoy({"text of the docs": "other text"})`."""
    made: list[Envoy] = []

    def make(changes: dict[str, str] | None = None) -> Envoy:
        made.append(Envoy(tmp_path, fleet.xds.port, changes))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def check_shares(fleet: Fleet, envoy: Envoy, weights: tuple[float, ...], count: int = 2000) -> None:
    """Each within five standard deviations of `count` draws; who has no weight gets nothing."""
    answers = requests(envoy.port, count)
    assert answers.total() == sum(answers[str(p)] for p in fleet.ports) == count, answers
    for port, weight in zip(fleet.ports, weights, strict=True):
        share = weight / sum(weights)
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(answers[str(port)] - count * share) <= 5 * deviation, (weights, answers)


@pytest.mark.parametrize("source", [ADS, EDS_ALONE], ids=["ads", "eds"])
@pytest.mark.parametrize("policy", ["ROUND_ROBIN", "LEAST_REQUEST"])
def test_it_goes_by_the_weights(fleet: Fleet, envoy: Callable[..., Envoy], source: str, policy: str) -> None:
    fleet.publish(1, 1, 1, 1)
    gateway = envoy({ADS: source, "ROUND_ROBIN": policy}).wait()
    check_shares(fleet, gateway, (1, 1, 1, 1), 1000)
    fleet.publish(0.25, 0.5, 0.75, 1)
    if policy == "ROUND_ROBIN":
        check_shares(fleet, gateway, (10, 20, 30, 40))
    fleet.publish(1, 0.005, 1, 1)
    check_shares(fleet, gateway, (1, 0.005, 1, 1))
    assert fleet.xds.matched == {f"{NODE}/{p}" for p in fleet.ports}
    assert fleet.xds.trouble() == ""


def test_beyond_loopback_it_shows_a_certificate_and_wants_one(fleet: Fleet, tmp_path: Path) -> None:
    tls = Authority().issue(tmp_path / "ours")
    port = free_port()
    fleet.restart(Start("xds", f"{ADDRESS}:{port}", NODE, tls))
    gateway = Envoy(tmp_path, port, with_tls(tls))
    try:
        fleet.publish(1, 1, 0.5, 1)
        check_shares(fleet, gateway.wait(), (1, 1, 0.5, 1), 400)
    finally:
        gateway.stop()


def test_clusters_need_not_be_listed(fleet: Fleet, envoy: Callable[..., Envoy]) -> None:
    fleet.publish(1, 1, 1, 0.5)
    changes = {
        "dynamic_resources:\n": "dynamic_resources:\n  cds_config: { resource_api_version: V3, ads: {} }\n",
        "route_config:\n": "route_config:\n                  validate_clusters: false\n",
        "- name: resnet\n      type: EDS\n": "- name: other\n      type: STATIC\n",
        "eds_cluster_config: { eds_config: { resource_api_version: V3, ads: {} } }\n": "\n",
    }
    gateway = envoy(changes).wait()
    check_shares(fleet, gateway, (1, 1, 1, 0.5))


def test_by_localities_it_is_the_same(fleet: Fleet, envoy: Callable[..., Envoy]) -> None:
    fleet.publish(1, 0.2, 1, 0)
    by_locality = "lb_policy: ROUND_ROBIN\n      common_lb_config: { locality_weighted_lb_config: {} }"
    check_shares(fleet, envoy({"lb_policy: ROUND_ROBIN": by_locality}).wait(), (1, 0.2, 1, 0))


def test_a_drained_instance_gets_nothing_more_and_finishes_what_it_has(
    fleet: Fleet, envoy: Callable[..., Envoy]
) -> None:
    fleet.publish(1, 1, 1, 1)
    gateway = envoy().wait()
    answers: list[Counter[str]] = []
    held = threading.Thread(target=lambda: answers.append(requests(gateway.port, 16, 16, "/held")))
    held.start()
    until(lambda: sum(s.held for s in fleet.backends.servers) == 16, 9, "all of them wait")
    assert fleet.backends.servers[1].held
    fleet.publish(1, 0, 1, 1)
    for server in fleet.backends.servers:
        server.hold.set()
    held.join()
    assert sum(answers[0][str(p)] for p in fleet.ports) == 16, "nothing was cut off"
    assert answers[0][str(fleet.ports[1])] == fleet.backends.servers[1].held
    # Its weight is 1 in 3001: were it not drained, it would have got some of them but for a chance of 2 %.
    check_shares(fleet, gateway, (1, 0, 1, 1), 12_000)
    fleet.publish(0, 0, 0, 0)
    check_shares(fleet, gateway, (1, 1, 1, 1), 400)


@pytest.mark.parametrize("panics", [True, False])
def test_panic_mode_does_not_undo_a_drain(fleet: Fleet, envoy: Callable[..., Envoy], panics: bool) -> None:
    fleet.publish(0, 1, 1, 1)
    never = "lb_policy: ROUND_ROBIN\n      common_lb_config: { healthy_panic_threshold: { value: 0 } }"
    gateway = envoy({} if panics else {"lb_policy: ROUND_ROBIN": never}).wait()
    for server in fleet.backends.servers[1:]:
        server.healthy = False
    if panics:
        # No telling from outside when Envoy has noticed all three: its panic has begun once the drained one gets something.
        found = Counter[str]()
        while not found[str(fleet.ports[0])]:
            found += requests(gateway.port, 400)
            assert found.total() < 40_000
        # A weight of 1 among 3001: 13 in 40,000, and over 40 by a chance of 10^-9.
        assert requests(gateway.port, 4_000)[str(fleet.ports[0])] < 20
    else:
        until(lambda: requests(gateway.port, 40) == {"503": 40}, 9, "nobody is left")


def test_an_envoy_that_restarts_has_the_weights_again(fleet: Fleet, envoy: Callable[..., Envoy]) -> None:
    fleet.publish(1, 1, 1, 1)
    gateway = envoy().wait()
    fleet.publish(1, 1, 0.1, 0)
    gateway.stop()
    until(lambda: not fleet.xds.matched, 30, "its stream is over")
    gateway.start()
    check_shares(fleet, gateway.wait(), (1, 1, 0.1, 0))


def test_weights_stay_while_nobody_says_any_and_then_are_neutral_at_once(
    fleet: Fleet, envoy: Callable[..., Envoy]
) -> None:
    fleet.publish(1, 1, 0, 0)
    gateway = envoy().wait()
    check_shares(fleet, gateway, (1, 1, 0, 0), 400)
    fleet.restart(fleet.start, lambda: check_shares(fleet, gateway, (1, 1, 0, 0), 400))
    # Nothing was published yet: who the members are is known from before.
    until(lambda: len(fleet.xds.matched) == 4 and fleet.xds.told(), 9, "Envoy is back")
    check_shares(fleet, gateway, (1, 1, 1, 1), 400)
    fleet.publish(1, 0, 1, 1)
    check_shares(fleet, gateway, (1, 0, 1, 1), 400)


def test_an_instance_out_of_sight_stays_at_its_neutral_weight(fleet: Fleet, envoy: Callable[..., Envoy]) -> None:
    fleet.publish(1, 0.2, 1, 0)
    gateway = envoy().wait()
    seen = fleet.snapshot(1, 0.2, 1, 0)
    fleet.xds.publish(Snapshot("active", seen.assignments[:2], 9, 9))
    until(fleet.xds.told, 15, "acknowledged")
    check_shares(fleet, gateway, (1, 0.2, 1, 1))
    fleet.xds.publish(Snapshot("active", (), 10, 10))
    until(fleet.xds.told, 15, "acknowledged")
    check_shares(fleet, gateway, (1, 1, 1, 1), 400)


def test_what_envoy_refuses_is_told_and_the_weights_before_stay(
    fleet: Fleet, envoy: Callable[..., Envoy], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(1, 0, 1, 1)
    gateway = envoy().wait()
    with monkeypatch.context() as broken:
        broken.setattr(resources, "weight", lambda share: 0)
        fleet.publish(0, 1, 1, 1)
        fleet.publish(1, 1, 1, 0)
    told = fleet.xds.trouble()
    assert told.startswith("'gateway-1' refused ClusterLoadAssignment of version 3: ")
    assert "LoadBalancingWeight" in told
    assert told.endswith("(refused so far: 2)")
    check_shares(fleet, gateway, (1, 0, 1, 1), 400)
    fleet.publish(1, 1, 0, 1)
    assert fleet.xds.trouble() == ""
    check_shares(fleet, gateway, (1, 1, 0, 1), 400)


def test_why_endpoint_stale_after_is_not_set(
    fleet: Fleet, envoy: Callable[..., Envoy], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.publish(1, 1, 1, 1)
    checking, trusting = (
        envoy(),
        envoy({"health_checks:\n": "ignore_health_on_host_removal: true\n      health_checks:\n"}),
    )
    make = World._assignment
    # policy { endpoint_stale_after { seconds: 1 } }, which the part of the API that is spoken does not have.
    monkeypatch.setattr(World, "_assignment", lambda world, name: make(world, name) + b"\x22\x04\x22\x02\x08\x01")
    checking.wait()
    trusting.wait()
    fleet.publish(1, 1, 1, 0)
    until(lambda: requests(trusting.port, 40) == {"503": 40}, 9, "it has no endpoints any more")
    check_shares(fleet, checking, (1, 1, 1, 0), 400)


def test_a_cluster_that_nobody_serves_is_told(fleet: Fleet, envoy: Callable[..., Envoy]) -> None:
    fleet.publish(1, 1, 1, 1)
    envoy({"- name: resnet\n": "- name: bert\n", "cluster: resnet,": "cluster: bert,"})
    until(lambda: "'gateway-1' asks for cluster 'bert': no known instance" in fleet.xds.trouble(), 9, "told")
