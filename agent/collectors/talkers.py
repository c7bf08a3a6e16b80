"""The remote sides that send requests to each serving instance, from the map of the request probes (docs/talkers.md).

Cost: the map is read every 10 s, in 2 ms of CPU for 1,000 remotes and 15 ms for 8,000; 2.3 MB of memory for the library.
`agent.talkers = false` switches it off.
"""

from __future__ import annotations

import socket

import numpy as np

from trimtab.agent.bpf.remotes import KEY, Look, growth
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.sketch.talkers import Tally
from trimtab.agent.wire.talkers import SECONDS_MAX

# Ten windows of a second, less what the loop may be early.
INTERVAL_SECONDS = 9.9
_WEIGHTS = {"requests": "answered", "errors": "errors"}
_IPV4 = bytes(10) + b"\xff\xff"


class Talkers:
    """Says nothing while the request probes are not loaded."""

    name = "talkers"
    signals = (Signal("remotes_distinct", "1", "remote addresses with answered requests in the last 10 s", "instance"),)

    def open(self, host: Host) -> None:
        self._clock = host.clock
        self._remotes = host.remotes
        self._before: Look | None = None
        self._read_at = 0.0
        self._distinct: dict[str, int] = {}

    def read(self, reading: Reading) -> None:
        now = self._clock.monotonic()
        if self._before is None or now - self._read_at >= INTERVAL_SECONDS:
            look = self._remotes.look()
            seconds = now - self._read_at
            before, self._before, self._read_at = self._before, look, now
            self._distinct = {}
            # After a suspension the interval says little.
            if look and before and look.stretch == before.stretch and seconds <= SECONDS_MAX:
                self._close_interval(reading, before, look, seconds)
        for instance in reading.instances:
            reading.set("instance", instance.id, "remotes_distinct", self._distinct.get(instance.id))

    def close(self) -> None:
        pass

    def _close_interval(self, reading: Reading, before: Look, now: Look, seconds: float) -> None:
        instances = {(instance.netns, instance.port): instance for instance in reading.instances}
        rise = growth(before, now)
        slots = now.keys.view(KEY)["slot"]
        for slot, endpoint in now.endpoints.items():
            # A slot that changed hands within the interval counted for both.
            if endpoint in instances and before.endpoints.get(slot) == endpoint:
                talked = (slots == slot) & (rise["answered"] > 0)
                self._distinct[instances[endpoint].id] = int(talked.sum())
                _tell(reading, instances[endpoint], now.keys[talked], rise[talked], seconds)


def _tell(reading: Reading, instance: Instance, keys: np.ndarray, rise: np.ndarray, seconds: float) -> None:
    remotes = [_address(bytes(address)) for address in keys.view(KEY)["address"].tolist()]
    for name, field in _WEIGHTS.items():
        tally = Tally()
        for remote, weight in zip(remotes, rise[field].tolist(), strict=True):
            if weight:
                tally.add(remote, weight)
        # An empty one loses its total on the way, and is no sketch that the collector takes.
        if not tally.is_empty:
            reading.talk("instance", instance.id, name, tally.pack(seconds))


def _address(raw: bytes) -> str:
    if raw.startswith(_IPV4):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


COLLECTOR = Talkers
