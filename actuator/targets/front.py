"""A front: a process beside the actuator that balancers ask for their weights, and that outlives it.

`python -m trimtab.actuator.targets.front` hears on its standard input, a socket, how to start and then one snapshot a line, and
answers each. While the actuator is silent it says neutral weights; once the actuator has hung up it does so until every balancer has
heard them, and leaves.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Literal, Protocol

import msgspec

from trimtab import TrimtabError
from trimtab.actuator.deadman import SILENCE_SECONDS, log_to_stderr
from trimtab.actuator.snapshot import Snapshot
from trimtab.agent.clock import Clock, SystemClock
from trimtab.agent.settings import Tls

LEAVE_SECONDS = 10.0
"""Balancers that have not heard of neutral weights by then are left with those they have."""
_LOOK_SECONDS = 0.05

log = logging.getLogger("trimtab.front")


class Start(msgspec.Struct, frozen=True):
    """What a front is told first."""

    kind: Literal["xds", "haproxy agent"]
    listen: str
    node: str
    """The name of this host, whose loopback addresses are meant."""
    tls: Tls = Tls()
    networks: tuple[str, ...] = ()
    """Where balancers reach instances, CIDR."""
    members: str = ""
    """Path of the file in which the members of clusters are kept."""


class Answer(msgspec.Struct, frozen=True):
    """What a front says to each snapshot."""

    trouble: str
    """"" when all is well."""
    matched: tuple[str, ...]
    """The instances that balancers ask for."""


class Front(Protocol):
    """Answers balancers, in threads of its own."""

    @property
    def matched(self) -> frozenset[str]:
        """The instances that balancers ask for."""

    def publish(self, snapshot: Snapshot) -> None:
        """Say this from now on."""

    def neutral(self) -> None:
        """Say neutral weights from now on."""

    def trouble(self) -> str:
        """What is wrong now, in a line; "" when all is well."""

    def told(self) -> bool:
        """Whether all who ask have heard what is said now."""

    def close(self) -> None:
        """Answer nobody any more."""


def serve(
    open_front: Callable[[], Front], actuator: socket.socket, lines: Iterator[bytes | None], clock: Clock
) -> None:
    """Say what the actuator says until it hangs up, and neutral weights while it is silent, and in the end.

    A front that cannot be opened is tried again with every line.
    """
    front: Front | None = None
    silent = False
    for line in lines:
        if line is None:
            if front and not silent:
                log.warning("the actuator has been silent for %.0f s: neutral weights", SILENCE_SECONDS)
                front.neutral()
            silent = True
            continue
        silent = False
        try:
            front = front or open_front()
            front.publish(msgspec.json.decode(line, type=Snapshot))
            answer = Answer(front.trouble(), tuple(sorted(front.matched)))
        except TrimtabError as error:
            answer = Answer(str(error), ())
        try:
            actuator.sendall(msgspec.json.encode(answer) + b"\n")
        except OSError:  # it does not listen: what it said may be old
            break
    if front:
        _leave(front, clock)


def _leave(front: Front, clock: Clock) -> None:
    front.neutral()
    deadline = clock.monotonic() + LEAVE_SECONDS
    while not front.told():
        if clock.monotonic() > deadline:
            log.error(
                "balancers were left with weights that are not neutral: %s", front.trouble() or "they did not ask"
            )
            break
        clock.wait(threading.Event(), _LOOK_SECONDS)
    front.close()


def lines(actuator: socket.socket) -> Iterator[bytes | None]:
    """Its lines; None whenever nothing came for SILENCE_SECONDS."""
    actuator.settimeout(SILENCE_SECONDS)
    held = bytearray()
    while True:
        try:
            part = actuator.recv(1 << 20)
        except TimeoutError:
            yield None
            continue
        except OSError:
            return
        if not part:
            return
        held += part
        while b"\n" in part:
            line, _, part = bytes(held).partition(b"\n")
            held = bytearray(part)
            yield line


def _open(start: Start) -> Front:
    """Raises TrimtabError when it cannot listen."""
    # Each process imports only what it runs.
    if start.kind == "xds":
        from trimtab.actuator.targets.xds.server import Xds  # noqa: PLC0415

        return Xds(start, SystemClock())
    from trimtab.actuator.targets.agent_check import AgentCheck  # noqa: PLC0415

    return AgentCheck(start, SystemClock())


def main() -> int:
    log_to_stderr()
    # Who stops the actuator may stop all that it started: this process leaves when it has told the balancers.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as actuator:
        heard = lines(actuator)
        first = next(heard, None)
        if first is None:
            return 1
        start = msgspec.json.decode(first, type=Start)
        serve(lambda: _open(start), actuator, heard, SystemClock())
    return 0


if __name__ == "__main__":
    sys.exit(main())
