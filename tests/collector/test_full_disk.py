"""The disk below the database fills up while agents send: a real file system, a real collector, the agent's own spool."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import duckdb
import pytest

from tests.collector import spooling_agent
from tests.collector.real_collector import Served, serving, until
from tests.collector.spooling_agent import Told
from tests.collector.test_kill import Part, check_node

DISK_BYTES = 64 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small ext4."""
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    made = shutil.which("mkfs.ext4") and not os.geteuid()
    commands = (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(point)])
    if not made or any(subprocess.run(c, capture_output=True, check=False).returncode for c in commands):
        pytest.skip("needs root, mkfs.ext4 and a loop device")
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def fill(path: Path) -> None:
    """Until not one block is left."""
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass


def told(directory: Path) -> Told:
    return spooling_agent.read((directory / "journal").read_text().split("\n")[:-1])


def acknowledged(directory: Path) -> int:
    """How far the spool was acknowledged when the agent last said so."""
    lines = (directory / "journal").read_text().split("\n")[:-1] if (directory / "journal").exists() else []
    return int(lines[-1].split()[-1]) if lines and lines[-1].startswith("try") else 0


def beyond(directory: Path, before: int) -> bool:
    return acknowledged(directory) > before


def complained(served: Served, times: int) -> bool:
    return len(complaints(served)) >= times


def complaints(served: Served) -> list[str]:
    return [line for line in served.log if "cannot write to the database" in line]


def test_a_disk_that_is_full_and_has_room_again(disk: Path, tmp_path: Path) -> None:
    own, filler = tmp_path / "agent", disk / "filler"
    own.mkdir()
    with serving(tmp_path, state=disk / "state") as served:
        command = ("tests.collector.spooling_agent", str(own), "n1", f"127.0.0.1:{served.port}")
        agent = Part(tmp_path / "agent.log", *command)
        try:
            for turn in (1, 2):
                before = acknowledged(own)
                until(partial(beyond, own, before), f"nothing is stored: {served.log[-3:]}")
                fill(filler)
                until(partial(complained, served, turn), "a full disk is not noticed")
                # What is answered now was stored before; then nothing moves, and the agent goes on.
                mark = mark_after(own)
                assert mark == mark_after(own)
                filler.unlink()
            before = acknowledged(own)
            until(partial(beyond, own, before), f"it does not go on: {served.log[-3:]}")
            agent.ask_to_stop()
            assert agent.stopped() == 0, agent.tail()
        finally:
            agent.end()
        assert len(complaints(served)) == 2
        assert "Traceback" not in "\n".join(served.log)
    with duckdb.connect(served.database, read_only=True) as database:
        check_node(database, "n1", told(own))


def mark_after(directory: Path, windows: int = 50) -> int:
    """How far all is acknowledged, after the agent has put in that many more."""
    begun = (directory / "journal").read_text().count("\n")
    until(lambda: (directory / "journal").read_text().count("\n") > begun + windows, "the agent does not go on")
    return acknowledged(directory)
