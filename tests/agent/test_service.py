"""The agent as a whole: a real process with a collector of its own, killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.fakes import NODE, Fake, Service, until
from trimtab import Exit, TrimtabError
from trimtab.agent import service as agent
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.own import Own, Vitals
from trimtab.agent.registry import Instance
from trimtab.agent.settings import AgentSettings, Tls
from trimtab.agent.spool import Spool
from trimtab.agent.wire.events import AGENT_STOPPED

# Ready is said on stdout; SIGTERM stops it, as the command does.
AGENT = """
import signal, sys, threading, logging
from pathlib import Path
from tests.agent.test_service import fake_host
from trimtab.agent import service
from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import AgentSettings, Tls
logging.basicConfig(level=logging.INFO)
fake_host(lambda name, value: setattr(service, name, value))
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
settings = AgentSettings(node="n1", collector=f"127.0.0.1:{sys.argv[2]}", window_seconds=0.1)
service.run(settings, Tls(), Path(sys.argv[1]), SystemClock(), stop, lambda: print("ready", flush=True))
"""


class OneFake(Fake):
    name = "fake"

    def __init__(self) -> None:
        super().__init__()


class Nothing:
    """Finds no instances."""

    def __init__(self, node: str) -> None:
        pass

    def find(self, now_monotonic: float) -> tuple[Instance, ...]:
        return ()


def fake_host(put: Callable[[str, object], object]) -> None:
    put("discover", lambda: iter((OneFake, Own)))
    put("Discovery", Nothing)


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    one.start()
    yield one
    one.stop()


def start(state: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, str(state), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def stopped() -> threading.Event:
    """An agent that should not start and yet does ends at once."""
    stop = threading.Event()
    stop.set()
    return stop


def spool_bytes(state: Path) -> int:
    return sum(path.stat().st_size for path in (state / "spool").glob("*.windows"))


def await_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_kill_9_and_restart_leave_no_gap_and_use_no_number_twice(tmp_path: Path, service: Service) -> None:
    for round_ in range(3):
        process = start(tmp_path, service.port)
        await_ready(process)
        before = len(service.stored)
        until(lambda before=before: len(service.stored) >= before + 5)  # type: ignore[misc]
        if round_ == 1:
            # With the collector away the spool has to hold them.
            service.stop()
            size = spool_bytes(tmp_path)
            until(lambda size=size: spool_bytes(tmp_path) > size + 3000)  # type: ignore[misc]
            service.start()
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = len(service.stored)
    process = start(tmp_path, service.port)
    # Before the collector has welcomed it, an agent that ends leaves its windows to the spool.
    until(lambda: len(service.stored) > before)
    process.terminate()
    assert process.wait(10) == 0
    spool_ids = {spool for spool, _ in service.stored}
    numbers = [seq for _, seq in service.stored]
    assert len(spool_ids) == 1
    assert numbers == list(range(1, len(numbers) + 1))
    starts = [window.start_unix_ns for window in service.stored.values()]
    assert starts == sorted(set(starts))
    hello = service.hellos[-1]
    assert hello.node == NODE
    assert hello.boot_id
    # All that the last agent saw was sent before it ended.
    spool = Spool(tmp_path / "spool", 64 << 20, Vitals())
    assert spool.last_seq == numbers[-1]
    spool.close()


def test_ready_comes_with_the_first_window_and_stop_ends_it_in_order(
    tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_host(lambda name, value: monkeypatch.setattr(agent, name, value))
    stop, ready = threading.Event(), threading.Event()
    settings = AgentSettings(node=NODE, collector=f"127.0.0.1:{service.port}", window_seconds=0.1, labels={"rack": "r"})
    arguments = (settings, Tls(), tmp_path, SystemClock(), stop, ready.set)
    runner = threading.Thread(target=agent.run, args=arguments)
    runner.start()
    assert ready.wait(5)
    until(lambda: len(service.stored) >= 2)
    stop.set()
    runner.join(10)
    assert not runner.is_alive()
    last = max(service.stored)
    assert [(event.subject, event.name) for event in service.stored[last].events] == [(NODE, AGENT_STOPPED)]
    assert dict(service.hellos[0].labels) == {"rack": "r"}
    # The directory is free for the next.
    Spool(tmp_path / "spool", 64 << 20, Vitals()).close()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (AgentSettings(disable=("gpuu",)), r"agent\.disable.*gpuu.*own"),
        (AgentSettings(node="a/b"), r"agent\.node.*a/b"),
        (AgentSettings(node="gpu host 7"), r"agent\.node.*gpu host 7.*set agent\.node"),
        (AgentSettings(node="n" * 129), r"agent\.node"),
        (AgentSettings(labels={"k": "v" * 300}), r"agent\.labels"),
        (AgentSettings(labels={f"k{i}": "v" * 250 for i in range(17)}), r"agent\.labels.*shorter"),
        (AgentSettings(labels={f"k{i}": "" for i in range(65)}), r"agent\.labels"),
        (AgentSettings(labels={"rack": "r" * 65}), r"agent\.labels\.rack: not at most 64 printable.*shorter"),
        (AgentSettings(labels={"switch": "s\n1"}), r"agent\.labels\.switch: not at most 64 printable"),
        (AgentSettings(collector="192.0.2.1:7470"), r"agent\.collector.*tls"),
        (AgentSettings(metrics_listen="0.0.0.0:7472"), r"agent\.metrics_listen.*127\.0\.0\.1"),
    ],
)
def test_settings_that_cannot_work_are_one_line(tmp_path: Path, settings: AgentSettings, names: str) -> None:
    with pytest.raises(TrimtabError, match=names) as caught:
        agent.run(settings, Tls(), tmp_path, SystemClock(), stopped(), lambda: None)
    assert caught.value.exit_code == Exit.SETTINGS
    assert "\n" not in str(caught.value)
    Spool(tmp_path / "spool", 64 << 20, Vitals()).close()


def test_a_host_name_that_cannot_be_a_node_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "default_node", lambda: "gpu_höst")
    with pytest.raises(TrimtabError, match=r"gpu_höst.*set agent\.node") as caught:
        agent.run(AgentSettings(), Tls(), tmp_path, SystemClock(), stopped(), lambda: None)
    assert caught.value.exit_code == Exit.SETTINGS


def test_a_host_without_a_machine_id_has_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.read_text

    def read_text(self: Path) -> str:
        return real(tmp_path / "absent" if str(self) == "/etc/machine-id" else self)

    spool = Spool(tmp_path / "spool", 64 << 20, Vitals())
    monkeypatch.setattr(Path, "read_text", read_text)
    hello = agent._hello(NODE, {}, spool, SystemClock())
    assert hello.machine_id == ""
    assert hello.boot_id
    spool.close()


def test_disabled_collectors_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_host(lambda name, value: monkeypatch.setattr(agent, name, value))
    vitals = Vitals()
    assert [one.name for one in agent._enabled((), vitals)] == ["fake", "own"]
    assert [one.name for one in agent._enabled(("own",), vitals)] == ["fake"]
