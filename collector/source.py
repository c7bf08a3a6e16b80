"""Where windows come from: today the agents' gRPC streams; whatever else can bring a spool's windows in order fits the same seam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc

from trimtab.agent.wire import telemetry_pb2 as pb

if TYPE_CHECKING:
    from trimtab.collector.stream import Stream


@dataclass(frozen=True, slots=True)
class End:
    """Why a stream ends; no code: the agent has said all."""

    code: grpc.StatusCode | None = None
    detail: str = ""


Answer = pb.CollectorMessage | End


class Reply(Protocol):
    """What a source's side of a stream listens to, in the source's own thread."""

    def send(self, messages: Sequence[bytes]) -> None:
        """Answers, in order."""

    def end(self, code: grpc.StatusCode, detail: str = "") -> None:
        """There are no more."""

    def go_on(self) -> None:
        """What was held back may be offered again."""


class Source(Protocol):
    """Makes a Stream for each spool, and puts its windows into the inbox."""

    def answer(self, answers: Sequence[tuple[Stream, Answer]]) -> None:
        """These are stored, in this order for each stream. Called by the writer; must not wait."""

    def room(self) -> None:
        """There is room in the inbox again, after it had none. Called by the writer; must not wait."""
