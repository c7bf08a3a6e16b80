"""gRPC servers and channels: plain text on loopback only, mutual TLS everywhere else, one limit on the size of a message."""

from __future__ import annotations

import ipaddress
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire.columns import MESSAGE_BYTES_MAX

_OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # A peer that vanished is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_SERVER_OPTIONS = [
    *_OPTIONS,
    # Two servers on one port would each get half of the agents.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


def server(listen: str, tls: Tls, field: str, threads: int) -> tuple[grpc.Server, int]:
    """A server bound to `listen` but not started, and its port.

    Raises TrimtabError, naming the setting `field`, when the port is taken or when it would be open to others without TLS.
    """
    result = grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=_SERVER_OPTIONS)
    try:
        if is_loopback(listen):
            port = result.add_insecure_port(listen)
        else:
            port = result.add_secure_port(listen, _server_credentials(tls, field, listen))
    except RuntimeError as error:
        message = f"{field} = {listen!r}: cannot listen there: the port is taken or the address is not of this host"
        raise TrimtabError(message, Exit.LISTEN) from error
    if port == 0:
        raise TrimtabError(f"{field} = {listen!r}: cannot listen there", Exit.LISTEN)
    return result, port


def channel(target: str, tls: Tls, field: str) -> grpc.Channel:
    """A channel to `target`. Raises TrimtabError when it would leave this host without TLS."""
    if is_loopback(target):
        return grpc.insecure_channel(target, options=_OPTIONS)
    ca, key, certificate = _read(tls, field, target)
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate), options=_OPTIONS)


def is_loopback(address: str) -> bool:
    """Whether host:port stays on this host."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def _server_credentials(tls: Tls, field: str, address: str) -> grpc.ServerCredentials:
    ca, key, certificate = _read(tls, field, address)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=ca, require_client_auth=True)


def _read(tls: Tls, field: str, address: str) -> tuple[bytes, bytes, bytes]:
    if not (tls.ca and tls.key and tls.certificate):
        message = f"{field} = {address!r} is not loopback: set tls.ca, tls.certificate and tls.key, or use 127.0.0.1"
        raise TrimtabError(message, Exit.SETTINGS)
    try:
        ca, key, certificate = (Path(path).read_bytes() for path in (tls.ca, tls.key, tls.certificate))
    except OSError as error:
        raise TrimtabError(f"tls: {error.filename}: {error.strerror}", Exit.SETTINGS) from error
    return ca, key, certificate
