"""gRPC's own xds:/// client, a real one, before small gRPC servers: it goes by the weights, and outlasts the actuator."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from tests.actuator.conftest import NODE, free_port, until
from tests.actuator.real_envoy import ROUTING
from tests.agent.authority import ADDRESS, Authority
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.xds.server import Xds
from trimtab.agent.clock import SystemClock


class Client:
    """The program in grpc_client.py, with the bootstrap of the docs but for the port."""

    def __init__(self, target: str, xds_port: int, changes: dict[str, str] | None = None) -> None:
        """`changes`: what is otherwise than in the docs."""
        [bootstrap] = re.findall(r"```json\n(.*?)```", ROUTING.read_text(), re.DOTALL)
        for old, new in ((changes or {}) | {":7475": f":{xds_port}"}).items():
            assert old in bootstrap
            bootstrap = bootstrap.replace(old, new)
        environment = os.environ | {"GRPC_XDS_BOOTSTRAP_CONFIG": bootstrap}
        command = [sys.executable, "-m", "tests.actuator.grpc_client", target]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def calls(self, count: int) -> Counter[str]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        return Counter(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Fleet:
    """gRPC servers that answer with their ports, and the xDS server that knows them."""

    def __init__(self, directory: Path) -> None:
        self.servers = [grpc.server(ThreadPoolExecutor(2)) for _ in range(4)]
        self.ports = [server.add_insecure_port("127.0.0.1:0") for server in self.servers]
        for server, port in zip(self.servers, self.ports, strict=True):
            who = grpc.unary_unary_rpc_method_handler(lambda request, context, port=port: str(port).encode())
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Who", {"Are": who}),))
            server.start()
        path = str(directory / "members.json")
        self.start = Start("xds", f"127.0.0.1:{free_port()}", NODE, members=path)
        self.xds = Xds(self.start, SystemClock())
        self.version = 0

    def publish(self, *shares: float) -> None:
        """And wait until all who listen have acknowledged it."""
        self.version += 1
        known = tuple(
            Assignment(f"{NODE}/{p}", "bert,resnet", (f"127.0.0.1:{p}",), w)
            for p, w in zip(self.ports, shares, strict=True)
        )
        self.xds.publish(Snapshot("active", known, self.version, self.version))
        until(self.xds.told, 15, "it is acknowledged")

    def close(self) -> None:
        self.xds.close()
        for server in self.servers:
            server.stop(None)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.close()


@pytest.fixture
def client(fleet: Fleet) -> Iterator[Client]:
    made = Client("xds:///resnet", fleet.xds.port)
    yield made
    made.close()


def check_shares(fleet: Fleet, client: Client, weights: tuple[float, ...], count: int = 1000) -> None:
    """Each within five standard deviations of `count` draws; who has no weight gets nothing."""
    # A picker that was made before the acknowledgement may still be in use for a moment.
    until(
        lambda: not any(client.calls(20)[str(p)] for p, w in zip(fleet.ports, weights, strict=True) if not w),
        5,
        "taken",
    )
    answers = client.calls(count)
    assert answers.total() == sum(answers[str(p)] for p in fleet.ports) == count, answers
    for port, weight in zip(fleet.ports, weights, strict=True):
        share = weight / sum(weights)
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(answers[str(port)] - count * share) <= 5 * deviation, (weights, answers)


def test_it_goes_by_the_weights_and_outlasts_the_actuator(fleet: Fleet, client: Client) -> None:
    fleet.publish(1, 1, 1, 1)
    check_shares(fleet, client, (1, 1, 1, 1))
    fleet.publish(0.25, 0.5, 0.75, 1)
    check_shares(fleet, client, (1, 2, 3, 4))
    fleet.publish(1, 1, 0.005, 0)
    check_shares(fleet, client, (1, 1, 0.005, 0))
    assert fleet.xds.matched == {f"{NODE}/{p}" for p in fleet.ports}
    assert fleet.xds.trouble() == ""
    fleet.xds.close()
    check_shares(fleet, client, (1, 1, 0.005, 0), 200)
    fleet.xds = Xds(fleet.start, SystemClock())
    until(lambda: len(fleet.xds.matched) == 4 and fleet.xds.told(), 30, "it asks again")
    until(lambda: client.calls(20)[str(fleet.ports[3])], 5, "neutral")
    check_shares(fleet, client, (1, 1, 1, 1))


def test_a_model_that_comes_later_is_waited_for(fleet: Fleet, client: Client) -> None:
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(client.calls, 10)
        until(lambda: fleet.xds._streams, 20, "it asks")
        fleet.publish(1, 0, 0, 0)
        assert answers.result() == {str(fleet.ports[0]): 10}


def test_beyond_loopback_it_shows_a_certificate_and_wants_one(fleet: Fleet, tmp_path: Path) -> None:
    tls = Authority().issue(tmp_path / "ours")
    [credentials] = re.findall(r'`\[(\{ "type": "tls".*?\})\]`', ROUTING.read_text())
    for name, path in (("ca.pem", tls.ca), ("host.pem", tls.certificate), ("host.key", tls.key)):
        credentials = credentials.replace(f'"{name}"', f'"{path}"')
    fleet.xds.close()
    fleet.xds = Xds(Start("xds", f"{ADDRESS}:0", NODE, tls), SystemClock())
    fleet.publish(0, 0, 1, 0)
    client = Client("xds:///bert", fleet.xds.port, {"127.0.0.1:": f"{ADDRESS}:", '{ "type": "insecure" }': credentials})
    try:
        assert client.calls(10) == {str(fleet.ports[2]): 10}
    finally:
        client.close()


def test_another_port_of_the_instances(fleet: Fleet) -> None:
    port = fleet.ports[1]
    known = Assignment(f"{NODE}/8080", "resnet", ("127.0.0.1:8080",), 1.0)
    fleet.xds.publish(Snapshot("active", (known,), 1, 1))
    other = Client(f"xds:///resnet:{port}", fleet.xds.port)
    try:
        assert other.calls(10) == {str(port): 10}
    finally:
        other.close()
