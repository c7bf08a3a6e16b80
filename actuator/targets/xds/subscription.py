"""One client's stream, without input or output: what it asked for, what it was sent, what it took and what it refused.

State of the world, as in https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol: each response has a nonce, the next request
with it says whether the response was taken, and a request with an older nonce is void.
"""

from __future__ import annotations

from trimtab.actuator.targets.xds.resources import ASSIGNMENT, TYPES, World
from trimtab.agent.wire import xds_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed

NAMES_MAX = 1024
"""Resources that one client may name of each type."""
_OTHERS_MAX = 8
_REFUSAL_CHARACTERS = 200


class Subscription:
    """What one client wants of one type."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.names: tuple[str, ...] | None = ()
        """None: all there are."""
        self.refused = ""
        """Why the client refused what it was sent last."""
        self.refusals = 0
        self.version = ""
        """Of what it was sent last."""
        self._heard = False
        self._fresh = False
        self._nonce, self._answered = 0, 0
        self._sent: dict[str, bytes] | None = None

    def hear(self, request: pb.DiscoveryRequest) -> bool:
        """Whether it refuses what was sent last."""
        if self._nonce and request.response_nonce != str(self._nonce):
            return False
        names = tuple(sorted(set(request.resource_names)))
        # Nothing named means all in a client's first word, and nothing later on.
        wanted = None if "*" in names or (not names and (not self._heard or self.names is None)) else names
        if self.kind == ASSIGNMENT and wanted is None:
            wanted = ()
        self._fresh |= not self._heard or wanted != self.names
        self._heard, self.names = True, wanted
        if self.answered:
            return False
        self._answered, self.refused = self._nonce, ""
        if request.HasField("error_detail"):
            self.refusals += 1
            self.refused = _line(request.error_detail.message) or "without a reason"
        return bool(self.refused)

    def due(self, world: World) -> pb.DiscoveryResponse | None:
        """What is to be sent now: when something changed, and, whether or not it did, when the client asked for something else."""
        wanted = self._wanted(world)
        if wanted is None or (wanted == self._sent and not self._fresh):
            return None
        self._fresh, self._sent, self.version = False, wanted, world.version
        self._nonce += 1
        return pb.DiscoveryResponse(
            version_info=world.version,
            type_url=self.kind,
            nonce=str(self._nonce),
            resources=[pb.Any(type_url=self.kind, value=value) for value in wanted.values()],
        )

    def settled(self, world: World) -> bool:
        """Whether the client has what there is, and said that it has."""
        wanted = self._wanted(world)
        return self.answered and (wanted is None or wanted == self._sent)

    @property
    def answered(self) -> bool:
        return self._answered == self._nonce

    def _wanted(self, world: World) -> dict[str, bytes] | None:
        """None: nothing is asked, or nothing can be said yet."""
        return world.resources(self.kind, self.names) if self._heard and self.names != () else None


def _line(text: str) -> str:
    """One short line that steers no terminal. Its end: Envoy first repeats what it was sent."""
    words = "".join(c if c.isprintable() else " " for c in text[-_REFUSAL_CHARACTERS:]).strip()
    return f"…{words}" if len(text) > _REFUSAL_CHARACTERS else words


class Subscriptions:
    """All that one client wants."""

    def __init__(self, only: tuple[str, ...] = TYPES) -> None:
        self.node = "a client without a name"
        self.by_type = {kind: Subscription(kind) for kind in only}
        self.others: set[str] = set()
        """Types that it asked for and trimtab does not serve."""

    def hear(self, request: pb.DiscoveryRequest) -> Subscription | None:
        """The subscription of which it refuses what was sent. Raises Malformed when a limit is passed; then end the stream."""
        if len(request.resource_names) > NAMES_MAX:
            raise Malformed(f"resource_names: {len(request.resource_names)}; at most {NAMES_MAX}")
        if any(len(name) > TEXT_MAX for name in request.resource_names):
            raise Malformed(f"resource_names: one is over {TEXT_MAX} characters")
        if request.node.id:
            self.node = request.node.id[:TEXT_MAX]
        # A stream of one type need not name it.
        kind = request.type_url or (next(iter(self.by_type)) if len(self.by_type) == 1 else "")
        if one := self.by_type.get(kind):
            return one if one.hear(request) else None
        if len(self.others) < _OTHERS_MAX:
            self.others.add(kind[:TEXT_MAX])
        return None

    def due(self, world: World) -> list[pb.DiscoveryResponse]:
        return [response for one in self.by_type.values() if (response := one.due(world))]

    def settled(self, world: World) -> bool:
        return all(one.settled(world) for one in self.by_type.values())
