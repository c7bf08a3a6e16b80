"""Those who open connections and let them lie take no agent's place for good."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from tests.collector.real_collector import GoodAgent, serving, until
from tests.collector.test_port_garbage import (
    PING,
    PREFACE,
    SETTINGS,
    begun,
    closed,
    connections,
    frame,
    gets_in,
)


def test_connections_that_ask_nothing_more_take_no_agents_place(tmp_path: Path) -> None:
    """Each has asked once, for what does not exist, and then lies there."""
    with (
        serving(tmp_path, agents_max=8) as served,
        GoodAgent(served) as good,
        connections(served, 8 + 256 + 100, begun("/nothing/Here")),
    ):
        good.goes_on()
        until(lambda: gets_in(served), "a new agent does not get in")


def test_who_ends_without_reading_does_not_stop_the_sweep(tmp_path: Path) -> None:
    """What it has not read holds its connection open; it is dropped like every other one, and so are those after it."""
    with serving(tmp_path) as served, GoodAgent(served) as good, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", served.port))
        deaf.sendall(begun())
        deaf.settimeout(1)
        # Until the answers do not fit any more, but before there are too many.
        pings = frame(PING, 0, 0, bytes(8)) * 1000
        with suppress(TimeoutError):
            for _ in range(190):
                deaf.sendall(pings)
        deaf.sendall(frame(SETTINGS, 0, 7, bytes(5)))
        good.goes_on()
        # The first of them may still be seen by the sweep that fails.
        for _ in range(2):
            with connections(served, 1, PREFACE[:12]) as [silent]:
                silent.settimeout(25)
                assert closed(silent)
        good.goes_on()
    assert "Traceback" not in "\n".join(served.log)
