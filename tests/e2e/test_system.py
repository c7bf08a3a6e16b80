"""The three services together, as processes: what is killed comes back, and no window is lost or stored twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

WINDOW_SECONDS = 0.25


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class System:
    """Services started one by one, all with the same settings and state."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.collector = f"127.0.0.1:{free_port()}"
        self.config = directory / "trimtab.toml"
        self.config.write_text(
            f'[agent]\nnode = "n1"\ncollector = "{self.collector}"\nwindow_seconds = {WINDOW_SECONDS}\ndisable = ["latency"]\n'
            f'[collector]\nlisten = "{self.collector}"\n'
            f'[actuator]\ncollector = "{self.collector}"\nlisten = "127.0.0.1:{free_port()}"\nhaproxy_sockets = []\n'
        )
        self.trimtab = [sys.executable, "-m", "trimtab", "--config", str(self.config)]
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, service: str) -> None:
        """Start it, and wait until it says that it is ready."""
        log = self.directory / f"{service}.log"
        log.touch()
        before = log.read_text().count("is ready")
        command = [*self.trimtab, service, "--state", str(self.directory)]
        with log.open("ab") as output:
            self.running[service] = subprocess.Popen(command, stdout=output, stderr=output)
        wait_until(lambda: log.read_text().count("is ready") > before)

    def kill(self, service: str) -> None:
        process = self.running.pop(service)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            assert process.wait(20) == 0
        self.running.clear()

    def ask(self, *arguments: str) -> list[dict[str, object]]:
        """Rows of a question to the collector; none while it is away."""
        command = [*self.trimtab, *arguments, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=dict(os.environ))
        rows: list[dict[str, object]] = json.loads(done.stdout) if done.returncode == 0 else []
        return rows

    def windows(self) -> int:
        rows = self.ask("query", "SELECT count(*) AS n FROM windows")
        return int(str(rows[0]["n"])) if rows else 0


def wait_until(condition: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    made = System(tmp_path)
    yield made
    for service in list(made.running):
        made.kill(service)


def test_killed_services_lose_no_window_and_repeat_none(system: System) -> None:
    for service in ("collector", "agent", "actuator"):
        system.start(service)
    wait_until(lambda: system.windows() >= 4)

    system.kill("collector")
    time.sleep(12 * WINDOW_SECONDS)  # An outage: the agent fills its spool.
    system.start("collector")
    before = system.windows()
    wait_until(lambda: system.windows() >= before + 12)

    system.kill("agent")
    system.start("agent")
    before = system.windows()
    wait_until(lambda: system.windows() >= before + 4)

    system.kill("actuator")
    system.start("actuator")
    system.stop()

    question = (
        "SELECT count(*) AS n, count(DISTINCT seq) AS distinct_n, min(seq) AS first, max(seq) AS last, "
        "count(DISTINCT spool) AS spools FROM windows"
    )
    # No collector runs: the same command opens the file itself.
    row = system.ask("query", question, "--state", str(system.directory))[0]
    assert row["spools"] == 1
    assert row["n"] == row["distinct_n"] == row["last"]
    assert row["first"] == 1


def services(up: int) -> dict[str, psutil.Process]:
    """The services that `trimtab up` runs now, by name."""
    children = psutil.Process(up).children()
    return {p.cmdline()[-3]: p for p in children if p.status() != psutil.STATUS_ZOMBIE and len(p.cmdline()) > 3}


def test_up_starts_a_killed_service_again_and_stops_all(system: System) -> None:
    system.start("up")
    up = system.running["up"]
    wait_until(lambda: system.windows() >= 2)
    assert set(services(up.pid)) == {"agent", "collector", "actuator"}
    killed = services(up.pid)["agent"]
    killed.kill()
    wait_until(lambda: services(up.pid).get("agent", killed).pid != killed.pid)
    left = list(services(up.pid).values())
    system.stop()
    assert not any(p.is_running() for p in left)


def test_services_do_not_outlive_up(system: System) -> None:
    system.start("up")
    left = list(services(system.running["up"].pid).values())
    assert len(left) == 3
    system.kill("up")
    _, alive = psutil.wait_procs(left, timeout=20)
    assert alive == []
