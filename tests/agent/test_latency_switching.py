"""What the request probes say while they are switched, thinned out or full, and what they count for each remote side."""

from __future__ import annotations

import socket
from collections.abc import Callable

import numpy as np
import pytest

from tests.agent.requests_kit import Client, Server, Watch, instance, needs_ebpf, serve, server, shared, until, watch
from trimtab.agent.registry import Instance

__all__ = ["serve", "server", "shared", "watch"]
pytestmark = needs_ebpf


def switch(seen: Watch, name: str, on: bool) -> None:
    (probe,) = [probe for probe in seen.host.probes.all() if probe.name == name]
    probe.switch(on)


def known(seen: Watch, serving: Instance) -> set[str]:
    reading = seen.read()
    return {name for kind, _, name in (*reading.values, *reading.sketches) if kind == "instance"}


def test_requests_are_unknown_unless_the_probe_was_on_for_the_whole_window(
    server: Server, watch: Callable[..., Watch]
) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    idle, waiting = Client(server.port), Client(server.port)
    idle.ask()
    waiting.socket.sendall(b"1000\n")
    until(lambda: seen.in_flight(serving) == 1)
    switch(seen, "requests", on=False)
    assert known(seen, serving) == set()
    idle.ask()
    waiting.close(reset=True)
    switch(seen, "requests", on=True)
    assert known(seen, serving) == set(), "it was off for a part of it"
    seen.counts.clear()
    assert seen.in_flight(serving) == 0, "what was open at the switch is not in flight for ever"
    for _ in range(5):
        idle.ask()
    until(lambda: seen.count(serving) >= 5)
    assert seen.count(serving) == 5
    assert seen.count(serving, "requests_unmeasured_per_second") == 1, (
        "of the first one the beginning may have been missed"
    )
    assert seen.count(serving, "requests_aborted_per_second") == 0
    assert seen.in_flight(serving) == 0


@pytest.mark.parametrize("with_handshake", [True, False])
def test_only_the_queue_is_unknown_while_its_probe_is_off(
    server: Server, watch: Callable[..., Watch], with_handshake: bool
) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    switch(seen, "request queue", on=False)
    seen.read()
    for _ in range(7):
        client = Client(server.port, with_handshake=with_handshake)
        client.ask()
        client.ask()
        client.close()
    until(lambda: seen.count(serving) >= 14)
    assert seen.count(serving) == seen.sampled(serving) == 14
    assert seen.sampled(serving, "request_queue") == 0
    client = Client(server.port)
    client.socket.sendall(b"0.0 ")
    until(lambda: seen.in_flight(serving) == 1)
    switch(seen, "request queue", on=True)
    seen.read()
    client.ask()
    client.ask()
    until(lambda: seen.count(serving) == 16)
    assert seen.sampled(serving, "request_queue") == 1, "the first was read before, too"


def test_a_window_has_the_probability_that_it_was_sampled_with(server: Server, watch: Callable[..., Watch]) -> None:
    serving = instance(server.port)
    seen = watch(serving, probability=0.5)
    client = Client(server.port)

    def ask(times: int) -> float:
        before = seen.counts[serving.id, "requests_per_second"]
        seen.sketches.clear()
        for _ in range(times):
            client.ask()
        until(lambda: seen.count(serving) - before >= times)
        (probability,) = {sketch.probability for sketch in seen.sketches[serving.id, "request_latency"]}
        return probability

    assert ask(200) == 0.5
    assert 0 < seen.sampled(serving) < 200
    seen.host.probes.sampling_probability = 0.01
    seen.read()
    assert ask(500) == 0.01
    assert 0 <= seen.sampled(serving) < 50
    seen.host.probes.sampling_probability = 1.0
    seen.read()
    assert ask(100) == 1.0
    assert seen.sampled(serving) == 100


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", b"\0" * 10 + b"\xff\xff\x7f\0\0\1"), ("::1", b"\0" * 15 + b"\1")]
)
def test_what_each_remote_side_asked(
    serve: Callable[..., Server], watch: Callable[..., Watch], host: str, address: bytes
) -> None:
    def handle(conversation: socket.socket) -> None:
        with conversation.makefile("rb") as lines:
            for line in lines:
                conversation.sendall(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\n\r\n" % int(line))

    server = serve(handle, host=host)
    serving = instance(server.port)
    seen = watch(serving)
    for _ in range(3):
        client = Client(server.port, host=host)
        for status in [503] * 7 + [200] * 33:
            client.socket.sendall(b"%d\n" % status)
            client.receive(b"\r\n\r\n")
        client.close()
    until(lambda: seen.count(serving) >= 120)
    assert seen.count(serving) == 120
    look = seen.host.remotes.look()
    assert look is not None
    (slot,) = [slot for slot, endpoint in look.endpoints.items() if endpoint == (serving.netns, serving.port)]
    key = slot.to_bytes(4, "little") + address

    def tally() -> np.void:
        look = seen.host.remotes.look()
        assert look is not None
        padded = np.array([key], look.keys.dtype)
        (found,) = look.values[look.keys == padded]
        return found

    until(lambda: tally()["answered"] >= 120)
    assert (tally()["answered"], tally()["errors"]) == (120, 21)
    total = sum(sketch.sum_seconds for sketch in seen.sketches[serving.id, "request_latency"])
    assert tally()["latency_sum_ns"] / 1e9 == pytest.approx(total)


def test_connections_beyond_the_limit_are_counted(server: Server, watch: Callable[..., Watch]) -> None:
    serving = instance(server.port)
    seen = watch(serving)
    control = seen.collector._counters._control
    before = int(control["tracked"])
    control["tracked"] = 1 << 20
    try:
        for _ in range(3):
            client = Client(server.port)
            client.ask()
            client.close()
        until(lambda: seen.read().values["node", "node", "connections_untracked_per_second"] == 0)
        assert seen.count(serving) == 0
        assert seen.counts["node", "connections_untracked_per_second"] >= 3
    finally:
        control["tracked"] = before
    client = Client(server.port)
    client.ask()
    until(lambda: seen.count(serving) == 1)
    client.close()
    until(lambda: int(control["tracked"]) == before)
