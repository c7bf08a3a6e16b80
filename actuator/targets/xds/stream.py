"""One client's stream as the server keeps it, and what can be wrong with it, in a line."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from trimtab.actuator.targets.xds.resources import ASSIGNMENT, World
from trimtab.actuator.targets.xds.subscription import Subscription, Subscriptions
from trimtab.agent.wire import xds_pb2 as pb

ANSWER_SECONDS = 5.0
"""A client that has not answered for so long is told of."""

log = logging.getLogger("trimtab.xds")


class Stream:
    """What a client wants, and how its stream fares."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self.wants = Subscriptions(kinds)
        self.sent_at = 0.0
        self.fault = ""
        self.ended = False

    def hear(self, request: pb.DiscoveryRequest) -> None:
        """Raises Malformed. Logs what is refused."""
        if refusing := self.wants.hear(request):
            log.warning("%s", _refusal(self, refusing))


def trouble(streams: Iterable[Stream], world: World, now: float) -> str:
    """The worst there is: what was refused, what was not answered, what is asked for and is not there. "" for none."""
    streams = list(streams)
    for stream in streams:
        for one in stream.wants.by_type.values():
            if found := _trouble(stream, one, now):
                return found
    for stream in streams:
        for name in stream.wants.by_type[ASSIGNMENT].names or ():
            if world.clusters and not world.members(name):
                return f"{stream.wants.node!r} asks for cluster {name!r}: no known instance serves a model of that name"
        for kind in stream.wants.others:
            return f"{stream.wants.node!r} asks for {_short(kind)!r}, which trimtab does not serve"
    return ""


def _trouble(stream: Stream, one: Subscription, now: float) -> str:
    if one.refused:
        return _refusal(stream, one)
    if not one.answered and now - stream.sent_at > ANSWER_SECONDS:
        return f"{stream.wants.node!r} has not answered to {_short(one.kind)} for over {ANSWER_SECONDS:.0f} s"
    return ""


def _refusal(stream: Stream, one: Subscription) -> str:
    what = f"{_short(one.kind)} of version {one.version}"
    return f"{stream.wants.node!r} refused {what}: {one.refused} (refused so far: {one.refusals})"


def _short(kind: str) -> str:
    return kind.rpartition(".")[2]
