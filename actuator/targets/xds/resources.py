"""Members of clusters as resources of Envoy's API.

Each endpoint is alone in a locality of its name, and has the same weight in it as the locality has among the others: Envoy goes by the
endpoints' weights, or by both, and gRPC by the localities' only.
"""

from __future__ import annotations

from collections.abc import Callable

from trimtab.actuator.targets.addresses import key
from trimtab.actuator.targets.xds.members import Clusters, Member
from trimtab.agent.wire import xds_pb2 as pb

_TYPES = "type.googleapis.com/envoy."
CLUSTER = f"{_TYPES}config.cluster.v3.Cluster"
ASSIGNMENT = f"{_TYPES}config.endpoint.v3.ClusterLoadAssignment"
LISTENER = f"{_TYPES}config.listener.v3.Listener"
TYPES = (CLUSTER, ASSIGNMENT, LISTENER)
"""In the order in which they are sent: nobody hears of what was not explained to it before."""
_CONNECTION_MANAGER = f"{_TYPES}extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = f"{_TYPES}extensions.filters.http.router.v3.Router"
NEUTRAL_WEIGHT = 1000
"""The weight of a share of 1."""


class World:
    """All resources of one publication, each made once when it is first asked for. Not for several threads at once."""

    def __init__(self, version: str, clusters: Clusters) -> None:
        self.version = version
        self.clusters = clusters
        self._made: dict[tuple[str, str], bytes] = {}

    def resources(self, kind: str, names: tuple[str, ...] | None) -> dict[str, bytes] | None:
        """Of one of TYPES, by name; `names` None for all. None when nothing can be said yet, which differs from "there is none".

        A cluster or a listener is said to exist for whatever name is asked: to take one away that trimtab has lost sight of would
        end its traffic. Its endpoints are said once they are known.
        """
        if names is None:
            if kind == LISTENER:
                return {}
            names = tuple(sorted(self.clusters))
            if not names:
                return None
        make: Callable[[str], bytes]
        make = {CLUSTER: _cluster, LISTENER: _listener, ASSIGNMENT: self._assignment}[kind]
        out = {}
        for name in names:
            made = self._made.get((kind, name))
            if made is None:
                made = self._made[kind, name] = make(name)
            if made:
                out[name] = made
        return out or None

    def members(self, name: str) -> dict[str, Member]:
        """Of a cluster "MODEL", or of "MODEL:PORT": the same at another port, such as that of gRPC. Empty when it is not known."""
        model, _, port = name.rpartition(":")
        if name in self.clusters or model not in self.clusters:
            return self.clusters.get(name, {})
        out: dict[str, Member] = {}
        instances: dict[str, str] = {}
        for instance, member in sorted(self.clusters[model].items()):
            address = key(f"{member.address.rpartition(':')[0]}:{port}")
            if address in instances:  # two of one host, and no telling which of them answers there
                out[instances[address]] = Member(address)
            elif address:
                instances[address] = instance
                out[instance] = Member(address, member.share)
        return out

    def _assignment(self, name: str) -> bytes:
        members = self.members(name)
        if not members:
            return b""
        drains = any(m.share for m in members.values())
        return pb.ClusterLoadAssignment(
            cluster_name=name, endpoints=[_locality(i, m, drains) for i, m in sorted(members.items())]
        ).SerializeToString()


def weight(share: float) -> int:
    """At least 1, which is also what a drained endpoint has: neither Envoy nor gRPC takes 0."""
    return max(1, round(share * NEUTRAL_WEIGHT))


def _locality(instance: str, member: Member, drains: bool) -> pb.LocalityLbEndpoints:
    """A drained endpoint is said to be draining, and stays: Envoy goes on with one that is left out as long as its health checks pass."""
    host, _, port = member.address.rpartition(":")
    drained = drains and not member.share
    value = pb.UInt32Value(value=weight(member.share if drains else 1.0))
    return pb.LocalityLbEndpoints(
        locality=pb.Locality(sub_zone=instance),
        load_balancing_weight=value,
        lb_endpoints=[
            pb.LbEndpoint(
                endpoint=pb.Endpoint(
                    address=pb.Address(socket_address=pb.SocketAddress(address=host, port_value=int(port)))
                ),
                health_status=pb.HEALTH_STATUS_DRAINING if drained else pb.HEALTH_STATUS_UNKNOWN,
                load_balancing_weight=value,
            )
        ],
    )


def _cluster(name: str) -> bytes:
    source = pb.ConfigSource(ads=pb.Empty(), resource_api_version=pb.API_VERSION_V3)
    cluster = pb.Cluster(
        name=name, type=pb.DISCOVERY_TYPE_EDS, eds_cluster_config=pb.EdsClusterConfig(eds_config=source)
    )
    return cluster.SerializeToString()


def _listener(name: str) -> bytes:
    """What xds:///NAME asks for: every call goes to the cluster of that name."""
    route = pb.Route(match=pb.RouteMatch(prefix=""), route=pb.RouteAction(cluster=name))
    host = pb.VirtualHost(name=name, domains=["*"], routes=[route])
    manager = pb.HttpConnectionManager(
        route_config=pb.RouteConfiguration(name=name, virtual_hosts=[host]),
        http_filters=[pb.HttpFilter(name="router", typed_config=pb.Any(type_url=_ROUTER))],
    )
    wrapped = pb.Any(type_url=_CONNECTION_MANAGER, value=manager.SerializeToString())
    return pb.Listener(name=name, api_listener=pb.ApiListener(api_listener=wrapped)).SerializeToString()
