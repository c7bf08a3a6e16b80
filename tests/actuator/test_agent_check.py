"""Against a real HAProxy that asks: its weights follow, what the operator does stays, and nobody who asks can do harm."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NODE, Balancer, free_port, until
from tests.actuator.real_envoy import ROUTING
from trimtab import Exit, TrimtabError
from trimtab.actuator.doctor import checks
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets import agent_check as module
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.agent_check import AgentCheck, percent
from trimtab.actuator.targets.front import Start
from trimtab.agent.clock import SystemClock

MakeBalancer = Callable[..., Balancer]


@pytest.fixture
def agent() -> Iterator[AgentCheck]:
    made = AgentCheck(Start("haproxy agent", "127.0.0.1:0", NODE), SystemClock())
    yield made
    made.close()


def asking(agent: AgentCheck, name: str = "127.0.0.1:{port}") -> str:
    return f'agent-check agent-addr 127.0.0.1 agent-port {agent.port} agent-inter 100ms agent-send "{name}\\n"'


def snapshot(balancer: Balancer, *shares: float) -> Snapshot:
    pairs = zip(balancer.ports, shares, strict=False)
    return Snapshot("active", tuple(Assignment(f"{NODE}/{p}", "m", (f"127.0.0.1:{p}",), w) for p, w in pairs), 1)


def ask(agent: AgentCheck, line: bytes) -> bytes:
    """What is answered; b"" when the connection is closed without a word."""
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", agent.port), 5) as connection:
        connection.sendall(line)
        return connection.recv(99)
    return b""


@pytest.mark.parametrize("name", ["127.0.0.1:{port}", NODE + "/{port}"])
def test_weights_follow_and_return(balancer: MakeBalancer, agent: AgentCheck, name: str) -> None:
    be = balancer("roundrobin", (100, 200, 100), extra=asking(agent, name))
    agent.publish(snapshot(be, 1, 0.5, 0.005))
    until(lambda: be.weights() == [100, 100, 1], 5, "HAProxy took the shares")
    shares = be.requests(800)
    # Four standard deviations of 800 draws around 1/2; roundrobin is steadier than that.
    assert shares[:2] == pytest.approx([100 / 201, 100 / 201], abs=0.07)
    assert shares[2] < 0.02
    assert agent.matched == {f"{NODE}/{p}" for p in be.ports}
    assert agent.trouble() == ""
    assert not agent.told()
    agent.neutral()
    until(agent.told, 5, "every server has asked again")
    until(lambda: be.weights() == [100, 200, 100], 2, "neutral is what the operator configured")


def test_a_drained_server_gets_nothing(balancer: MakeBalancer, agent: AgentCheck) -> None:
    be = balancer("leastconn", (100, 100, 100), extra=asking(agent))
    agent.publish(snapshot(be, 1, 1, 0))
    until(lambda: be.weights() == [100, 100, 0], 5, "HAProxy drains it")
    assert be.requests(400)[2] == 0


def test_what_the_operator_took_out_stays_out(balancer: MakeBalancer, agent: AgentCheck) -> None:
    be = balancer("roundrobin", (100, 100, 100), extra=asking(agent))
    agent.publish(snapshot(be, 1, 1, 0.5))
    runtime.ask(be.socket, "set server be/s0 state drain")
    until(lambda: be.weights() == [100, 100, 50], 5, "HAProxy took the shares")
    for share in (0, 1):
        agent.publish(snapshot(be, share, 1, 0.5))
        until(lambda: agent.trouble() == "" and be.weights()[0] == 100 * share, 5, "it asked")  # noqa: B023
        assert be.requests(100)[0] == 0


def test_an_haproxy_that_gets_no_answer_keeps_its_weights(balancer: MakeBalancer) -> None:
    port = free_port()
    start = Start("haproxy agent", f"127.0.0.1:{port}", NODE)
    agent = AgentCheck(start, SystemClock())
    be = balancer("roundrobin", (100, 100, 100), extra=asking(agent))
    agent.publish(snapshot(be, 1, 1, 0.5))
    until(lambda: be.weights() == [100, 100, 50], 5, "HAProxy took the shares")
    agent.close()
    assert be.requests(100)[2] == pytest.approx(0.2, abs=0.05)
    again = AgentCheck(start, SystemClock())
    until(lambda: be.weights() == [100, 100, 100], 5, "one that knows nothing yet says neutral")
    again.close()


def test_who_is_not_known_is_neutral_and_told_of(agent: AgentCheck) -> None:
    both = tuple(Assignment(f"{n}/1", "m", ("172.17.0.2:80",), 0.5) for n in ("there", "elsewhere"))
    assert ask(agent, b"here/1\n") == b"100%\n"
    assert agent.trouble() == "", "nobody is known yet"
    agent.publish(Snapshot("active", both, 1))
    assert ask(agent, b"here/1\n") == b"100%\n"
    assert "no known instance has the name or the address 'here/1'" in agent.trouble()
    assert ask(agent, b"172.17.0.2:80\n") == b"100%\n"
    assert "172.17.0.2:80 is the address of elsewhere/1, there/1 and 1 more like it" in agent.trouble()
    assert ask(agent, b"there/1\n") == b"50%\n"
    assert agent.matched == {"there/1"}


@pytest.mark.parametrize("line", [b"\n", b"\xff\xfe\n", b"x" * 600 + b"\n", b"x" * 100_000], ids=len)
def test_nonsense_is_refused_and_counted(agent: AgentCheck, line: bytes) -> None:
    assert ask(agent, line) == b""
    until(lambda: agent.refused == 1, 5, "it is counted")
    assert "1 connections were refused" in agent.trouble()
    assert ask(agent, b"a\n") == b"100%\n"


def test_an_haproxy_that_did_not_wait_is_not_refused(agent: AgentCheck) -> None:
    connection = socket.create_connection(("127.0.0.1", agent.port), 5)
    connection.sendall(b"a")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: agent._open == 1, 5, "it is being served")
    connection.close()  # by a reset
    until(lambda: agent._open == 0, 5, "it is gone")
    assert agent.refused == 0


def test_who_says_nothing_is_cut_off_and_the_number_is_limited(
    agent: AgentCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)
    with contextlib.ExitStack() as stack:
        mute = [stack.enter_context(socket.create_connection(("127.0.0.1", agent.port), 5)) for _ in range(2)]
        until(lambda: ask(agent, b"a\n") == b"", 5, "a third is one too many")
        assert [connection.recv(1) for connection in mute] == [b"", b""], "cut off"
    until(lambda: ask(agent, b"a\n") == b"100%\n", 5, "places are free again")
    assert agent.refused >= 3


def test_the_lines_in_the_docs(tmp_path: Path) -> None:
    if not shutil.which("haproxy", path="/usr/sbin:/usr/bin"):
        pytest.skip("haproxy is not installed")
    [backend] = re.findall(r"```\n(backend resnet\n.*?)```", ROUTING.read_text(), re.DOTALL)
    file = tmp_path / "haproxy.cfg"
    timeouts = "defaults\n  mode http\n  timeout connect 2s\n  timeout client 9s\n  timeout server 9s\n"
    file.write_text(f"{timeouts}frontend f\n  bind 127.0.0.1:{free_port()}\n  default_backend resnet\n{backend}")
    checked = subprocess.run(["/usr/sbin/haproxy", "-c", "-f", file], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_doctor_tells_who_listens_and_harms_nobody(agent: AgentCheck) -> None:
    settings = ActuatorSettings(
        haproxy_sockets=(), haproxy_agent_listen=f"127.0.0.1:{agent.port}", xds_listen=f"127.0.0.1:{free_port()}"
    )
    found = {c.name: c for c in checks(settings)}
    assert (found["haproxy agent"].ok, found["xds"].ok) == (True, None)
    assert "connection refused; `trimtab actuator` listens there when it runs" in found["xds"].detail
    assert "haproxy socket" not in found
    assert ask(agent, b"a\n") == b"100%\n"
    assert agent.refused == 0


def test_a_port_that_is_taken_is_an_error_that_names_the_setting(agent: AgentCheck) -> None:
    with pytest.raises(
        TrimtabError, match=r"actuator\.haproxy_agent_listen = '127\.0\.0\.1:\d+': cannot listen"
    ) as error:
        AgentCheck(Start("haproxy agent", f"127.0.0.1:{agent.port}", NODE), SystemClock())
    assert error.value.exit_code is Exit.LISTEN


@given(st.floats(0, 1))
def test_shares_are_whole_percents_and_only_zero_drains(share: float) -> None:
    number = int(percent(share).removesuffix("%"))
    assert (number == 0) == (share == 0)
    assert abs(number - 100 * share) <= 1
