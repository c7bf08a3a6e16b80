"""TorchServe: a Java server with its addresses in config.properties, an API to manage it, and metrics in Prometheus' format."""

from __future__ import annotations

import logging
from pathlib import PurePosixPath
from urllib.parse import quote

import msgspec

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import prometheus, torchserve_settings
from trimtab.agent.runtimes.base import WILDCARDS, NoAnswer, ProcessInfo, Vitals, Worker, own_netns, reachable
from trimtab.agent.runtimes.endpoint import Endpoint, Refused

MAIN = "org.pytorch.serve.ModelServer"
TOTALS = (
    "ts_inference_requests_total",
    "ts_inference_latency_microseconds",
    "ts_queue_latency_microseconds",
    "Requests4XX",
    "Requests5XX",
)
TOKEN_REFUSED = {400, 401, 403}
"""TorchServe itself says 400; a proxy before it one of the others."""
MODELS_MAX = 64
INSTANCES_MAX = 256
"""Instances of which is remembered what was said of them, and what they refused."""
MICROSECONDS = 1e6

log = logging.getLogger(__name__)


class _Name(msgspec.Struct, rename="camel"):
    model_name: str


class _Models(msgspec.Struct, rename="camel"):
    models: list[_Name]
    next_page_token: str = ""


class _Worker(msgspec.Struct):
    id: str
    status: str
    pid: int = -1


class _Queue(msgspec.Struct, rename="camel"):
    pending_requests: int


class _Version(msgspec.Struct, rename="camel"):
    model_name: str
    model_version: str
    workers: list[_Worker]
    job_queue_status: _Queue


class TorchServe:
    """One object serves all instances."""

    name = "torchserve"

    def __init__(self) -> None:
        self._refused: dict[str, tuple[float, str]] = {}
        self._told: set[str] = set()

    def matches(self, process: ProcessInfo) -> bool:
        return MAIN in process.command and PurePosixPath(process.command[0]).name == "java"

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        urls = torchserve_settings.urls(process)
        listeners = process.listeners()
        port = torchserve_settings.port(urls["inference"])
        if port not in listeners:
            return None
        instance_id = f"{node}/{port}"
        netns = process.netns()
        return Instance(
            id=instance_id,
            runtime=self.name,
            pid=process.pid,
            started=process.started,
            port=port,
            netns=netns,
            addresses=reachable(process, listeners[port], port),
            urls=self._api(instance_id, urls, listeners) if netns == own_netns() else self._no_api(instance_id),
            headers=torchserve_settings.headers(process),
        )

    def scrape(self, instance: Instance) -> Vitals:
        try:
            models = self._models(instance) if "management" in instance.urls else None
            totals = _totals(instance) if "metrics" in instance.urls else {}
        except (ValueError, RecursionError) as error:
            raise NoAnswer(f"not an answer of TorchServe: {error}") from error
        latency, queue = totals.get("ts_inference_latency_microseconds"), totals.get("ts_queue_latency_microseconds")
        return Vitals(
            models=None if models is None else tuple(sorted({version.model_name for version in models})),
            workers=None if models is None else tuple(_worker(v, worker) for v in models for worker in v.workers),
            queue_depth=None if models is None else sum(v.job_queue_status.pending_requests for v in models),
            predictions=totals.get("ts_inference_requests_total"),
            # What TorchServe calls the inference latency has the queue in it.
            inference_seconds=None if latency is None or queue is None else (latency - queue) / MICROSECONDS,
            queue_seconds=None if queue is None else queue / MICROSECONDS,
            errors=totals.get("Requests5XX"),
            client_errors=totals.get("Requests4XX"),
        )

    def _api(self, instance_id: str, urls: dict[str, str], listeners: dict[int, str]) -> dict[str, str]:
        """The endpoints that this process itself listens on, at the address where it does."""
        out = {}
        for role in ("management", "metrics"):
            port = torchserve_settings.port(urls[role])
            if port in listeners and urls[role].startswith("http:"):
                host = WILDCARDS.get(listeners[port], listeners[port])
                out[role] = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            else:
                self._tell(
                    f"{instance_id}: its {role} API is not plain HTTP on a port it listens on; its signals are unknown"
                )
        return out

    def _no_api(self, instance_id: str) -> dict[str, str]:
        self._tell(
            f"{instance_id}: it is in another network namespace, where its API cannot be asked; its signals are unknown"
        )
        return {}

    def _models(self, instance: Instance) -> tuple[_Version, ...] | None:
        """Every version of every model; None where the API refuses our token, which then is not shown to this process again."""
        shown = (instance.started, instance.headers.get("Authorization", ""))
        if self._refused.get(instance.id) == shown:
            return None
        with Endpoint(instance.urls["management"], instance.headers) as api:
            try:
                page = msgspec.json.decode(api.get(f"/models?limit={MODELS_MAX}"), type=_Models)
            except Refused as refused:
                if refused.status not in TOKEN_REFUSED:
                    raise
                self._remember_refusal(instance.id, shown)
                self._tell(f"{instance.id}: its API refuses: {refused}; let the agent read a valid key_file.json")
                return None
            if page.next_page_token:
                self._tell(f"{instance.id}: more than {MODELS_MAX} models; its workers and queue are unknown")
                return None
            try:
                answers = [api.get(f"/models/{quote(model.model_name, safe='')}/all") for model in page.models]
            except Refused:  # one was unregistered meanwhile
                return None
        return tuple(version for answer in answers for version in msgspec.json.decode(answer, type=list[_Version]))

    def _remember_refusal(self, instance_id: str, shown: tuple[float, str]) -> None:
        """Each refusal counts among the instance's own errors."""
        while len(self._refused) >= INSTANCES_MAX:
            self._refused.pop(next(iter(self._refused)))
        self._refused[instance_id] = shown

    def _tell(self, message: str) -> None:
        if message not in self._told and len(self._told) < INSTANCES_MAX:
            self._told.add(message)
            log.warning("%s", message)


def _worker(version: _Version, worker: _Worker) -> Worker:
    name = f"{version.model_name}/{version.model_version}/{worker.id}"
    return Worker(name, worker.pid if worker.pid > 0 else None, worker.status == "READY")


def _totals(instance: Instance) -> dict[str, float]:
    with Endpoint(instance.urls["metrics"], {}) as api:
        try:
            return prometheus.totals(api.get("/metrics").decode(), TOTALS)
        except Refused:
            return {}


RUNTIME = TorchServe
