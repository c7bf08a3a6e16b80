"""HAProxy's agent check: HAProxy asks for each server, by address or by name of the instance, and gets the share of its configured weight.

https://docs.haproxy.org/2.6/configuration.html#5.2-agent-check. Only shares are said: "ready" and "drain" would undo what the operator
set by hand. It needs no access to HAProxy, and changes nothing that HAProxy does not ask for.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

from trimtab import Exit, TrimtabError
from trimtab.actuator.snapshot import Snapshot
from trimtab.actuator.targets.addresses import Addresses, key
from trimtab.actuator.targets.front import Start
from trimtab.agent.clock import Clock

CONNECTIONS_MAX = 256
LINE_BYTES_MAX = 512
LINE_SECONDS = 1.0
ASKED_MAX = 16_384
"""Servers that are remembered as asked for."""
ASKS_SECONDS = 10.0
"""A server that was not asked for so long is nobody's."""
NEUTRAL = "100%"


@dataclass(frozen=True, slots=True)
class _Asked:
    monotonic: float
    answer: str
    instance: str
    """"" for who is not known."""


class AgentCheck:
    """A TCP server of one line a connection, in a thread of its own."""

    def __init__(self, start: Start, clock: Clock) -> None:
        """Raises TrimtabError when it cannot listen."""
        self._node, self._clock = start.node, clock
        self._snapshot: Snapshot | None = None
        self._by_name: dict[str, float] = {}
        self._by_address = Addresses((), start.node)
        self._asked: OrderedDict[str, _Asked] = OrderedDict()
        self._lock = threading.Lock()
        self._open = 0
        self.refused = 0
        """Connections that were one too many, sent no line in time, or one that was too long."""
        self._refused_at = -math.inf
        self._loop = asyncio.new_event_loop()
        self._server = self._listen(start.listen)
        self._thread = threading.Thread(target=self._loop.run_forever, name="agent-check", daemon=True)
        self._thread.start()

    def publish(self, snapshot: Snapshot) -> None:
        with self._lock:
            if self._snapshot is None or self._snapshot.assignments != snapshot.assignments:
                self._by_name = {a.instance: a.weight for a in snapshot.assignments}
                self._by_address = Addresses(snapshot.assignments, self._node)
            self._snapshot = snapshot

    def neutral(self) -> None:
        with self._lock:
            self._snapshot = None

    @property
    def port(self) -> int:
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def matched(self) -> frozenset[str]:
        return frozenset(asked.instance for _, asked in self._asking() if asked.instance)

    def trouble(self) -> str:
        with self._lock:
            anybody = self._snapshot is not None and bool(self._snapshot.assignments)
        unknown = sorted(name for name, asked in self._asking() if not asked.instance) if anybody else []
        if not unknown:
            lately = self._clock.monotonic() - self._refused_at < ASKS_SECONDS
            return f"{self.refused} connections were refused: too many, too slow, or no line" if lately else ""
        several = self._by_address.several(key(unknown[0])) if key(unknown[0]) in self._by_address else ""
        why = several or f"no known instance has the name or the address {unknown[0]!r}"
        more = f" and {len(unknown) - 1} more like it" if len(unknown) > 1 else ""
        return f"{why}{more}: {NEUTRAL} is answered; agent-send wants an instance of `trimtab instances`"

    def told(self) -> bool:
        return all(asked.answer == NEUTRAL for _, asked in self._asking())

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def _listen(self, listen: str) -> asyncio.Server:
        field = f"actuator.haproxy_agent_listen = {listen!r}"
        host, _, port = listen.rpartition(":")
        try:
            serving = asyncio.start_server(self._serve, host.strip("[]"), int(port), limit=LINE_BYTES_MAX)
            return self._loop.run_until_complete(serving)
        except OSError as error:
            self._loop.close()
            raise TrimtabError(f"{field}: cannot listen there: {error.strerror or error}", Exit.LISTEN) from error

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if self._open >= CONNECTIONS_MAX:
                self._refuse()
                return
            self._open += 1
            try:
                line = await asyncio.wait_for(reader.readline(), LINE_SECONDS)
                if not line:  # somebody who looks whether the port is open
                    return
                writer.write(self._answer(line.decode("ascii").strip()).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), LINE_SECONDS)
            except (ValueError, TimeoutError):
                self._refuse()
            except OSError:  # HAProxy did not wait: it asks again, and has a count of its own
                return
            finally:
                self._open -= 1

    def _refuse(self) -> None:
        self.refused += 1
        self._refused_at = self._clock.monotonic()

    def _answer(self, name: str) -> str:
        """Raises ValueError for no name."""
        if not name:
            raise ValueError("nothing was asked")
        with self._lock:
            instance, share = name, self._by_name.get(name)
            if share is None:
                meant = self._by_address.meant(key(name))
                instance, share = (meant.instance, meant.weight) if meant else ("", 1.0)
            answer = percent(share) if self._snapshot else NEUTRAL
            self._asked[name] = _Asked(self._clock.monotonic(), answer, instance)
            self._asked.move_to_end(name)
            if len(self._asked) > ASKED_MAX:
                self._asked.popitem(last=False)
        return answer

    def _asking(self) -> list[tuple[str, _Asked]]:
        since = self._clock.monotonic() - ASKS_SECONDS
        with self._lock:
            return [(name, asked) for name, asked in self._asked.items() if asked.monotonic >= since]


def percent(share: float) -> str:
    """At least 1 % unless drained: HAProxy rounds down, and the least weight is to be seen."""
    return f"{max(1, round(100 * share))}%" if share else "0%"
