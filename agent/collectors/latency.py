"""The requests of each serving instance, measured in the kernel (docs/ebpf.md).

Cost: 0.7 µs of CPU a request, both ends on the host; a reading 0.1 ms, and 35 µs more an instance.
"""

from __future__ import annotations

import logging
import time

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.bpf import loader, syscall
from trimtab.agent.bpf.counters import Counters, Endpoint
from trimtab.agent.bpf.layout import INSTANCES_MAX, source
from trimtab.agent.probes import Probe
from trimtab.agent.registry import Host, Instance, Reading, Signal
from trimtab.agent.sketch.loglinear import Sketch

log = logging.getLogger(__name__)

_QUEUE_HOOK = "tcp_rcv_space_adjust"
_SKETCHES = {"request_latency": "latency", "request_duration": "duration", "request_queue": "queue"}
_RATES = {
    "requests_per_second": "answered",
    "request_errors_per_second": "errors",
    "request_client_errors_per_second": "client_errors",
    "requests_aborted_per_second": "aborted",
    "requests_unmeasured_per_second": "unmeasured",
    "connections_per_second": "connections",
    "tcp_retransmits_per_second": "retransmits",
}
_REASONS = {"http2": "HTTP/2", "tls": "TLS", "other": "not HTTP"}
"""Why a connection is not measured, as a label says it."""
_NEVER_NS = (1 << 64) - 1
_UNMEASURED = "connections_unmeasured_per_second"


class Latency:
    """Watches the port of every instance that was found. An instance is known from the second reading that names it."""

    name = "latency"
    signals = (
        Signal("request_latency", "s", "arrival of the request → first byte of the answer", "instance", sketch=True),
        Signal("request_duration", "s", "arrival of the request → last send of the answer", "instance", sketch=True),
        Signal("request_queue", "s", "arrival of the request → the server reads it", "instance", sketch=True),
        Signal("requests_per_second", "1/s", "requests answered; all of them, sampled or not", "instance", rate=True),
        Signal("request_errors_per_second", "1/s", "answers with a status of 500 and above", "instance", rate=True),
        Signal("request_client_errors_per_second", "1/s", "answers with a status of 400 to 499", "instance", rate=True),
        Signal(
            "requests_aborted_per_second",
            "1/s",
            "requests whose connection ended without an answer",
            "instance",
            rate=True,
        ),
        Signal(
            "requests_unmeasured_per_second",
            "1/s",
            "requests answered whose latency cannot be known, as of pipelined ones",
            "instance",
            rate=True,
        ),
        Signal("requests_in_flight", "1", "requests that arrived and have no answer yet", "instance"),
        Signal("connections_per_second", "1/s", "connections accepted by the kernel", "instance", rate=True),
        Signal(
            _UNMEASURED,
            "1/s",
            "connections found to speak HTTP/2, TLS or no HTTP: their requests are unknown; the label latency_unknown names it",
            "instance",
            rate=True,
        ),
        Signal("tcp_retransmits_per_second", "1/s", "segments sent again to clients", "instance", rate=True),
        Signal(
            "connections_untracked_per_second", "1/s", "connections that the probes had no room for", "node", rate=True
        ),
        Signal("probe_misses_per_second", "1/s", "runs of request probes that the kernel left out", "node", rate=True),
    )

    def open(self, host: Host) -> None:
        loader.require()
        self._host = host
        self._program = loader.load(source())
        self._counters = Counters(self._program)
        self._sample()
        hooks = [hook for hook in self._program.programs if hook != _QUEUE_HOOK]
        self._requests = Probe("requests", self._program, hooks)
        self._queue = Probe("request queue", self._program, (_QUEUE_HOOK,))
        host.probes.add(self._requests, self._queue)
        self._before: dict[Endpoint, NDArray[np.void]] = {}
        self._of_host: dict[str, int] = {}
        self._full = False

    def read(self, reading: Reading) -> None:
        has_queue = self._follow_switches()
        watched = {(instance.netns, instance.port): instance for instance in reading.instances}
        by_grpc = {
            (instance.netns, instance.grpc_port): instance for instance in reading.instances if instance.grpc_port
        }
        left_out = self._counters.watch(watched.keys() | by_grpc.keys())
        if left_out and not self._full:
            log.warning("request latency: only %d instances are watched; unknown for the rest", INSTANCES_MAX)
        self._full = bool(left_out)
        self._host.remotes.offer(self._program.maps["remotes"], self._counters.slots())
        now = {endpoint: self._counters.read(endpoint) for endpoint in (watched.keys() | by_grpc.keys()) - left_out}
        for endpoint in now.keys() & self._before.keys() & by_grpc.keys():
            self._tell_unmeasured(reading, by_grpc[endpoint], self._before[endpoint], now[endpoint])
        for endpoint in now.keys() & self._before.keys() & watched.keys():
            self._fill(reading, watched[endpoint], self._before[endpoint], now[endpoint], has_queue)
            in_flight = self._counters.in_flight(endpoint, now[endpoint])
            reading.set("instance", watched[endpoint].id, "requests_in_flight", in_flight)
        self._before = now
        self._fill_host(reading)
        self._sample()

    def close(self) -> None:
        self._host.probes.remove(self._requests, self._queue)
        self._host.remotes.withdraw()
        del self._counters
        self._program.close()

    def _follow_switches(self) -> bool:
        """Start anew where a probe was not on for the whole window; whether the reads of the server were all seen."""
        if not self._requests.whole():
            self._counters.forget()
            self._host.remotes.withdraw()
            self._before = {}
        has_queue = self._queue.whole()
        if not has_queue:
            # The kernel's clock, which is not to be injected.
            self._counters.queue_since(time.monotonic_ns() if self._queue.on else _NEVER_NS)
        return has_queue

    def _sample(self) -> None:
        """Later changes count from the next window on, so that a window has one probability."""
        self._probability = self._host.probes.sampling_probability
        self._counters.sample(self._probability)

    def _fill(
        self, reading: Reading, instance: Instance, before: NDArray[np.void], now: NDArray[np.void], has_queue: bool
    ) -> None:
        total, earlier = self._counters.counts(now), self._counters.counts(before)
        rise = {name: total[name] - earlier[name] for name in total}
        for signal, field in _RATES.items():
            reading.set("instance", instance.id, signal, rise[field] / reading.seconds)
        self._tell_unmeasured(reading, instance, before, now)
        for signal, field in _SKETCHES.items():
            sum_ns = rise[f"{field}_sum_ns"]
            if sum_ns and (has_queue or field != "queue"):
                # Unsigned, so that a bucket that went past 2^32 still gives the right difference.
                counts = (now[field] - before[field]).astype(np.int64)
                if counts.any():
                    sketch = Sketch(counts, sum_ns / 1e9, self._probability)
                    reading.sketch("instance", instance.id, signal, sketch)

    def _tell_unmeasured(
        self, reading: Reading, instance: Instance, before: NDArray[np.void], now: NDArray[np.void]
    ) -> None:
        """How many connections of one port are no HTTP/1, added to those of the other, and in which ways they are not."""
        total, earlier = self._counters.counts(now), self._counters.counts(before)
        rate = sum(total[reason] - earlier[reason] for reason in _REASONS) / reading.seconds
        of_another_port = reading.values.get(("instance", instance.id, _UNMEASURED), 0.0)
        reading.set("instance", instance.id, _UNMEASURED, of_another_port + rate)
        reasons = {text for reason, text in _REASONS.items() if total[reason]}
        if reasons:
            told = reading.labels.get(("instance", instance.id), {}).get("latency_unknown")
            reasons |= set(told.split(", ")) if told else set()
            reading.label("instance", instance.id, latency_unknown=", ".join(sorted(reasons)))

    def _fill_host(self, reading: Reading) -> None:
        now = {
            "connections_untracked_per_second": self._counters.untracked(),
            "probe_misses_per_second": sum(map(syscall.program_misses, self._program.programs.values())),
        }
        for signal in now.keys() & self._of_host.keys():
            reading.set("node", self._host.node, signal, (now[signal] - self._of_host[signal]) / reading.seconds)
        self._of_host = now


COLLECTOR = Latency
