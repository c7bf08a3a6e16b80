"""Bad input on the command line: one clear line, a documented exit code, no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab import Exit


def trimtab(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trimtab", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def assert_one_line(done: subprocess.CompletedProcess[str], code: Exit, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last


def test_unknown_command() -> None:
    assert_one_line(trimtab("incident"), Exit.USAGE, "No such command 'incident'")


def test_unknown_option() -> None:
    assert_one_line(trimtab("nodes", "--jsn"), Exit.USAGE, "No such option", "--jsn")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[agent]\nwindw_seconds = 1", ("windw_seconds", "agent")),
        ("[agent]\nwindow_seconds = 0.01", (">= 0.1", "agent.window_seconds")),
        ("[colector]", ("colector",)),
        ("[actuator.guard]\nweight_min = nan", ("actuator.guard.weight_min",)),
        ("[agent", ("not valid TOML",)),
    ],
)
def test_bad_settings(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text(text)
    assert_one_line(trimtab("--config", str(file), "nodes"), Exit.SETTINGS, str(file), *words)


def test_missing_settings_file() -> None:
    assert_one_line(trimtab("--config", "/nowhere/trimtab.toml", "nodes"), Exit.SETTINGS, "/nowhere/trimtab.toml")


def test_no_collector(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        elsewhere = ["--state", str(tmp_path)]
        asking = (["nodes"], ["instances"], ["series"], ["incidents"], ["weights"], ["query", "SELECT 1", *elsewhere])
        for command in (*asking, ["backup", str(tmp_path / "copy"), *elsewhere]):
            assert_one_line(trimtab(*command, "--collector", address), Exit.UNREACHABLE, address)


def test_busy_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = tmp_path / "trimtab.toml"
        file.write_text(f'[collector]\nlisten = "{address}"')
        done = trimtab("--config", str(file), "collector", "--state", str(tmp_path))
        assert_one_line(done, Exit.LISTEN, "collector.listen", address)


def test_open_to_the_network_without_certificates(tmp_path: Path) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text('[collector]\nlisten = "0.0.0.0:0"')
    done = trimtab("--config", str(file), "collector", "--state", str(tmp_path))
    assert_one_line(done, Exit.SETTINGS, "collector.listen", "tls.ca")


@pytest.mark.parametrize("service", ["agent", "collector", "actuator", "up"])
def test_unwritable_state_directory(service: str) -> None:
    # procfs takes no directories, not even from root.
    assert_one_line(trimtab(service, "--state", "/proc/trimtab"), Exit.STATE, "/proc/trimtab", "--state")


def test_unknown_policy(tmp_path: Path) -> None:
    file = tmp_path / "trimtab.toml"
    file.write_text('[actuator]\npolicy = "clever"\nlisten = "127.0.0.1:0"')
    done = trimtab("--config", str(file), "actuator", "--state", str(tmp_path))
    assert_one_line(done, Exit.SETTINGS, "actuator.policy", "clever", "proportional")
