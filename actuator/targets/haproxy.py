"""HAProxy: shares of neutral weights become the weights of its servers, by address and port; and limits their `maxconn`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trimtab import TrimtabError
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.addresses import Addresses, address
from trimtab.actuator.targets.ledger import NOTHING, Held, Ledger
from trimtab.actuator.targets.runtime import WEIGHT_MAX, Server

COARSE = {"leastconn", "first"}
"""Algorithms that hardly look at small weights while servers are idle."""
STATIC = {"source", "uri", "url_param", "hdr", "rdp-cookie", "static-rr", "hash"}
"""Algorithms that take no weight at run time but 0 % and 100 %, unless their hash is consistent."""


class HAProxy:
    """One HAProxy, by its Runtime API socket.

    What HAProxy reports is compared with what is wanted each time, so that one that was restarted gets its weights again. Only
    backends where a weight is not neutral are touched; one that was steered is given back once.
    """

    def __init__(self, path: str, node: str, weight_min: float, ledger: Ledger, named: bool = True) -> None:
        """`node`: the name of this host, whose loopback addresses are meant; at or below `weight_min` an instance is drained.

        `named`: the operator named this HAProxy, so that it is an error when it holds no known instance.
        """
        self.name = f"haproxy {path}"
        self._path, self._node, self._weight_min, self._ledger, self._named = path, node, weight_min, ledger, named
        self.matched: frozenset[str] = frozenset()

    def apply(self, snapshot: Snapshot) -> None:
        addresses = Addresses(snapshot.assignments, self._node)
        servers, algorithms = runtime.servers(self._path)
        backends: dict[str, list[Server]] = {}
        for server in servers:
            backends.setdefault(server.backend, []).append(server)
        orders: list[tuple[Server, str]] = []
        ours: set[str] = set()
        held = self._ledger.read().get(self._path, NOTHING)
        known = {key: addresses.meant(key) for key in map(_key, servers) if key in addresses}
        for backend, group in backends.items():
            shares = [a.weight if (a := known.get(_key(s))) else 1.0 for s in group]
            wanted = weights(group, shares, algorithms.get(backend, ""), self._weight_min)
            if any(weight != "100%" for weight in wanted):
                ours.add(backend)
            if backend in held.backends | ours:
                orders += [(s, w) for s, w in zip(group, wanted, strict=True) if s.weight != _units(w, s)]
        limited = limits(servers, [known.get(_key(s)) for s in servers], held.maxconn)
        self._ledger.set(self._path, Held(held.backends | ours, {**held.maxconn, **limited}))
        runtime.set_weights(self._path, orders)
        runtime.set_maxconn(
            self._path, [(s, limit) for s in servers if (limit := _limit(s, limited, held.maxconn)) != s.maxconn]
        )
        self._ledger.set(self._path, Held(frozenset(ours), limited))
        self.matched = frozenset(a.instance for a in known.values() if a)
        self._check(snapshot, len(servers), [addresses.several(key) for key, meant in known.items() if not meant])

    def neutral(self) -> None:
        runtime.neutral(self._path, self._ledger.read().get(self._path, NOTHING))
        self._ledger.set(self._path, NOTHING)

    def _check(self, snapshot: Snapshot, servers: int, unclear: Sequence[str]) -> None:
        """Raises TrimtabError where instances and servers do not meet as they should."""
        for several in unclear:
            raise TrimtabError(f"{self._path}: {several}: steered by none of them; give each an address of its own")
        if self._named and snapshot.assignments and not self.matched:
            message = f"none of its {servers} servers has the address of a known instance"
            raise TrimtabError(
                f"{self._path}: {message}; on one host, is actuator.node ({self._node}) the agent's node?"
            )


def weights(servers: Sequence[Server], shares: Sequence[float], algorithm: str, weight_min: float) -> list[str]:
    """The weights of one backend's servers as HAProxy takes them: "100%" each when all shares are 1.

    A configured weight of 1 cannot be divided, so that the largest is scaled up to 256 and the others with it, at least 1 unless
    drained. COARSE algorithms do not heed the least weight and STATIC ones take none: there such an instance is drained entirely,
    but only while another usable server stays.
    """
    static = algorithm in STATIC
    least = weight_min if static or algorithm in COARSE else 0.0
    # A weight that was moved there step by step is not quite the least.
    drained = [share <= least + 1e-9 for share in shares]
    if not any(s.usable and s.initial and not out for s, out in zip(servers, drained, strict=True)):
        drained = [False] * len(servers)
    if static:
        return ["0%" if out else "100%" for out in drained]
    largest = max(s.initial for s in servers)
    if all(share == 1 for share in shares) or not largest:
        return ["100%"] * len(servers)
    return [
        "0" if out or not s.initial else str(max(1, round(s.initial * share * WEIGHT_MAX / largest)))
        for s, share, out in zip(servers, shares, drained, strict=True)
    ]


def limits(
    servers: Sequence[Server], meant: Sequence[Assignment | None], held: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """As `Held.maxconn`: those that are limited from now on. A limit of the operator's that is lower stays."""
    found = {}
    for server, assignment in zip(servers, meant, strict=True):
        before, ours = held.get(server.path, (server.maxconn, None))
        # Another one than ours is new: of an HAProxy that was restarted, or set by hand.
        configured = before if server.maxconn == ours else server.maxconn
        limit = assignment.at_once if assignment else 0
        if limit and (not configured or limit < configured):
            found[server.path] = configured, limit
    return found


def _limit(server: Server, limited: Mapping[str, tuple[int, int]], held: Mapping[str, tuple[int, int]]) -> int:
    """What its limit is to be; what is no longer ours is given back, unless somebody else has set it meanwhile."""
    if server.path in limited:
        return limited[server.path][1]
    before, ours = held.get(server.path, (server.maxconn, server.maxconn))
    return before if server.maxconn == ours else server.maxconn


def _key(server: Server) -> str:
    return address(server.address, server.port)


def _units(weight: str, server: Server) -> int:
    """The order in HAProxy's units."""
    return server.initial * int(weight[:-1]) // 100 if weight.endswith("%") else int(weight)
