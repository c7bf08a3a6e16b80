"""The agents' streams on the collector's port, as a source of windows."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import grpc

from trimtab.agent.clock import Clock
from trimtab.collector.booking import Item
from trimtab.collector.inbox import Inbox
from trimtab.collector.ingest import Connected, Publication
from trimtab.collector.port.port import Port
from trimtab.collector.port.publishing import Call
from trimtab.collector.series import Registry
from trimtab.collector.source import Answer, End
from trimtab.collector.stream import Stream
from trimtab.collector.vitals import Vitals


class Agents:
    """See `trimtab.collector.source.Source`."""

    def __init__(
        self,
        port: Port,
        inbox: Inbox[Item],
        registry: Registry,
        connected: Connected,
        clock: Clock,
        vitals: Vitals,
    ) -> None:
        self._vitals = vitals
        self._turn = 0
        self._port = port
        self._inbox = inbox
        self._registry = registry
        self._connected = connected
        self._clock = clock

    def begin(self, call: Call) -> Publication:
        """A call of Publish has come."""
        return Publication(
            self,
            call,
            inbox=self._inbox,
            registry=self._registry,
            connected=self._connected,
            clock=self._clock,
            vitals=self._vitals,
        )

    def answer(self, answers: Sequence[tuple[Stream, Answer]]) -> None:
        """Have the port's thread say it: one wake-up for all."""
        self._port.soon(lambda: self._say(answers))

    def room(self) -> None:
        """Have every connection that was held up go on."""
        self._port.soon(self._go_on)

    def _say(self, answers: Sequence[tuple[Stream, Answer]]) -> None:
        # Sorting is stable: the answers of a stream stay in their order.
        for _, group in groupby(sorted(answers, key=lambda pair: id(pair[0])), key=lambda pair: id(pair[0])):
            mine = list(group)
            self._say_to(mine[0][0], [answer for _, answer in mine])

    def _say_to(self, stream: Stream, answers: Sequence[Answer]) -> None:
        reply = stream.reply
        if reply is None:
            return
        messages = [answer for answer in answers if not isinstance(answer, End)]
        stream.unanswered -= sum(not answer.HasField("welcome") for answer in messages)
        reply.send([answer.SerializeToString() for answer in messages])
        for end in (answer for answer in answers if isinstance(answer, End)):
            reply.end(end.code or grpc.StatusCode.OK, end.detail)
        reply.go_on()

    def _go_on(self) -> None:
        # Each time another one is asked first: what there is room for may be less than what one has waiting.
        waiting = list(self._port.connections)
        self._turn = (self._turn + 1) % max(1, len(waiting))
        for connection in waiting[self._turn :] + waiting[: self._turn]:
            connection.go_on()
