"""The xDS server: ADS, and EDS alone, for Envoy and gRPC clients. One stream a client, each sent what it lacks, and no queues."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
from google.protobuf.message import DecodeError

from trimtab.actuator.snapshot import Snapshot
from trimtab.actuator.targets.addresses import networks
from trimtab.actuator.targets.front import Start
from trimtab.actuator.targets.xds.members import CLUSTERS_MAX, Clusters, Members, neutral
from trimtab.actuator.targets.xds.resources import ASSIGNMENT, TYPES, World
from trimtab.actuator.targets.xds.stream import Stream, trouble
from trimtab.agent.clock import Clock
from trimtab.agent.wire import channel
from trimtab.agent.wire import xds_pb2 as pb
from trimtab.agent.wire.columns import Malformed

STREAMS_MAX = 64
REQUEST_BYTES_MAX = 1 << 20
"""An Envoy that lists all its extensions needs 100 KB."""
_SPARE_THREADS = 4
"""They tell a client that is one too many so."""
_POLL_SECONDS = 0.5
_STOP_SECONDS = 5.0
_LATELY_SECONDS = 10.0

log = logging.getLogger("trimtab.xds")


class Xds:
    """Says the members of clusters and their weights to whoever asks."""

    def __init__(self, start: Start, clock: Clock) -> None:
        """Raises TrimtabError when it cannot listen, or would beyond this host without TLS."""
        self._clock = clock
        path = Path(start.members) if start.members else None
        self._members = Members(path, start.node, networks(start.networks), clock)
        self._changed = threading.Condition()
        self._streams: dict[int, Stream] = {}
        self._world = World("0", self._members.clusters)
        self._disk = ""
        self._stopping = False
        self.refused = 0
        """Streams that were one too many, or broke a limit."""
        self._refused_at = -_LATELY_SECONDS
        threads = STREAMS_MAX + _SPARE_THREADS
        self._server, self.port = channel.server(
            start.listen, start.tls, "actuator.xds_listen", threads, REQUEST_BYTES_MAX
        )
        self._server.add_generic_rpc_handlers(tuple(self._services()))
        self._server.start()

    def publish(self, snapshot: Snapshot) -> None:
        try:
            self._members.update(snapshot)
            self._disk = ""
        except OSError as error:
            self._disk = f"the members of clusters cannot be kept: {error}"
        self._say(str(snapshot.version), self._members.clusters)

    def neutral(self) -> None:
        self._say(f"{self._world.version.removesuffix('.neutral')}.neutral", neutral(self._world.clusters))

    @property
    def matched(self) -> frozenset[str]:
        with self._changed:
            named = {name for stream in self._streams.values() for name in stream.wants.by_type[ASSIGNMENT].names or ()}
            return frozenset(instance for name in named for instance in self._world.members(name))

    def trouble(self) -> str:
        with self._changed:
            return trouble(self._streams.values(), self._world, self._clock.monotonic()) or self._own_trouble()

    def told(self) -> bool:
        with self._changed:
            return all(stream.wants.settled(self._world) for stream in self._streams.values())

    def close(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._server.stop(grace=2 * _POLL_SECONDS).wait(_STOP_SECONDS)

    def _say(self, version: str, clusters: Clusters) -> None:
        with self._changed:
            if self._world.clusters is not clusters:
                self._world = World(version, clusters)
                self._changed.notify_all()

    def _own_trouble(self) -> str:
        if lost := self._members.unreachable:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            return f"no address at which balancers reach {lost[0]}{more}; see actuator.xds_networks"
        if self._members.surplus:
            return f"{self._members.surplus} models beyond {CLUSTERS_MAX} are not served"
        if self._clock.monotonic() - self._refused_at < _LATELY_SECONDS:
            return f"{self.refused} streams were refused: at most {STREAMS_MAX}, each within its limits"
        return self._disk

    def _services(self) -> Iterator[grpc.GenericRpcHandler[bytes, pb.DiscoveryResponse]]:
        services = {
            "discovery.v3.AggregatedDiscoveryService": ("StreamAggregatedResources", TYPES),
            "endpoint.v3.EndpointDiscoveryService": ("StreamEndpoints", (ASSIGNMENT,)),
        }
        for service, (method, kinds) in services.items():
            handler = grpc.stream_stream_rpc_method_handler(
                lambda requests, context, kinds=kinds: self._serve(requests, context, kinds),
                # Where it is grpcio that finds a request unreadable, the call may never end, and the server with it.
                request_deserializer=None,
                response_serializer=pb.DiscoveryResponse.SerializeToString,
            )
            yield grpc.method_handlers_generic_handler(f"envoy.service.{service}", {method: handler})

    def _serve(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, kinds: tuple[str, ...]
    ) -> Iterator[pb.DiscoveryResponse]:
        stream = Stream(kinds)
        with self._changed:
            full = len(self._streams) >= STREAMS_MAX
            if not full:
                self._streams[id(stream)] = stream
        if full:
            self._refuse()
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{STREAMS_MAX} clients are there already")
        try:
            threading.Thread(target=self._hear, args=(requests, stream), name="xds-requests", daemon=True).start()
            while responses := self._next(stream, context):
                yield from responses
            if stream.fault:
                self._refuse()
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, stream.fault)
        finally:
            with self._changed:
                del self._streams[id(stream)]

    def _hear(self, requests: Iterator[bytes], stream: Stream) -> None:
        """In a thread of its own: a client may speak at any time."""
        fault = ""
        try:
            for request in requests:
                with self._changed:
                    stream.hear(pb.DiscoveryRequest.FromString(request))
                    self._changed.notify_all()
        except Malformed as error:
            fault = str(error)
        except DecodeError:
            fault = "no DiscoveryRequest"
        except grpc.RpcError:
            log.debug("%s is gone", stream.wants.node)
        with self._changed:
            stream.fault, stream.ended = fault, True
            self._changed.notify_all()

    def _next(self, stream: Stream, context: grpc.ServicerContext) -> list[pb.DiscoveryResponse]:
        """What is to be sent next, as soon as there is something; [] when the stream is over."""
        with self._changed:
            while context.is_active() and not stream.ended and not self._stopping:
                if responses := stream.wants.due(self._world):
                    stream.sent_at = self._clock.monotonic()
                    return responses
                self._changed.wait(_POLL_SECONDS)
        return []

    def _refuse(self) -> None:
        with self._changed:
            self.refused += 1
            self._refused_at = self._clock.monotonic()
