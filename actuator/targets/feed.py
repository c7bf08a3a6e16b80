"""The routing feed: snapshots for serving controllers that subscribe to them (WatchRouting)."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc

from trimtab.actuator.snapshot import Cache, Snapshot
from trimtab.agent.settings import Tls
from trimtab.agent.wire import channel
from trimtab.agent.wire import routing_pb2 as pb
from trimtab.agent.wire.introspection import Introspection
from trimtab.agent.wire.routing_pb2_grpc import RoutingServicer, add_RoutingServicer_to_server

WATCHERS_MAX = 64
VALID_SECONDS = 5.0
_SPARE_THREADS = 4
"""They tell a watcher that is one too many so."""
_POLL_SECONDS = 0.5


class Feed(RoutingServicer):
    """Serves what the cache publishes, each publication at once. It repeats nothing by itself: when the one who publishes hangs,
    watchers hear nothing and let go."""

    def __init__(self, cache: Cache, epoch: str) -> None:
        self._cache, self._epoch = cache, epoch
        self._places = threading.BoundedSemaphore(WATCHERS_MAX)
        self._stop = threading.Event()
        self._server: grpc.Server | None = None

    def start(self, listen: str, tls: Tls) -> int:
        """Serve on `listen`; the port. Raises TrimtabError when it cannot."""
        self._server, port = channel.server(listen, tls, "actuator.listen", WATCHERS_MAX + _SPARE_THREADS)
        self._introspection = Introspection(self._server, "trimtab.routing.v1.Routing")
        add_RoutingServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self._server.start()
        return port

    def close(self) -> None:
        """Send what was published last, then end every stream."""
        self._stop.set()
        if self._server:
            self._introspection.stopping()
            self._server.stop(grace=2 * _POLL_SECONDS).wait()

    def WatchRouting(  # noqa: N802 - gRPC's name
        self, request: pb.WatchRoutingRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.RoutingSnapshot]:
        if not self._places.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{WATCHERS_MAX} watchers are there already")
        try:
            seen: Snapshot | None = None
            while context.is_active():
                leaving = self._stop.is_set()
                fresh = self._cache.wait(seen, 0 if leaving else _POLL_SECONDS)
                if fresh:
                    yield _message(fresh, self._epoch, request.model)
                    seen = fresh
                if leaving:
                    return
        finally:
            self._places.release()


def _message(snapshot: Snapshot, epoch: str, model: str) -> pb.RoutingSnapshot:
    return pb.RoutingSnapshot(
        version=snapshot.version,
        epoch=epoch,
        unix_ns=snapshot.unix_ns,
        valid_for_seconds=VALID_SECONDS,
        mode=snapshot.mode,
        assignments=[
            pb.Assignment(instance=a.instance, model=a.model, addresses=a.addresses, weight=a.weight, reason=a.reason)
            for a in snapshot.assignments
            if not model or a.model == model
        ],
    )
