"""TorchServe: a Java server with its addresses in config.properties, an API to manage it, and metrics in Prometheus' format."""

from __future__ import annotations

import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import PurePosixPath

from trimtab.agent.registry import Instance
from trimtab.agent.runtimes import api, prometheus, torchserve_settings
from trimtab.agent.runtimes.base import NoAnswer, Session
from trimtab.agent.runtimes.endpoint import Endpoint, Refused
from trimtab.agent.runtimes.process import ProcessInfo, reachable
from trimtab.agent.runtimes.prometheus import Exposition
from trimtab.agent.runtimes.torchserve_descriptions import Descriptions
from trimtab.agent.runtimes.torchserve_words import NAMES, told
from trimtab.agent.runtimes.vocabulary import Scrape

MAIN = "org.pytorch.serve.ModelServer"
ROLES = ("management", "metrics")
DESCRIBERS = 4
"""Threads that wait for descriptions, of all instances together."""


class TorchServe:
    """One object serves all instances."""

    name = "torchserve"

    def __init__(self) -> None:
        self._told = api.Told()
        self._describers = ThreadPoolExecutor(DESCRIBERS, thread_name_prefix="torchserve")

    def matches(self, process: ProcessInfo) -> bool:
        return MAIN in process.command and PurePosixPath(process.command[0]).name == "java"

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        settings = torchserve_settings.read(process)
        urls = torchserve_settings.urls(process, settings)
        listeners = process.listeners()
        port = torchserve_settings.port(urls["inference"])
        if port not in listeners:
            return None
        grpc_port = torchserve_settings.grpc_port(process, settings)
        instance_id = f"{node}/{port}"
        ports = {r: torchserve_settings.port(urls[r]) if urls[r].startswith("http:") else 0 for r in ROLES}
        return Instance(
            id=instance_id,
            runtime=self.name,
            pid=process.pid,
            started=process.started,
            port=port,
            netns=process.netns(),
            addresses=reachable(process, listeners[port], port),
            grpc_port=grpc_port if grpc_port in listeners else 0,
            urls=api.urls(instance_id, process, listeners, ports, self._told),
            headers=torchserve_settings.headers(process),
        )

    def open(self, instance: Instance) -> Session:
        return _Session(instance, self._describers, self._told)


class _Session:
    def __init__(self, instance: Instance, describers: Executor, told: api.Told) -> None:
        urls = instance.urls
        self._metrics = Endpoint(instance, "metrics") if "metrics" in urls else None
        described = Descriptions(instance, "management", describers, told.tell) if "management" in urls else None
        self._descriptions = described

    def scrape(self) -> Scrape:
        counted = self._counted()
        description = self._descriptions.newest() if self._descriptions else None
        if self._metrics is None and self._descriptions and self._descriptions.pending:
            raise NoAnswer("its management API takes too long")
        try:
            return told(counted, description, time.monotonic())
        except ValueError as error:
            raise NoAnswer(f"not an answer of TorchServe: {error}") from error

    def close(self) -> None:
        for each in (self._metrics, self._descriptions):
            if each:
                each.close()

    def _counted(self) -> Exposition:
        if self._metrics is None:
            return prometheus.parse(b"", ())
        try:
            return prometheus.parse(self._metrics.get("/metrics"), NAMES)
        except Refused:
            return prometheus.parse(b"", ())
        except ValueError as error:
            raise NoAnswer(f"not an answer of TorchServe: {error}") from error


RUNTIME = TorchServe
