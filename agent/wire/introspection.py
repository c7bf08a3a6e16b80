"""gRPC's own health and reflection services: how a server is, and what it serves. The agent serves nothing, and needs neither package."""

from __future__ import annotations

import grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import enable_server_reflection


class Introspection:
    """Tells of `services` on a server that was not started yet."""

    def __init__(self, server: grpc.Server, *services: str) -> None:
        self._health = HealthServicer()
        self._services = ("", *services)
        add_HealthServicer_to_server(self._health, server)
        enable_server_reflection([*services, HEALTH, REFLECTION], server)
        self.serving(True)

    def serving(self, well: bool) -> None:
        """Whether they can do their work now."""
        status = HealthCheckResponse.SERVING if well else HealthCheckResponse.NOT_SERVING
        for service in self._services:
            self._health.set(service, status)

    def stopping(self) -> None:
        """For good."""
        self._health.enter_graceful_shutdown()
