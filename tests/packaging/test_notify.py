"""What systemd hears: from a real `trimtab agent`, over a real datagram socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.notify import Notify

SETTINGS = '[agent]\nnode = "n1"\ncollector = "127.0.0.1:1"\nwindow_seconds = 0.1\ndisable = ["latency"]\n'


class Systemd:
    """The receiving end of sd_notify(3)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def hear(self, seconds: float = 20) -> list[str]:
        """The lines of the next message; none when there is none in time."""
        self._socket.settimeout(seconds)
        try:
            return self._socket.recv(8192).decode().split("\n")
        except (TimeoutError, BlockingIOError):
            return []

    def empty(self) -> None:
        """Forget what was said so far."""
        while self.hear(0):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    one = Systemd(tmp_path / "notify")
    yield one
    one.close()


def told(systemd: Systemd, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(systemd.path), **more}


@pytest.fixture
def agent(systemd: Systemd, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    config = tmp_path / "trimtab.toml"
    config.write_text(SETTINGS)
    environment = {
        **os.environ,
        "NOTIFY_SOCKET": str(systemd.path),
        "WATCHDOG_USEC": "30000000",
        "STATE_DIRECTORY": str(tmp_path / "state"),
    }
    command = [sys.executable, "-m", "trimtab", "--config", str(config), "agent"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stderr=log)
        yield process
        process.kill()
        process.wait()


def state_of(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0]


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_agent_is_ready_with_its_first_window_and_beats_with_each(
    agent: subprocess.Popen[bytes], systemd: Systemd, tmp_path: Path
) -> None:
    first = systemd.hear()
    assert first[:2] == ["READY=1", "WATCHDOG=1"]
    assert first[2].startswith("STATUS=a window every 0.1 s")
    # systemd's directory is taken as it is.
    assert sum(p.stat().st_size for p in (tmp_path / "state" / "spool").glob("*.windows")) > 0
    assert [systemd.hear() for _ in range(3)] == [["WATCHDOG=1"]] * 3
    # Stopped, it falls silent; going on, it beats again.
    agent.send_signal(signal.SIGSTOP)
    until(lambda: state_of(agent) == "T")
    systemd.empty()
    assert systemd.hear(1) == []
    agent.send_signal(signal.SIGCONT)
    assert systemd.hear() == ["WATCHDOG=1"]
    agent.terminate()
    heard = systemd.hear()
    while heard == ["WATCHDOG=1"]:
        heard = systemd.hear()
    assert heard == ["STOPPING=1", "STATUS=stopping"]
    assert agent.wait(20) == 0


def test_ready_is_said_once_and_status_when_it_changes(systemd: Systemd) -> None:
    notify = Notify(told(systemd))
    assert [notify.beat("one\nline"), notify.beat("one\nline"), notify.beat("another")] == [True, False, False]
    assert systemd.hear(0) == ["READY=1", "STATUS=one line"]
    assert systemd.hear(0) == ["STATUS=another"]
    # Without WatchdogSec= there is nobody who waits for a beat.
    assert systemd.hear(0) == []


def test_a_watchdog_that_is_too_short_for_the_windows_is_made_longer(systemd: Systemd) -> None:
    notify = Notify(told(systemd, WATCHDOG_USEC="30000000"))
    notify.expect(beat_seconds=1)
    assert systemd.hear(0) == []
    notify.expect(beat_seconds=60)
    assert systemd.hear(0) == ["WATCHDOG_USEC=190000000"]


def test_a_watchdog_of_another_process_is_left_alone(systemd: Systemd) -> None:
    notify = Notify(told(systemd, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getppid())))
    notify.expect(beat_seconds=60)
    notify.beat()
    assert systemd.hear(0) == ["READY=1"]


def test_children_do_not_inherit_the_line(systemd: Systemd) -> None:
    environment = told(systemd)
    Notify(environment)
    assert environment == {}


@pytest.mark.parametrize("address", ["", "/nowhere/notify", "@trimtab-test-nobody-listens"])
def test_without_systemd_it_is_mute(address: str) -> None:
    notify = Notify({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "x"})
    assert notify.beat("anything")
    notify.stopping()


def test_a_full_or_closed_line_does_not_stop_the_service(systemd: Systemd) -> None:
    notify = Notify(told(systemd, WATCHDOG_USEC="30000000"))
    for _ in range(1000):  # far more than the queue of a datagram socket
        notify.beat()
    systemd.close()
    notify.beat()


def test_an_abstract_socket() -> None:
    name = f"trimtab-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind("\0" + name)
        line.settimeout(5)
        Notify({"NOTIFY_SOCKET": "@" + name}).beat()
        assert line.recv(100) == b"READY=1"
