"""What trimtab sees and does, followed over its Query API, and what HAProxy really does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from trimtab.agent.settings import Tls
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.channel import channel
from trimtab.agent.wire.query_pb2_grpc import QueryStub


class Balancer(Protocol):
    """What can tell its weights in force, by server."""

    def weights(self) -> dict[str, int]: ...


class Observer:
    """The newest word on everything. Filled by threads; read it at any time."""

    def __init__(self, query: QueryStub, proxy: Balancer) -> None:
        self.instances: dict[str, pb.InstanceState] = {}
        self.incidents: dict[str, pb.Incident] = {}
        self.heard: list[pb.Incident] = []
        """Every word on incidents, as it came."""
        self.weights: list[tuple[float, dict[str, int]]] = []
        """Monotonic seconds and the weights in force at HAProxy, once a second."""
        self._query, self._proxy = query, proxy
        self._stop = threading.Event()

    def follow_fleet(self) -> None:
        for state in self._query.WatchFleet(pb.WatchFleetRequest()):
            self.instances = {i.id: i for i in state.instances}

    def follow_incidents(self) -> None:
        for incident in self._query.WatchIncidents(pb.WatchIncidentsRequest()):
            self.incidents = {**self.incidents, incident.id: incident}
            self.heard.append(incident)

    def follow_weights(self) -> None:
        while not self._stop.wait(1):
            self.weights.append((time.monotonic(), self._proxy.weights()))

    def until_stopped(self, follow: object) -> None:
        """Follow, and again when the stream breaks."""
        assert callable(follow)
        while not self._stop.wait(0.5):
            try:
                follow()
            except (grpc.RpcError, OSError):
                continue

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def observe(collector: str, proxy: Balancer) -> Iterator[Observer]:
    """Follow the collector at `collector` (host:port) and `proxy`, until the way out."""
    connection = channel(collector, Tls(), "collector")
    observer = Observer(QueryStub(connection), proxy)
    follows = (observer.follow_fleet, observer.follow_incidents, observer.follow_weights)
    threads = [threading.Thread(target=observer.until_stopped, args=(follow,), daemon=True) for follow in follows]
    for thread in threads:
        thread.start()
    try:
        yield observer
    finally:
        observer.stop()
        connection.close()
        for thread in threads:
            thread.join()
