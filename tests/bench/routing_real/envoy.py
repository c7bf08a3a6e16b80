"""A real Envoy in front of the fleet, with the policies that it has by itself; its endpoints are fixed, or trimtab tells them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.fleet import Instance
from tests.e2e.processes import free_ports, is_free, stop_group
from trimtab import Exit, TrimtabError

_INSTALLED = Path(sys.prefix, "bin")
"""Where `make` puts it."""
_API = "type.googleapis.com/envoy.extensions"
_START_SECONDS_MAX = 20.0
# What docs/routing.md gives.
_TOLD = {
    "type": "EDS",
    "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "ads": {}}},
    "health_checks": [
        {
            "timeout": "1s",
            "interval": "1s",
            "no_traffic_interval": "1s",
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
            "http_health_check": {"path": "/ping"},
        }
    ],
}
_ASKING = {
    "ads_config": {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [
            {
                "envoy_grpc": {
                    "cluster_name": "trimtab",
                    "retry_policy": {"retry_back_off": {"base_interval": "0.2s", "max_interval": "1s"}},
                }
            }
        ],
    }
}
_HTTP2 = {
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_API}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {
                "http2_protocol_options": {"connection_keepalive": {"interval": "5s", "timeout": "2s"}}
            },
        }
    }
}
_OUTLIERS = {"consecutive_5xx": 5, "interval": "1s", "base_ejection_time": "5s", "max_ejection_percent": 50}


@dataclass(frozen=True, slots=True)
class Envoy:
    """A running Envoy. What weights it was told, if any, it does not say."""

    address: str

    @staticmethod
    def weights() -> dict[str, int]:
        """None that it tells."""
        return {}


def binary() -> Path | None:
    """The program; None where it is not installed."""
    found = shutil.which("envoy", path=f"{os.environ.get('PATH', '')}:{_INSTALLED}")
    return Path(found) if found else None


@contextmanager
def envoy(
    directory: Path, instances: Sequence[Instance], policy: str, outliers: bool = False, xds: str = ""
) -> Iterator[Envoy]:
    """Envoy that spreads requests over `instances` by `policy`, and with `outliers` leaves out for a while who fails in a row.

    `xds`: where it asks for endpoints and weights instead; it has none before. Raises TrimtabError.
    """
    program = binary()
    if program is None:
        raise TrimtabError("envoy is not installed: `make bench-routing-real` brings one", Exit.SETTINGS)
    port = free_ports(1)
    config, log = directory / "envoy.json", directory / "envoy.log"
    config.write_text(json.dumps(_bootstrap(port, instances, policy, outliers, xds)))
    command = [str(program), "--config-path", str(config), "--concurrency", "1", "--disable-hot-restart"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS_MAX
        while is_free(port):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no message"]
                raise TrimtabError(f"Envoy did not start: {last[0][:300]}", Exit.LISTEN)
            time.sleep(0.05)
        yield Envoy(f"127.0.0.1:{port}")
    finally:
        stop_group(process)


def _bootstrap(port: int, instances: Sequence[Instance], policy: str, outliers: bool, xds: str) -> dict[str, Any]:
    many = {"max_connections": 4000, "max_pending_requests": 4000, "max_requests": 4000}
    model = instances[0].model
    cluster = {
        "name": model,
        "connect_timeout": "2s",
        "lb_policy": policy,
        "circuit_breakers": {"thresholds": [many]},
        **(_TOLD if xds else _fixed(model, *(i.port for i in instances))),
        **({"outlier_detection": _OUTLIERS} if outliers else {}),
    }
    host = {
        "name": "all",
        "domains": ["*"],
        "response_headers_to_add": [{"header": {"key": "x-server", "value": "%UPSTREAM_REMOTE_ADDRESS%"}}],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": model, "timeout": "60s"}}],
    }
    router = {"name": "router", "typed_config": {"@type": f"{_API}.filters.http.router.v3.Router"}}
    manager = {
        "@type": f"{_API}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [host]},
        "http_filters": [router],
    }
    listener = {
        "name": "clients",
        "address": _address(port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    if not xds:
        return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    teller = {"name": "trimtab", **_fixed("trimtab", int(xds.rpartition(":")[2])), **_HTTP2}
    return {
        "node": {"id": "bench", "cluster": "bench"},
        "dynamic_resources": _ASKING,
        "static_resources": {"listeners": [listener], "clusters": [cluster, teller]},
    }


def _fixed(name: str, *ports: int) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": _address(port)}} for port in ports]
    return {"type": "STATIC", "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}}


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
