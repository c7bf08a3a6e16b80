"""Request latency, queueing and traffic of each serving instance, measured in the kernel (docs/ebpf.md)."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import loader
from trimtab.agent.bpf.counters import INSTANCES_MAX, Counters, Endpoint, source
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.sketch.loglinear import Sketch

log = logging.getLogger(__name__)

_SKETCHES = {"request_latency": "latency", "request_queue": "queue"}
_RATES = {
    "requests_per_second": "answered",
    "requests_aborted_per_second": "aborted",
    "connections_per_second": "connections",
    "tcp_retransmits_per_second": "retransmits",
}


class Latency:
    """Watches the port of every instance that was found. An instance is known from the second reading that names it."""

    name = "latency"
    signals = (
        Signal("request_latency", "s", "arrival of the request → first byte of the answer", "instance", sketch=True),
        Signal("request_queue", "s", "arrival of the request → the server reads it", "instance", sketch=True),
        Signal("requests_per_second", "1/s", "requests answered; all of them, sampled or not", "instance", rate=True),
        Signal(
            "requests_aborted_per_second",
            "1/s",
            "requests whose connection ended without an answer",
            "instance",
            rate=True,
        ),
        Signal("requests_in_flight", "1", "requests that arrived and have no answer yet", "instance"),
        Signal("connections_per_second", "1/s", "connections accepted by the kernel", "instance", rate=True),
        Signal("tcp_retransmits_per_second", "1/s", "segments sent again to clients", "instance", rate=True),
    )

    def open(self, host: Host) -> None:
        self._probability = host.probes.sampling_probability
        self._program = _load(self._probability)
        self._counters = Counters(self._program)
        self._before: dict[Endpoint, NDArray[np.void]] = {}
        self._full = False

    def read(self, reading: Reading) -> None:
        watched = {(instance.netns, instance.port): instance for instance in reading.instances}
        left_out = self._counters.watch(set(watched))
        if left_out and not self._full:
            log.warning("request latency: only %d instances are watched; unknown for the rest", INSTANCES_MAX)
        self._full = bool(left_out)
        now = {endpoint: self._counters.read(endpoint) for endpoint in watched.keys() - left_out}
        for endpoint in now.keys() & self._before.keys():
            self._fill(reading, watched[endpoint], self._before[endpoint], now[endpoint])
        self._before = now

    def close(self) -> None:
        del self._counters
        self._program.close()

    def _fill(self, reading: Reading, instance: Instance, before: NDArray[np.void], now: NDArray[np.void]) -> None:
        for signal, field in _RATES.items():
            reading.set("instance", instance.id, signal, int(now[field] - before[field]) / reading.seconds)
        in_flight = int(now["started"]) - int(now["answered"]) - int(now["aborted"])
        reading.set("instance", instance.id, "requests_in_flight", max(0, in_flight))
        for signal, field in _SKETCHES.items():
            # Unsigned, so that a bucket that went past 2^32 still gives the right difference.
            counts = (now[field] - before[field]).astype(np.int64)
            if counts.any():
                seconds = int(now[f"{field}_sum_ns"] - before[f"{field}_sum_ns"]) / 1e9
                reading.sketch("instance", instance.id, signal, Sketch(counts, seconds, self._probability))


def _load(sampling_probability: float) -> loader.Program:
    loader.require()
    return loader.load(source(sampling_probability))


COLLECTOR = Latency
