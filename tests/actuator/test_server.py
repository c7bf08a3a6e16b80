"""The real actuator before a real HAProxy, and all the ways it can go away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.actuator.conftest import NODE, Balancer, Collector, instance, until
from tests.actuator.real_actuator import Actuator
from trimtab import Exit, TrimtabError
from trimtab.actuator import server
from trimtab.actuator.seen import states
from trimtab.actuator.settings import ActuatorSettings, GuardSettings
from trimtab.actuator.snapshot import IDLE
from trimtab.actuator.targets import discovery
from trimtab.actuator.targets.ledger import Held, Ledger
from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import Tls

MakeBalancer = Callable[..., Balancer]
STEERED, NEUTRAL = [256, 256, 1], [1, 1, 1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Actuator]]:
    made: list[Actuator] = []

    def make(balancer: Balancer, collector: Collector) -> Actuator:
        sockets = f'haproxy_sockets = ["{balancer.socket}"]'
        made.append(Actuator(tmp_path, collector, f"{sockets}\nhaproxy_limit = true"))
        return made[-1]

    yield make
    for one in made:
        one.close()


def fleet(balancer: Balancer) -> list[object]:
    known = {"workers": 4.0, "batch_size": 1.0}
    out = [instance(f"{NODE}/{p}", addresses=[f"127.0.0.1:{p}"], **known) for p in balancer.ports]
    out.append(instance(f"{NODE}/1", addresses=["127.0.0.1:1"], model="other"))

    out[2].incident, out[2].mechanism = "i-1", "cgroup_quota"
    return out


def test_steers_again_after_a_restart_of_haproxy_and_is_neutral_after_kill_9(
    balancer: MakeBalancer, collector: Collector, start: Callable[..., Actuator]
) -> None:
    be = balancer("roundrobin")
    collector.instances = fleet(be)
    actuator = start(be, collector)
    until(lambda: be.weights() == STEERED, 20, "the sick instance is steered away from")
    until(lambda: collector.decisions[-1].weights[2].weight == pytest.approx(0.005), 5, "the decision is recorded")
    last = collector.decisions[-1]
    assert last.reason == f"in no balancer here: {NODE}/1"
    assert (last.mode, last.policy, last.weights[2].wished) == ("active", "split", 0)
    assert last.weights[2].reason == "degraded: cgroup quota (i-1)"
    until(lambda: collector.decisions[-1].HasField("seen"), 12, "what the policy saw is recorded, too")
    saw = [state.latency_seconds.tolist() for state in states(collector.decisions[-1])]
    assert saw == [pytest.approx([0.02] * 3), pytest.approx([0.02])]
    assert dict(last.targets) == {f"haproxy {be.socket}": ""}
    be.stop()
    until(lambda: "is HAProxy running" in str(collector.decisions[-1].targets), 5, "the target's error is recorded")
    be.start()
    until(lambda: be.weights() == STEERED, 4, "a restarted HAProxy has its weights again")
    assert be.maxconns() == [4, 4, 4]
    actuator.signal(signal.SIGKILL)
    until(lambda: (be.weights(), be.maxconns()) == (NEUTRAL, [0, 0, 0]), 4, "neutral after kill -9")
    assert be.weights("other") == [7]


def test_is_neutral_while_stopped_goes_on_and_leaves_in_order(
    balancer: MakeBalancer, collector: Collector, start: Callable[..., Actuator]
) -> None:
    be = balancer("roundrobin")
    collector.instances = fleet(be)
    actuator = start(be, collector)
    until(lambda: be.weights() == STEERED, 20, "steered")
    [deadman] = actuator.children()
    actuator.signal(signal.SIGSTOP)
    until(lambda: be.weights() == NEUTRAL, 9, "neutral while hung")
    actuator.signal(signal.SIGCONT)
    until(lambda: be.weights() == STEERED, 12, "steers again")
    os.kill(deadman, signal.SIGKILL)
    until(lambda: actuator.children().keys() - {deadman}, 5, "there is always a dead man's switch")
    [deadman] = actuator.children().keys() - {deadman}
    assert be.weights() != NEUTRAL
    actuator.signal(signal.SIGTERM)
    assert actuator.process.wait(10) == 0
    assert be.weights() == NEUTRAL
    assert collector.decisions[-1].mode == "neutral"
    assert Ledger(actuator.state / "actuator" / "steered.json").read() == {}
    until(lambda: not Path(f"/proc/{deadman}").exists(), 3, "the dead man's switch left")


def test_is_neutral_when_the_collector_repeats_itself_and_when_it_talks_nonsense(
    balancer: MakeBalancer, collector: Collector, start: Callable[..., Actuator]
) -> None:
    be = balancer("roundrobin")
    collector.instances = fleet(be)
    start(be, collector)
    until(lambda: be.weights() == STEERED, 20, "steered")
    collector.unix_ns = 1
    until(lambda: be.weights() == NEUTRAL, 3 + 4, "neutral without news")
    until(lambda: "collector silent" in collector.decisions[-1].reason, 3, "and it says why")
    collector.unix_ns = 0
    until(lambda: be.weights() == STEERED, 12, "steered again")
    sane = collector.instances
    collector.instances = [*sane, sane[0]]
    until(lambda: "fleet states refused" in collector.decisions[-1].reason, 5, "a second identity is refused")
    until(lambda: be.weights() == NEUTRAL, 3 + 4, "neutral without news that make sense")


def test_a_start_cleans_up_what_was_left_behind(balancer: MakeBalancer, collector: Collector, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    be.set("be/s2", "0")
    Ledger(tmp_path / "steered.json").set(be.socket, Held(frozenset({"be"})))
    stop, ready = threading.Event(), threading.Event()
    settings = ActuatorSettings(
        listen="127.0.0.1:0", collector=f"127.0.0.1:{collector.port}", haproxy_sockets=(), guard=GuardSettings()
    )
    arguments = (settings, Tls(), tmp_path, SystemClock(), stop, ready.set)
    thread = threading.Thread(target=server.run, args=arguments)
    thread.start()
    assert ready.wait(10)
    assert be.weights() == NEUTRAL
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_a_found_haproxy_of_others_is_reported_calmly(
    balancer: MakeBalancer, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    be = balancer("roundrobin")
    monkeypatch.setattr(discovery, "candidates", lambda: [be.socket])
    collector.instances = [instance(f"{NODE}/1", addresses=["127.0.0.1:1"])]
    stop = threading.Event()
    settings = ActuatorSettings(listen="127.0.0.1:0", collector=f"127.0.0.1:{collector.port}", node=NODE)
    thread = threading.Thread(
        target=server.run, args=(settings, Tls(), tmp_path, SystemClock(), stop, lambda: None), daemon=True
    )
    thread.start()
    until(lambda: collector.decisions and collector.decisions[-1].mode == "active", 15, "active")
    until(lambda: dict(collector.decisions[-1].targets) == {f"haproxy {be.socket}": IDLE}, 10, "a note")
    assert collector.decisions[-1].reason == ""
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_now_puts_weights_back_as_systemd_would(balancer: MakeBalancer, tmp_path: Path) -> None:
    be = balancer("roundrobin")
    be.set("be/s1", "3")
    ledger = tmp_path / "steered.json"
    Ledger(ledger).set(be.socket, Held(frozenset({"be"})))
    command = [sys.executable, "-m", "trimtab.actuator.deadman", "--now", str(ledger)]
    assert subprocess.run(command, check=False).returncode == 0
    assert be.weights() == NEUTRAL
    Ledger(ledger).set(str(tmp_path / "gone.sock"), Held(frozenset({"be"})))
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert "gone.sock" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("field", ["listen", "collector"])
def test_an_address_that_is_open_to_others_needs_tls(field: str, tmp_path: Path) -> None:
    settings = ActuatorSettings(**{"listen": "127.0.0.1:0", field: "192.0.2.1:7471"})
    with pytest.raises(TrimtabError, match=f"actuator.{field}") as error:
        server.run(settings, Tls(), tmp_path, SystemClock(), threading.Event(), lambda: None)
    assert error.value.exit_code is Exit.SETTINGS
