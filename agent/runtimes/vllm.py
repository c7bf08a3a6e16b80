"""vLLM's OpenAI-compatible server: a Python program that serves requests and metrics on one port."""

from __future__ import annotations

import re
import time
from itertools import pairwise
from pathlib import PurePosixPath

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import api
from trimtab.agent.runtimes.base import Session
from trimtab.agent.runtimes.metrics_only import ROLE, MetricsOnly
from trimtab.agent.runtimes.process import ProcessInfo, reachable
from trimtab.agent.runtimes.prometheus import Exposition
from trimtab.agent.runtimes.vocabulary import Capacity, Errors, Latency, Model, Scrape, Spent, Vitals

PORT = 8000
MODULE = "vllm.entrypoints.openai.api_server"
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
FINISHED = "vllm:request_success_total"
CACHE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
"""The newer name first. Both are ratios."""
WHOLE, QUEUE = "vllm:e2e_request_latency_seconds", "vllm:request_queue_time_seconds"
INFERENCE, FIRST_TOKEN = "vllm:request_inference_time_seconds", "vllm:time_to_first_token_seconds"
HTTP = "http_requests_total"
HISTOGRAMS = (WHOLE, QUEUE, INFERENCE, FIRST_TOKEN)
NAMES = (RUNNING, WAITING, FINISHED, *CACHE, HTTP, *(f"{h}_{part}" for h in HISTOGRAMS for part in ("sum", "count")))
PORT_LINE = re.compile(r"^port:[ \t]*[\"']?([0-9]{1,5})[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


class Vllm:
    """One object serves all instances."""

    name = "vllm"

    def __init__(self) -> None:
        self._told = api.Told()

    def matches(self, process: ProcessInfo) -> bool:
        command = process.command[:4]
        if ("-m", MODULE) in pairwise(command):
            return True
        # "vllm serve …", started by itself or as a script that Python was given.
        return any(PurePosixPath(a).name == "vllm" and b == "serve" for a, b in pairwise(command[:3]))

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        if process.forked():
            return None
        port = int(process.option("--port") or _configured_port(process) or PORT)
        listeners = process.listeners()
        if port not in listeners:
            return None
        instance_id = f"{node}/{port}"
        encrypted = process.option("--ssl-certfile", "--ssl_certfile") is not None
        return Instance(
            id=instance_id,
            runtime=self.name,
            pid=process.pid,
            started=process.started,
            port=port,
            netns=process.netns(),
            addresses=reachable(process, listeners[port], port),
            urls=api.urls(instance_id, process, listeners, {ROLE: 0 if encrypted else port}, self._told),
        )

    def open(self, instance: Instance) -> Session:
        return MetricsOnly(instance, NAMES, told)


def _configured_port(process: ProcessInfo) -> str | None:
    """That of the YAML file that may hold the options."""
    path = process.option("--config")
    found = PORT_LINE.search(process.text(path)) if path else None
    return found[1] if found else None


def told(said: Exposition) -> Scrape:
    """Raises ValueError."""
    age = said.age_seconds(time.time())
    names = sorted({s.labels.get("model_name", "") for name in (RUNNING, FINISHED) for s in said.samples.get(name, ())})
    models = tuple(Model(name, "", _vitals(said, age, model_name=name)) for name in names if name)
    whole = _vitals(said, age)
    # The HTTP server counts, as errors, what no engine has heard of; it does not say which model was asked for.
    errors = _http_errors(said) if said.samples.get(HTTP) else whole.errors
    return Scrape(Vitals(whole.in_flight, whole.queue_depth, whole.latency, errors, None, whole.capacity, age), models)


def _vitals(said: Exposition, age_seconds: float | None, **labels: str) -> Vitals:
    queue, inference = _spent(said, QUEUE, **labels), _spent(said, INFERENCE, **labels)
    whole = _spent(said, WHOLE, **labels)
    if inference is None and whole is not None and queue is not None:  # older versions
        inference = Spent(max(0.0, whole.seconds - queue.seconds), whole.requests)
    failed = [s for s in said.samples.get(FINISHED, ()) if s.has({"finished_reason": "error", **labels})]
    fullest = max((usage for name in CACHE for usage in said.gauges(name, **labels)), default=None)
    return Vitals(
        in_flight=said.gauge(RUNNING, **labels),
        queue_depth=said.gauge(WAITING, **labels),
        latency=Latency(
            requests=said.total(FINISHED, **labels),
            inference=inference,
            queue=queue,
            first_token=_spent(said, FIRST_TOKEN, **labels),
        ),
        # Older versions do not tell errors from what they leave out.
        errors=Errors(server=said.total(FINISHED, finished_reason="error", **labels) if failed else None),
        capacity=Capacity(cache_used_ratio=fullest),
        age_seconds=age_seconds,
    )


def _spent(said: Exposition, histogram: str, **labels: str) -> Spent | None:
    seconds, requests = said.total(f"{histogram}_sum", **labels), said.total(f"{histogram}_count", **labels)
    return None if seconds is None or requests is None else Spent(seconds, requests)


def _http_errors(said: Exposition) -> Errors:
    statuses = {s.labels.get("status", "") for s in said.samples[HTTP]}
    of = {c: sum(said.total(HTTP, status=s) or 0.0 for s in statuses if s.startswith(c)) for c in "45"}
    return Errors(server=of["5"], client=of["4"])


RUNTIME = Vllm
