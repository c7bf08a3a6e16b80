"""The real actuator with real balancers that ask: a HAProxy by agent checks and an Envoy, and all the ways it can go away."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.actuator.conftest import NODE, Balancer, Collector, free_port, instance, requests, until
from tests.actuator.real_actuator import Actuator
from tests.actuator.real_envoy import Envoy
from trimtab import Exit, TrimtabError
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.relay import Relay, relays
from trimtab.agent.settings import Tls

STEERED, NEUTRAL = [100, 100, 1], [100, 100, 100]


class Site:
    """An actuator, a HAProxy and an Envoy before the same three instances, the last of which an incident names."""

    def __init__(self, directory: Path, collector: Collector, balancer: Callable[..., Balancer]) -> None:
        self.agent_port, self.xds_port = free_port(), free_port()
        check = f"agent-check agent-addr 127.0.0.1 agent-port {self.agent_port} agent-inter 100ms"
        send = 'agent-send "127.0.0.1:{port}\\n"'
        self.haproxy = balancer("roundrobin", (100, 100, 100), extra=f"{check} {send}")
        known = [instance(f"{NODE}/{p}", addresses=[f"127.0.0.1:{p}"], model="resnet") for p in self.haproxy.ports]
        known[2].incident, known[2].mechanism = "i-1", "cgroup_quota"
        collector.instances = known
        self.collector = collector
        settings = f'haproxy_sockets = []\nhaproxy_agent_listen = "127.0.0.1:{self.agent_port}"\n'
        self.actuator = Actuator(directory, collector, f'{settings}xds_listen = "127.0.0.1:{self.xds_port}"')
        self.envoy = Envoy(directory, self.xds_port)

    def sick(self) -> int:
        """Of 60 requests through Envoy, those to the sick instance."""
        return requests(self.envoy.port, 60)[str(self.haproxy.ports[2])]

    def steered(self) -> bool:
        return self.haproxy.weights() == STEERED and self.sick() <= 3

    def neutral(self) -> bool:
        return self.haproxy.weights() == NEUTRAL and self.sick() >= 17

    def fronts(self) -> list[int]:
        return [pid for pid, command in self.actuator.children().items() if "targets.front" in command]

    def errors(self) -> dict[str, str]:
        return dict(self.collector.decisions[-1].targets)

    def close(self) -> None:
        self.envoy.stop()
        self.actuator.close()


@pytest.fixture
def site(tmp_path: Path, collector: Collector, balancer: Callable[..., Balancer]) -> Iterator[Site]:
    made = Site(tmp_path, collector, balancer)
    made.envoy.wait()
    until(made.steered, 25, "the sick instance is steered away from")
    yield made
    made.close()


def test_killed_it_is_neutral_and_steers_after_a_restart(site: Site) -> None:
    names = {f"haproxy agent 127.0.0.1:{site.agent_port}", f"xds 127.0.0.1:{site.xds_port}"}
    until(lambda: site.errors() == dict.fromkeys(names, ""), 9, "both take weights")
    assert site.collector.decisions[-1].reason == ""
    fronts = site.fronts()
    assert len(fronts) == 2
    site.actuator.signal(signal.SIGKILL)
    site.actuator.process.wait()
    until(site.neutral, 4, "neutral after kill -9")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in fronts), 15, "the fronts left")
    assert site.neutral(), "and it stays so"
    site.actuator.start()
    until(site.steered, 25, "it steers again")


def test_hung_it_is_neutral_goes_on_and_leaves_in_order(site: Site) -> None:
    site.actuator.signal(signal.SIGSTOP)
    until(site.neutral, 9, "neutral while hung")
    site.actuator.signal(signal.SIGCONT)
    until(site.steered, 15, "steers again")
    fronts = site.fronts()
    site.actuator.signal(signal.SIGTERM)
    assert site.actuator.process.wait(10) == 0
    assert site.neutral()
    assert not any(Path(f"/proc/{pid}").exists() for pid in fronts)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_front_that_dies_or_hangs_is_started_again(site: Site, how: signal.Signals) -> None:
    fronts = site.fronts()
    for pid in fronts:
        os.kill(pid, how)
    until(lambda: len(set(site.fronts()) - set(fronts)) == 2, 15, "others run")
    assert site.haproxy.weights() == STEERED, "weights stay meanwhile"
    site.collector.instances[2].incident = ""
    # Only who hears from the new ones can learn that it is over.
    until(lambda: site.haproxy.weights() > STEERED, 25, "HAProxy follows again")
    until(lambda: site.sick() > 3, 25, "Envoy follows again")


def test_who_does_not_stop_asking_for_steered_weights_is_told_of(tmp_path: Path) -> None:
    """A balancer that goes away without a word is waited for, and then given up."""
    relay = Relay(Start("haproxy agent", f"127.0.0.1:{free_port()}", NODE))
    relay.apply(Snapshot("active", (Assignment("a/1", "m", ("10.0.0.1:80",), 0.5),), 1, 1))
    port = int(relay.name.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"a/1\n")
        assert connection.recv(9) == b"50%\n"
    with pytest.raises(TrimtabError, match="not all who ask have heard"):
        relay.neutral()
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"a/1\n")
        assert connection.recv(9) == b"100%\n"
    assert relay._process
    assert relay._process.wait(5) == 0, "it has heard now"


def test_a_port_that_is_taken_is_told_and_tried_again(tmp_path: Path) -> None:
    snapshot = Snapshot("active", (), 1, 1)
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        both = [Relay(Start("xds", address, NODE)), Relay(Start("haproxy agent", address, NODE))]
        for relay, field in zip(both, ("xds_listen", "haproxy_agent_listen"), strict=True):
            with pytest.raises(TrimtabError, match=rf"actuator\.{field} = '{address}': cannot listen there"):
                relay.apply(snapshot)
    both[0].apply(snapshot)
    for relay in both:
        relay.neutral()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"haproxy_agent_listen": "0.0.0.0:7474", "haproxy_sockets": ()}, "haproxy_agent_listen.*plain text"),
        ({"haproxy_agent_listen": "127.0.0.1:7474"}, r"haproxy_agent_listen.*set actuator\.haproxy_sockets = \[\]"),
        ({"xds_listen": "0.0.0.0:7475"}, "actuator.xds_listen.*set tls.ca"),
        ({"xds_listen": "127.0.0.1:7475", "xds_networks": ("10.0.0.1/8",)}, "actuator.xds_networks.*10.0.0.0/8"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match=message) as error:
        relays(ActuatorSettings(**settings), Tls(), tmp_path)  # type: ignore[arg-type]
    assert error.value.exit_code is Exit.SETTINGS


def test_nothing_runs_unless_it_is_asked_for(tmp_path: Path) -> None:
    assert relays(ActuatorSettings(), Tls(), tmp_path) == []
