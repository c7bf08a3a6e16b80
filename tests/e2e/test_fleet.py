"""The real fleet: it answers, it stops without a trace, and every fault is undone exactly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.e2e.archive import ROOT, SIM_BATCH, SIM_BATCHED
from tests.e2e.behaviour import Behaviour, behaving
from tests.e2e.confine import apart
from tests.e2e.faults import FAULTS, crash, errors, hog, pause, quota
from tests.e2e.fleet import Instance, check_alive, fleet, post, predict, wait_ready
from tests.e2e.haproxy import BACKEND, NEUTRAL, haproxy
from tests.e2e.load import load
from tests.e2e.processes import free_ports
from trimtab import TrimtabError

pytestmark = pytest.mark.fleet
IDS = list(range(1000, 1064))


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def affinities(instance: Instance) -> dict[int, frozenset[int]]:
    found = {}
    for process in instance.tree():
        for thread in process.threads():
            found[thread.id] = frozenset(os.sched_getaffinity(thread.id))
    return found


def cgroups(instance: Instance) -> dict[int, str]:
    return {p.pid: Path(f"/proc/{p.pid}/cgroup").read_text() for p in instance.tree()}


def test_all_instances_agree(instances: list[Instance]) -> None:
    answers = [predict(i.address, IDS) for i in instances]
    assert answers[0] == answers[1] == answers[2]
    assert answers[0] != predict(instances[0].address, IDS[::-1])
    assert [len(i.workers()) for i in instances] == [1, 1, 1]


def test_a_bad_body_is_refused(instances: list[Instance]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        predict(instances[0].address, [])
    assert refused.value.code == 400


def test_balancer_names_the_server_and_obeys_weights(instances: list[Instance], tmp_path: Path) -> None:
    with haproxy(tmp_path, instances) as proxy:
        assert proxy.weights() == dict.fromkeys(("s0", "s1", "s2"), NEUTRAL)
        with load(proxy.address, 50, 1, tmp_path / "spread.csv") as spread:
            until(lambda: len(spread.requests()) >= 30)
            assert {r.server for r in spread.finish()} == {"s0", "s1", "s2"}
        proxy.ask(f"set weight {BACKEND}/s1 0")
        with load(proxy.address, 50, 1, tmp_path / "drained.csv") as drained:
            until(lambda: len(drained.requests()) >= 30)
            assert {(r.server, r.status) for r in drained.finish()} == {("s0", 200), ("s2", 200)}
    assert proxy.process.poll() is not None


def test_quota_is_undone(instances: list[Instance], root: None) -> None:
    before = cgroups(instances[1])
    with quota(instances[1], 0.1):
        held = cgroups(instances[1])
        assert held.keys() == before.keys()
        assert all(f"fleet-fault-{instances[1].process.pid}" in text for text in held.values())
        group = next(Path("/sys/fs/cgroup").glob(f"**/fleet-fault-{instances[1].process.pid}"))

        def throttled() -> bool:
            predict(instances[1].address, IDS)
            return "nr_throttled 0\n" not in (group / "cpu.stat").read_text()

        until(throttled)
    assert cgroups(instances[1]) == before
    assert not group.exists()


def test_hog_is_undone(instances: list[Instance]) -> None:
    before = affinities(instances[1])
    children = set(psutil.Process().children())
    with hog(instances[1], hogs=2):
        hogs = set(psutil.Process().children()) - children
        (cpus,) = set(affinities(instances[1]).values())
        assert len(cpus) == 1
        until(lambda: [h.cpu_affinity() for h in hogs] == [list(cpus)] * 2)
    after = affinities(instances[1])
    assert set(after.values()) == set(before.values())
    assert not any(h.is_running() for h in hogs)


def test_apart_is_undone(instances: list[Instance]) -> None:
    before = [set(affinities(i).values()) for i in instances]
    with apart(instances[1], [instances[0], instances[2]]):
        alone, *others = (set.union(*map(set, affinities(instances[k]).values())) for k in (1, 0, 2))
        assert len(alone) == 1
        assert all(alone.isdisjoint(other) for other in others)
    assert [set(affinities(i).values()) for i in instances] == before


def test_pause_is_undone(instances: list[Instance]) -> None:
    def stopped() -> list[bool]:
        return [p.status() == psutil.STATUS_STOPPED for p in instances[1].tree()]

    with pause(instances[1], 0.4, 0.5):
        until(lambda: all(stopped()))
        until(lambda: not any(stopped()))
        until(lambda: all(stopped()))
    until(lambda: not any(stopped()))
    predict(instances[1].address, IDS)


def test_errors_are_undone_even_when_the_body_fails(instances: list[Instance]) -> None:
    with pytest.raises(urllib.error.HTTPError) as failed, errors(instances[1]):
        predict(instances[1].address, IDS)
    assert failed.value.code == 500
    predict(instances[1].address, IDS)


def test_crash_is_undone(instances: list[Instance]) -> None:
    (before,) = instances[1].workers()
    with crash(instances[1]):
        until(lambda: not before.is_running())
        until(lambda: any(w.pid != before.pid for w in instances[1].workers()))
    wait_ready([instances[1]], 60)
    (after,) = instances[1].workers()
    assert after.pid != before.pid
    predict(instances[1].address, IDS)


def test_every_fault_has_its_test() -> None:
    assert {f"test_{name}_is_undone" for name in FAULTS} - set(globals()) == {"test_errors_is_undone"}


def test_a_dead_instance_is_named_and_leaves_nothing(instances: list[Instance], tmp_path: Path) -> None:
    with fleet(tmp_path, 1) as (single,):
        tree = single.tree()
        (server,) = [p for p in tree if p.name() == "java"]
        server.kill()
        single.process.wait(20)
        with pytest.raises(TrimtabError, match="TorchServe s0 died"):
            check_alive(single)
    assert [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_simulated_model_does_as_it_is_told(tmp_path: Path) -> None:
    def answers(address: str, luck: float, work: float = 1.0) -> bool:
        try:
            return bool(post(address, SIM_BATCHED, {"work": work, "luck": luck}) == {"failed": False})
        except urllib.error.HTTPError as failed:
            return failed.code != 500

    with fleet(tmp_path, 1, model=SIM_BATCHED) as [single]:
        assert answers(single.address, 0.0)
        with behaving(single, Behaviour(slowdown=0.0, error_ratio=0.3)):
            # It would take an hour if it were not told to take no time.
            assert [answers(single.address, luck, 72_000) for luck in (0.0, 0.29, 0.3, 0.99)] == [
                False,
                False,
                True,
                True,
            ]
        assert answers(single.address, 0.0)
        [model] = json.load(urllib.request.urlopen(f"http://{single.management}/models/{SIM_BATCHED}", timeout=10))
        assert model["batchSize"] == SIM_BATCH


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_ports(10)
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port + 2))
        holder.listen()
        with (
            pytest.raises(TrimtabError, match=rf"port {port + 2} is taken by .*pid {os.getpid()}"),
            fleet(tmp_path, 1, port),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_demo_leaves_nothing(instances: list[Instance], root: None, tmp_path: Path) -> None:
    def ours() -> list[psutil.Process]:
        return [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]

    demo = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.demo"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    until(lambda: any(p.name() == "java" for p in ours()), 60)
    demo.send_signal(signal.SIGTERM)
    _, message = demo.communicate(timeout=60)
    assert demo.returncode == 130, message
    assert message.decode().splitlines() == ["demo: interrupted; everything it started is stopped"]
    assert ours() == []
    assert list(tmp_path.iterdir()) == []
