"""gRPC servers and channels: plain text on loopback only, mutual TLS everywhere else, one limit on the size of a message."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import grpc

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire.certificates import CertificateFiles
from trimtab.agent.wire.columns import MESSAGE_BYTES_MAX

_OPTIONS = [
    # Of two channels to one collector, one may publish and the other ask: they must not share a connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    # Else every message is answered by a ping that measures the line, and costs as much as the message.
    ("grpc.http2.bdp_probe", 0),
    # A peer that vanished is noticed within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
# A proxy of the environment would carry what is to stay on this host away from it, in plain text.
_LOOPBACK_OPTIONS = [*_OPTIONS, ("grpc.enable_http_proxy", 0)]
_SERVER_OPTIONS = [
    *_OPTIONS,
    # Two servers on one port would each get half of the agents.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


def server(
    listen: str, tls: Tls, field: str, threads: int, receive_bytes_max: int = MESSAGE_BYTES_MAX
) -> tuple[grpc.Server, int]:
    """A server bound to `listen` but not started, and its port.

    Raises TrimtabError, naming the setting `field`, when the port is taken or when it would be open to others without TLS.
    """
    result = bare_server(threads, receive_bytes_max)
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


def bare_server(threads: int, receive_bytes_max: int = MESSAGE_BYTES_MAX) -> grpc.Server:
    """A server that is bound to nothing yet."""
    options = dict(_SERVER_OPTIONS) | {"grpc.max_receive_message_length": receive_bytes_max}
    return grpc.server(ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=list(options.items()))


class Dialer:
    """Makes channels to one target, each with the certificates that are in force by then.

    Raises TrimtabError, naming the setting `field`, when the target is beyond this host and the settings lack certificates for it.
    """

    def __init__(self, target: str, tls: Tls, field: str) -> None:
        self._target = target
        self._files = None if is_loopback(target) else certificate_files(tls, field, target)

    @property
    def renewals(self) -> tuple[int, int]:
        """How often changed certificate files were taken up, and how often they could not be used."""
        return (self._files.renewed, self._files.refused) if self._files else (0, 0)

    def open(self) -> grpc.Channel:
        """A channel. Its connection is made when it is used."""
        if self._files is None:
            return grpc.insecure_channel(self._target, options=_LOOPBACK_OPTIONS)
        self._files.refresh()
        now = self._files.current
        credentials = grpc.ssl_channel_credentials(now.ca, now.key, now.certificate)
        return grpc.secure_channel(self._target, credentials, options=_OPTIONS)

    def renewed(self) -> bool:
        """Whether there are new certificates since `open`, or since this was last asked: time for a new channel."""
        return self._files is not None and self._files.refresh()


def channel(target: str, tls: Tls, field: str) -> grpc.Channel:
    """A channel to `target`. Raises TrimtabError when it would leave this host without TLS."""
    return Dialer(target, tls, field).open()


def is_loopback(address: str) -> bool:
    """Whether host:port stays on this host."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def _server_credentials(tls: Tls, field: str, address: str) -> grpc.ServerCredentials:
    """The files are looked at again for each connection, so that new certificates need no restart."""
    files = certificate_files(tls, field, address)

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = files.current
        return grpc.ssl_server_certificate_configuration([(now.key, now.certificate)], root_certificates=now.ca)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if files.refresh() else None

    # grpc-stubs does not say that the fetcher may have nothing new; grpc does.
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], fetch)
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, require_client_authentication=True)


def certificate_files(tls: Tls, field: str, address: str) -> CertificateFiles:
    """Those in the settings. Raises TrimtabError, naming the setting `field`, when there are none or they cannot be used."""
    if not (tls.ca and tls.key and tls.certificate):
        message = f"{field} = {address!r} is not loopback: set tls.ca, tls.certificate and tls.key, or use 127.0.0.1"
        raise TrimtabError(message, Exit.SETTINGS)
    return CertificateFiles(tls)
