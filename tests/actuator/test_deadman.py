"""The dead man's switch counts as there only while it answers."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.actuator.conftest import until
from trimtab.actuator.deadman import ANSWER_SECONDS, STARTING_SECONDS, DeadMan
from trimtab.agent.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def switch(clock: ManualClock, tmp_path: Path) -> Iterator[DeadMan]:
    made = DeadMan(tmp_path / "steered.json", clock)
    yield made
    if made._process:
        made._process.kill()
    made.close(restored=True)


def test_an_answer_is_what_counts(switch: DeadMan, clock: ManualClock) -> None:
    assert "no dead man's switch" in switch.beat(), "started is not yet at work"
    until(lambda: switch.beat() == "", 10, "it answers")
    assert switch._process
    os.kill(switch._process.pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{switch._process.pid}/stat").read_text().split()[2] == "T", 5, "hangs")
    switch.beat()  # takes in what was answered before
    clock.advance(ANSWER_SECONDS + 0.1)
    assert "does not answer" in switch.beat()
    os.kill(switch._process.pid, signal.SIGCONT)
    until(lambda: switch.beat() == "", 5, "it answers again")


def test_one_that_was_killed_is_replaced_without_a_pause(switch: DeadMan, clock: ManualClock) -> None:
    until(lambda: switch.beat() == "", 10, "it answers")
    assert switch._process
    old = switch._process
    old.kill()
    old.wait()
    clock.advance(1)
    assert switch.beat() == ""
    assert switch._process is not old
    clock.advance(ANSWER_SECONDS)
    until(lambda: switch.beat() == "", 10, "the new one answers")


def test_one_that_dies_at_the_start_is_none(switch: DeadMan, clock: ManualClock) -> None:
    switch._command = [sys.executable, "-c", "import sys; sys.stdin.read(1)"]
    for _ in range(5):
        clock.advance(1)
        assert "no dead man's switch" in switch.beat()
        time.sleep(0.05)


def test_one_that_only_starts_is_no_trouble_and_nothing_is_steered(switch: DeadMan, clock: ManualClock) -> None:
    switch._command = [sys.executable, "-c", "import time; time.sleep(600)"]
    for _ in range(2):
        assert switch.beat() == "no dead man's switch yet, it starts: neutral"
        clock.advance(STARTING_SECONDS / 2)
    switch.beat()
    clock.advance(0.1)
    for _ in range(2):
        assert switch.beat() == "no dead man's switch (it does not answer): neutral"
        clock.advance(STARTING_SECONDS)


def test_one_that_answered_before_has_no_time_to_start(switch: DeadMan, clock: ManualClock) -> None:
    until(lambda: switch.beat() == "", 10, "it answers")
    assert switch._process
    os.kill(switch._process.pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{switch._process.pid}/stat").read_text().split()[2] == "T", 5, "hangs")
    switch.beat()
    clock.advance(ANSWER_SECONDS + 0.1)
    assert switch.beat() == "no dead man's switch (it does not answer): neutral"


def test_one_that_ends_by_itself_is_trouble_at_once(switch: DeadMan) -> None:
    switch._command = [sys.executable, "-c", ""]
    switch.beat()
    assert switch._process
    switch._process.wait()
    assert switch.beat() == "no dead man's switch (it ended by itself): neutral"
