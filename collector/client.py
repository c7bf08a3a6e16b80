"""How every command asks the collector."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire import channel
from trimtab.agent.wire.query_pb2_grpc import QueryStub

DEADLINE_SECONDS = 15.0
"""The `timeout` of calls that answer at once; longer than a collector under load takes."""
_UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class _Client(Protocol):
    @property
    def collector(self) -> str: ...


class ClientSettings(Protocol):
    """The part of the settings file that a client needs."""

    @property
    def actuator(self) -> _Client: ...
    @property
    def tls(self) -> Tls: ...


@contextmanager
def stub(settings: ClientSettings, override: str | None) -> Iterator[QueryStub]:
    """A stub of the collector at `override`, else of the one in the settings. gRPC's errors within the block become TrimtabError."""
    target = override or settings.actuator.collector
    with channel.channel(target, settings.tls, "--collector" if override else "actuator.collector") as connection:
        try:
            yield QueryStub(connection)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise _translated(error, target) from error


def who() -> str:
    """As whom an operator speaks: what others see beside what was said."""
    return os.environ.get("USER") or f"user {os.getuid()}"


def _translated(error: grpc.RpcError, target: str) -> TrimtabError:
    if not isinstance(error, grpc.Call):
        return TrimtabError(f"collector at {target}: {error}", Exit.UNREACHABLE)
    code, detail = error.code(), (error.details() or "").partition("\n")[0]
    if code in _UNREACHABLE:
        remedy = "start `trimtab collector` or `trimtab up`, or say where it is with --collector HOST:PORT"
        return TrimtabError(f"no collector answers at {target}: {remedy}", Exit.UNREACHABLE)
    if code == grpc.StatusCode.INVALID_ARGUMENT:
        return TrimtabError(detail, Exit.USAGE)
    if code == grpc.StatusCode.NOT_FOUND:
        return TrimtabError(detail, Exit.NO)
    return TrimtabError(f"collector at {target}: {detail or code.name}")
