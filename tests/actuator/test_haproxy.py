"""Against a real HAProxy: weights are obeyed, nothing else is touched, and errors are one line with a remedy."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NODE, Balancer, until
from trimtab import TrimtabError
from trimtab.actuator.doctor import checks
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.discovery import sockets
from trimtab.actuator.targets.haproxy import HAProxy, address, weights
from trimtab.actuator.targets.ledger import Ledger

MakeBalancer = Callable[..., Balancer]


def snapshot(balancer: Balancer, *shares: float, node: str = NODE) -> Snapshot:
    pairs = zip(balancer.ports, shares, strict=False)
    return Snapshot("active", tuple(Assignment(f"{node}/{p}", "m", (f"127.0.0.1:{p}",), w) for p, w in pairs), 1)


def target(balancer: Balancer, tmp_path: Path) -> HAProxy:
    return HAProxy(balancer.socket, NODE, 0.005, Ledger(tmp_path / "steered.json"))


@pytest.mark.parametrize("balance", ["roundrobin", "random(2)"])
def test_weights_are_obeyed(balancer: MakeBalancer, tmp_path: Path, balance: str) -> None:
    be = balancer(balance)
    target(be, tmp_path).apply(snapshot(be, 1, 0.5, 0.005))
    assert be.weights() == [256, 128, 1]
    shares = be.requests(1200)
    # Four standard deviations of 1200 draws around 0.665, 0.332, 0.003; random(2) also looks at who is busy.
    slack = 0.055 if balance == "roundrobin" else 0.15
    assert shares[0] == pytest.approx(256 / 385, abs=slack)
    assert shares[1] == pytest.approx(128 / 385, abs=slack)
    assert shares[2] < 0.02


def test_leastconn_drains_entirely_at_the_least_weight(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("leastconn")
    target(be, tmp_path).apply(snapshot(be, 1, 1, 0.005))
    assert be.weights() == [256, 256, 0]
    assert be.requests(200)[2] == 0


def test_static_algorithms_are_drained_or_left(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("static-rr", (10, 10, 10))
    target(be, tmp_path).apply(snapshot(be, 1, 0.5, 0.005))
    assert be.weights() == [10, 10, 0]


def test_neutral_is_what_the_operator_configured(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin", (100, 50, 10))
    haproxy = target(be, tmp_path)
    haproxy.apply(snapshot(be, 1, 0.5, 1))
    assert be.weights() == [256, 64, 26]
    haproxy.apply(snapshot(be, 1, 1, 1))
    assert be.weights() == [100, 50, 10]
    haproxy.apply(snapshot(be, 0.2, 1, 1))
    haproxy.neutral()
    assert be.weights() == [100, 50, 10]
    assert Ledger(tmp_path / "steered.json").read() == {}


def test_only_backends_of_known_instances_are_touched(balancer: MakeBalancer, tmp_path: Path) -> None:
    be, haproxy = (made := balancer("roundrobin")), target(made, tmp_path)
    runtime.ask(be.socket, "set weight other/s0 3")
    haproxy.apply(snapshot(be, 1, 0.5))
    assert be.weights() == [256, 128, 256], "the unknown third server keeps its part"
    assert haproxy.matched == {f"{NODE}/{be.ports[0]}", f"{NODE}/{be.ports[1]}"}
    haproxy.apply(Snapshot("active", (), 1))
    assert be.weights() == [1, 1, 1], "given back when its instances are gone"
    assert be.weights("other") == [3]


def test_loopback_of_another_node_is_not_ours(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    with pytest.raises(TrimtabError, match=r"none of its 4 servers .* actuator.node"):
        target(be, tmp_path).apply(snapshot(be, 1, 0.5, 1, node="elsewhere"))
    assert be.weights() == [1, 1, 1]


def test_a_restarted_haproxy_gets_its_weights_again(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    haproxy, wanted = target(be, tmp_path), snapshot(be, 1, 1, 0.005)
    haproxy.apply(wanted)
    be.stop()
    with pytest.raises(TrimtabError, match="is HAProxy running"):
        haproxy.apply(wanted)
    be.start()
    assert be.weights() == [1, 1, 1]
    haproxy.apply(wanted)
    assert be.weights() == [256, 256, 1]


def test_what_cannot_be_restored_is_not_steered(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    haproxy = HAProxy(be.socket, NODE, 0.005, Ledger(tmp_path / "missing" / "steered.json"))
    with pytest.raises(OSError, match="missing"):
        haproxy.apply(snapshot(be, 1, 1, 0.005))
    assert be.weights() == [1, 1, 1]


def test_level_operator_is_an_error_with_a_remedy(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin", level="operator")
    with pytest.raises(TrimtabError, match="level admin"):
        target(be, tmp_path).apply(snapshot(be, 1, 1, 0.005))
    found = checks(ActuatorSettings(haproxy_sockets=(be.socket,)))
    assert [c.ok for c in found] == [True, True, False]
    assert "level admin" in found[-1].remedy


def test_many_servers_take_more_than_one_line(balancer: MakeBalancer) -> None:
    be = balancer("roundrobin")
    [first, *_] = runtime.servers(be.socket)[0]
    runtime.set_weights(be.socket, [(first, str(k % 256)) for k in range(2000)] + [(first, "17")])
    assert be.weights()[0] == 17
    with pytest.raises(TrimtabError, match="only be between"):
        runtime.set_weights(be.socket, [(first, "3"), (first, "999")])


def test_discovery_finds_the_admin_socket_of_a_running_haproxy(balancer: MakeBalancer) -> None:
    be, weak = balancer("leastconn"), balancer("roundrobin", level="user")
    found = sockets(("auto", be.socket))
    assert {be.socket, weak.socket} <= set(found)
    assert len(found) == len(set(found))
    assert any(c.name == "haproxy balance" and "leastconn" in c.detail for c in checks(ActuatorSettings()))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad\n\n", b"1\n# be_id\nx\n\n", b"x" * (9 << 20), None])
def test_a_socket_that_is_no_haproxy_is_an_error(tmp_path: Path, answer: bytes | None) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            line, _ = listener.accept()
            with line:
                line.recv(999)
                with contextlib.suppress(OSError):
                    line.sendall(answer) if answer is not None else done.wait(5)

        done = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(TrimtabError, match=path):
            runtime.servers(path)
        done.set()
        thread.join()


@given(st.lists(st.tuples(st.integers(0, 256), st.floats(0, 1)), min_size=1, max_size=20))
def test_weights_are_always_ones_that_haproxy_takes(servers: list[tuple[int, float]]) -> None:
    initial, shares = zip(*servers, strict=True)
    out = weights(initial, shares, "roundrobin", 0.005)
    if set(out) == {"100%"}:
        assert all(s == 1 for s in shares) or not any(initial)
        return
    for weight, first, share in zip(map(int, out), initial, shares, strict=True):
        assert 0 <= weight <= 256
        assert (weight == 0) == (first == 0 or share == 0)
        assert abs(weight - first * share * 256 / max(initial)) <= 1


def test_addresses_meet_in_one_spelling() -> None:
    assert address("::0001", 80) == address("::1", 80) == "::1:80"
    assert address("localhost", 80) == "127.0.0.1:80"
    assert address("host.example", 80) == address("", 80) == address("10.0.0.1", 0) == ""


def test_ledger_survives_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "steered.json"
    for text in ("", "[1]", '{"a": 3}', "{"):
        path.write_text(text)
        assert Ledger(path).read() == {}
    Ledger(path).set("/a", {"x", "y"})
    assert Ledger(path).read() == {"/a": {"x", "y"}}
    until(lambda: list(tmp_path.iterdir()) == [path], 1, "no file is left over")
