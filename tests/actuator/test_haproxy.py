"""Against a real HAProxy: weights are obeyed, nothing else is touched, and errors are one line with a remedy."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.actuator.conftest import NODE, Balancer, requests, until
from trimtab import TrimtabError
from trimtab.actuator.doctor import checks
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets import discovery, runtime
from trimtab.actuator.targets.addresses import address
from trimtab.actuator.targets.discovery import Finder, sockets
from trimtab.actuator.targets.haproxy import HAProxy, weights
from trimtab.actuator.targets.ledger import NOTHING, Held, Ledger
from trimtab.actuator.targets.runtime import Server

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


def test_no_share_at_all_is_no_request_and_the_others_refuge_when_they_are_gone(
    balancer: MakeBalancer, tmp_path: Path
) -> None:
    be = balancer("random(2)")
    haproxy = target(be, tmp_path)
    haproxy.apply(snapshot(be, 0, 0.5, 1))
    assert be.weights() == [0, 128, 256]
    assert be.requests(200)[0] == 0
    runtime.ask(be.socket, "set server be/s1 state maint;set server be/s2 state maint")
    haproxy.apply(snapshot(be, 0, 0.5, 1))
    assert be.requests(40)[0] == 1


def test_leastconn_drains_entirely_at_the_least_weight(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("leastconn")
    target(be, tmp_path).apply(snapshot(be, 1, 1, 0.005))
    assert be.weights() == [256, 256, 0]
    assert be.requests(200)[2] == 0


def test_static_algorithms_are_drained_or_left(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("static-rr", (10, 10, 10))
    target(be, tmp_path).apply(snapshot(be, 1, 0.5, 0.005))
    assert be.weights() == [10, 10, 0]


@pytest.mark.parametrize("balance", ["leastconn", "first", "static-rr"])
def test_the_last_usable_server_is_never_drained(balancer: MakeBalancer, tmp_path: Path, balance: str) -> None:
    be = balancer(balance)
    haproxy = target(be, tmp_path)
    haproxy.apply(snapshot(be, 0.005, 1, 1))
    assert be.weights()[0] == 0
    runtime.ask(be.socket, "set server be/s1 state maint;set server be/s2 state drain")
    haproxy.apply(snapshot(be, 0.005, 1, 1))
    assert be.requests(40)[0] == 1, "the operator took the others out"
    runtime.ask(be.socket, "set server be/s1 state ready;set server be/s2 state ready")
    haproxy.apply(snapshot(be, 0.005, 0.005, 0.005))
    assert 0 not in be.weights(), "the whole backend is at the least weight"
    assert sum(be.requests(40)) == pytest.approx(1)


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


def limited(balancer: Balancer, *at_once: int) -> Snapshot:
    pairs = zip(balancer.ports, at_once, strict=False)
    return Snapshot(
        "active", tuple(Assignment(f"{NODE}/{p}", "m", (f"127.0.0.1:{p}",), 1.0, "", n) for p, n in pairs), 1
    )


def test_what_an_instance_cannot_work_at_waits_in_the_balancer(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin", (1,))
    haproxy = target(be, tmp_path)
    haproxy.apply(limited(be, 2))
    assert be.maxconns() == [2]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(requests, be.port, 5, 5, "/held")
        try:
            until(lambda: be.queued() == 3, 5, "three wait in HAProxy")
            assert be.held() == [2]
            haproxy.apply(limited(be, 4))
            until(lambda: be.held() == [4], 5, "a higher limit lets two more through, and nobody is cut")
            haproxy.neutral()
            until(lambda: be.held() == [5], 5, "without one all are there")
        finally:
            be.release()
        assert asking.result() == {str(be.ports[0]): 5}
    assert be.maxconns() == [0]


def test_what_waits_when_limits_are_given_back_goes_to_all_in_equal_shares(
    balancer: MakeBalancer, tmp_path: Path
) -> None:
    be = balancer("roundrobin")
    haproxy = target(be, tmp_path)
    haproxy.apply(limited(be, 1, 1, 1))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(requests, be.port, 15, 15, "/held")
        try:
            until(lambda: be.queued() == 12, 5, "twelve wait in HAProxy")
            haproxy.neutral()
            until(lambda: sum(be.held()) == 15, 5, "none is forgotten")
            assert be.held() == [5, 5, 5]
        finally:
            be.release()
        assert asking.result().total() == 15
    assert be.maxconns() == [0, 0, 0]


def test_a_limit_of_the_operators_that_is_lower_stays_and_is_given_back(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin", extra="maxconn 3")
    haproxy = target(be, tmp_path)
    haproxy.apply(limited(be, 2, 3, 5))
    assert be.maxconns() == [2, 3, 3]
    haproxy.apply(limited(be, 2, 1))
    assert be.maxconns() == [2, 1, 3]
    haproxy.apply(limited(be, 0, 1))
    assert be.maxconns() == [3, 1, 3], "who is limited no more has what was configured"
    runtime.ask(be.socket, "set maxconn server be/s1 7")
    haproxy.apply(limited(be, 0, 1))
    assert be.maxconns() == [3, 1, 3], "while it is ours it is set back"
    haproxy.apply(limited(be, 0, 0))
    assert be.maxconns() == [3, 7, 3], "to what was set by hand meanwhile"
    assert be.weights() == [1, 1, 1], "no weight was touched"


def test_a_restarted_haproxy_is_limited_again_and_gives_back_its_own(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin", extra="maxconn 6")
    haproxy = target(be, tmp_path)
    haproxy.apply(limited(be, 2, 2, 2))
    be.stop()
    be.start()
    assert be.maxconns() == [6, 6, 6]
    haproxy.apply(limited(be, 2, 2, 2))
    assert be.maxconns() == [2, 2, 2]
    haproxy.neutral()
    assert be.maxconns() == [6, 6, 6]


def test_only_backends_of_known_instances_are_touched(balancer: MakeBalancer, tmp_path: Path) -> None:
    be, haproxy = (made := balancer("roundrobin")), target(made, tmp_path)
    be.set("other/s0", "3")
    haproxy.apply(snapshot(be, 1, 0.5))
    assert be.weights() == [256, 128, 256], "the unknown third server keeps its part"
    assert haproxy.matched == {f"{NODE}/{be.ports[0]}", f"{NODE}/{be.ports[1]}"}
    haproxy.apply(Snapshot("active", (), 1))
    assert be.weights() == [1, 1, 1], "given back when its instances are gone"
    assert be.weights("other") == [3]


@pytest.mark.parametrize("mode", ["shadow", "neutral", "active"])
def test_weights_set_by_hand_stay_while_nothing_is_steered(
    balancer: MakeBalancer, tmp_path: Path, mode: Literal["shadow", "neutral", "active"]
) -> None:
    be, haproxy = (made := balancer("roundrobin", (10, 10, 10))), target(made, tmp_path)
    neutral = replace(snapshot(be, 1, 1, 1), mode=mode)
    be.set("be/s0", "3")
    haproxy.apply(neutral)
    assert be.weights() == [3, 10, 10]
    haproxy.apply(snapshot(be, 1, 1, 0.5))
    haproxy.apply(neutral)
    assert be.weights() == [10, 10, 10], "what was steered is given back"
    be.set("be/s0", "3")
    haproxy.apply(neutral)
    assert be.weights() == [3, 10, 10], "once"


def test_an_address_of_two_instances_means_the_one_on_this_host_or_nobody(
    balancer: MakeBalancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be = balancer("roundrobin")
    real = runtime.servers

    def bridged(path: str) -> tuple[list[Server], dict[str, str]]:
        found, algorithms = real(path)
        return [replace(s, address="172.17.0.2") if s.backend == "be" else s for s in found], algorithms

    monkeypatch.setattr(runtime, "servers", bridged)
    [first, second, _] = [f"172.17.0.2:{s.port}" for s in bridged(be.socket)[0] if s.backend == "be"]
    ours = Assignment(f"{NODE}/1", "m", (first, second), 0.5)
    theirs = Assignment("there/1", "m", (first,), 0.1)
    haproxy = target(be, tmp_path)
    for both in ((ours, theirs), (theirs, ours)):
        haproxy.apply(Snapshot("active", both, 1))
        assert be.weights() == [128, 128, 256]
    third = Assignment("elsewhere/1", "m", (first,), 0.2)
    with pytest.raises(TrimtabError, match=f"{first} is the address of elsewhere/1, there/1"):
        haproxy.apply(Snapshot("active", (theirs, third, replace(ours, addresses=(second,))), 1))
    assert be.weights() == [256, 128, 256]
    assert haproxy.matched == {f"{NODE}/1"}


def test_an_haproxy_that_nobody_named_may_hold_no_instance(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    haproxy = HAProxy(be.socket, NODE, 0.005, Ledger(tmp_path / "steered.json"), named=False)
    haproxy.apply(snapshot(be, 1, 0.5, 1, node="elsewhere"))
    assert haproxy.matched == frozenset()


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


def test_no_local_user_can_break_the_search(
    balancer: MakeBalancer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be = balancer("roundrobin")
    odd = [b"caf\xff", b"a b", b"line\nend: x y zz", b"fs\x1cgs\x1dnel\xc2\x85", b"0: 1 2 zz"]
    with contextlib.ExitStack() as stack:
        for name in odd:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(os.fsencode(tmp_path) + b"/" + name)
            listener.listen()
        # A name of 15 bytes that the kernel cuts inside a character.
        script = "import sys; open('/proc/self/comm', 'wb').write(b'fifteen bytes \\xc3'); print(flush=True); sys.stdin.read()"
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(process.communicate)
        assert process.stdout
        process.stdout.readline()
        assert be.socket in sockets(("auto",))
    table = tmp_path / "unix"
    table.write_bytes(b"Num RefCount\nzz: 1 2 nonsense 4 5 6 /run/x\n0: 1\n\n")
    monkeypatch.setattr(discovery, "_UNIX_TABLE", table)
    sockets(("auto",))


def test_the_search_does_not_hold_up_who_decides_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    silent, looks = threading.Event(), []

    def look(wanted: tuple[str, ...]) -> list[str]:
        looks.append(wanted)
        assert silent.wait(10)
        if len(looks) == 1:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "odd")
        return ["/named", "/found"]

    monkeypatch.setattr(discovery, "sockets", look)
    monkeypatch.setattr(discovery, "_LOOK_SECONDS", 0.05)
    finder = Finder(("/named", "auto"))
    assert finder.found == ["/named"]
    silent.set()
    until(lambda: finder.found == ["/named", "/found"], 5, "found in the end")
    finder.close()


def test_the_search_asks_a_limited_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "_listening", lambda: ((str(k), f"/run/{k}") for k in range(1000)))
    monkeypatch.setattr(discovery, "_held_by_haproxy", lambda: map(str, range(1000)))
    assert len(discovery.candidates()) == 64


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


@given(
    st.lists(
        st.tuples(st.integers(0, 256), st.one_of(st.just(0.0), st.floats(0, 1)), st.booleans()), min_size=1, max_size=9
    ),
    st.sampled_from(["roundrobin", "leastconn"]),
)
def test_weights_are_always_ones_that_haproxy_takes(group: list[tuple[int, float, bool]], algorithm: str) -> None:
    initial, shares, usable = zip(*group, strict=True)
    servers = [Server("be", "s", "10.0.0.1", 80, i, i, u) for i, u in zip(initial, usable, strict=True)]
    out = weights(servers, shares, algorithm, 0.005)
    if set(out) == {"100%"}:
        assert all(s == 1 for s in shares) or not any(initial)
        return
    least = (0.005 if algorithm == "leastconn" else 0) + 1e-9
    takes = any(first and share > least and u for first, share, u in group)
    for weight, first, share in zip(map(int, out), initial, shares, strict=True):
        assert 0 <= weight <= 256
        assert (weight == 0) == (first == 0 or (share <= least and takes))
        assert abs(weight - first * share * 256 / max(initial)) <= (2 if algorithm == "leastconn" else 1)
    if any(first and u for first, u in zip(initial, usable, strict=True)):
        assert any(int(w) and u for w, u in zip(out, usable, strict=True)), "nobody is left to answer"


def test_a_weight_that_came_to_the_least_by_steps_is_the_least() -> None:
    servers = [Server("be", "s", "10.0.0.1", 80, 1, 1, True)] * 2
    assert weights(servers, [1, 0.005 + 1e-12], "leastconn", 0.005) == ["256", "0"]


def test_addresses_meet_in_one_spelling() -> None:
    assert address("::0001", 80) == address("::1", 80) == "::1:80"
    assert address("localhost", 80) == "127.0.0.1:80"
    assert address("host.example", 80) == address("", 80) == address("10.0.0.1", 0) == address("10.0.0.1", 65536) == ""


def test_ledger_survives_nonsense(tmp_path: Path) -> None:
    path = tmp_path / "steered.json"
    for text in ("", "[1]", '{"a": 3}', "{"):
        path.write_text(text)
        assert Ledger(path).read() == {}
    held = Held(frozenset({"x", "y"}), {"x/s0": (0, 2)})
    Ledger(path).set("/a", held)
    assert Ledger(path).read() == {"/a": held}
    Ledger(path).set("/a", NOTHING)
    assert Ledger(path).read() == {}
    until(lambda: list(tmp_path.iterdir()) == [path], 1, "no file is left over")
