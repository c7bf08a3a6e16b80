"""NVIDIA Triton: a native server with its ports on its command line and metrics in Prometheus' format."""

from __future__ import annotations

import time
from pathlib import PurePosixPath

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import api
from trimtab.agent.runtimes.base import Session
from trimtab.agent.runtimes.metrics_only import ROLE, MetricsOnly
from trimtab.agent.runtimes.process import ProcessInfo, reachable
from trimtab.agent.runtimes.prometheus import Exposition
from trimtab.agent.runtimes.vocabulary import Batches, Capacity, Errors, Latency, Model, Scrape, Spent, Vitals

SUCCESS = "nv_inference_request_success"
FAILURE = "nv_inference_request_failure"
REQUEST_US = "nv_inference_request_duration_us"
QUEUE_US = "nv_inference_queue_duration_us"
PENDING = "nv_inference_pending_request_count"
INFERENCES = "nv_inference_count"
EXECUTIONS = "nv_inference_exec_count"
NAMES = (SUCCESS, FAILURE, REQUEST_US, QUEUE_US, PENDING, INFERENCES, EXECUTIONS)
CANCELED = "CANCELED"
"""The reason of a failure that is the client's own."""
MICROSECONDS = 1e6
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
FALSE = {"false", "0", "no", "off"}


class Triton:
    """One object serves all instances."""

    name = "triton"

    def __init__(self) -> None:
        self._told = api.Told()

    def matches(self, process: ProcessInfo) -> bool:
        return PurePosixPath(process.command[0]).name == "tritonserver"

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        ports = {name: _port(process, name) for name in PORTS}
        port = ports["http"] or ports["grpc"]
        listeners = process.listeners()
        if port not in listeners:
            return None
        instance_id = f"{node}/{port}"
        return Instance(
            id=instance_id,
            runtime=self.name,
            pid=process.pid,
            started=process.started,
            port=port,
            netns=process.netns(),
            addresses=reachable(process, listeners[port], port),
            grpc_port=ports["grpc"] if ports["grpc"] in listeners and ports["grpc"] != port else 0,
            urls=api.urls(instance_id, process, listeners, {ROLE: ports["metrics"]}, self._told),
        )

    def open(self, instance: Instance) -> Session:
        return MetricsOnly(instance, NAMES, told)


def _port(process: ProcessInfo, name: str) -> int:
    """0 where this endpoint is switched off."""
    if (process.option(f"--allow-{name}") or "true").lower() in FALSE:
        return 0
    return int(process.option(f"--{name}-port") or PORTS[name])


def told(said: Exposition) -> Scrape:
    """Raises ValueError."""
    age = said.age_seconds(time.time())
    served = sorted({(s.labels.get("model", ""), s.labels.get("version", "")) for s in said.samples.get(SUCCESS, ())})
    models = tuple(Model(m, v, _vitals(said, age, model=m, version=v)) for m, v in served if m)
    return Scrape(_vitals(said, age), models)


def _vitals(said: Exposition, age_seconds: float | None, **labels: str) -> Vitals:
    failed = said.total(FAILURE, **labels)
    canceled = said.total(FAILURE, reason=CANCELED, **labels) or 0.0
    inferences, executions = said.total(INFERENCES, **labels), said.total(EXECUTIONS, **labels)
    return Vitals(
        queue_depth=said.gauge(PENDING, **labels),
        latency=_latency(said, failed, **labels),
        errors=Errors(server=None if failed is None else failed - canceled),
        capacity=Capacity(
            batches=None if inferences is None or executions is None else Batches(inferences, executions)
        ),
        age_seconds=age_seconds,
    )


def _latency(said: Exposition, failed: float | None, **labels: str) -> Latency:
    """Where the time went is counted only of requests that succeed, those from the cache among them."""
    answered = said.total(SUCCESS, **labels)
    if answered is None:
        return Latency()
    whole, queue = said.total(REQUEST_US, **labels), said.total(QUEUE_US, **labels)
    requests = None if failed is None else answered + failed
    if whole is None or queue is None:
        return Latency(requests)
    inference = Spent(max(0.0, whole - queue) / MICROSECONDS, answered)
    return Latency(requests, inference, queue=Spent(queue / MICROSECONDS, answered))


RUNTIME = Triton
