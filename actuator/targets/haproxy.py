"""HAProxy: shares of neutral weights become the weights of its servers, by address and port."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from trimtab import TrimtabError
from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets import runtime
from trimtab.actuator.targets.ledger import Ledger
from trimtab.actuator.targets.runtime import WEIGHT_MAX, Server

COARSE = {"leastconn", "first"}
"""Algorithms that hardly look at small weights while servers are idle."""
STATIC = {"source", "uri", "url_param", "hdr", "rdp-cookie", "static-rr", "hash"}
"""Algorithms that take no weight at run time but 0 % and 100 %, unless their hash is consistent."""


class HAProxy:
    """One HAProxy, by its Runtime API socket.

    What HAProxy reports is compared with what is wanted each time, so that one that was restarted gets its weights again. Backends
    without a known instance are not touched; one whose instances are gone is given back.
    """

    def __init__(self, path: str, node: str, weight_min: float, ledger: Ledger) -> None:
        """`node`: the name of this host, whose loopback addresses are meant; at or below `weight_min` an instance is drained."""
        self.name = f"haproxy {path}"
        self._path, self._node, self._weight_min, self._ledger = path, node, weight_min, ledger
        self.matched: frozenset[str] = frozenset()

    def apply(self, snapshot: Snapshot) -> None:
        instances = self._by_address(snapshot.assignments)
        servers, algorithms = runtime.servers(self._path)
        backends: dict[str, list[Server]] = {}
        for server in servers:
            backends.setdefault(server.backend, []).append(server)
        orders: list[tuple[Server, str]] = []
        ours: set[str] = set()
        held = self._ledger.read().get(self._path, set())
        matched: set[str] = set()
        for backend, group in backends.items():
            known = [instances.get(address(s.address, s.port)) for s in group]
            if not any(known) and backend not in held:
                continue
            matched.update(a.instance for a in known if a)
            shares = [a.weight if a else 1.0 for a in known]
            wanted = weights([s.initial for s in group], shares, algorithms.get(backend, ""), self._weight_min)
            if any(weight != "100%" for weight in wanted):
                ours.add(backend)
            orders += [(s, w) for s, w in zip(group, wanted, strict=True) if s.weight != _units(w, s)]
        self._ledger.set(self._path, held | ours)
        runtime.set_weights(self._path, orders)
        self._ledger.set(self._path, ours)
        self.matched = frozenset(matched)
        if snapshot.assignments and not matched:
            message = f"none of its {len(servers)} servers has the address of a known instance"
            raise TrimtabError(
                f"{self._path}: {message}; on one host, is actuator.node ({self._node}) the agent's node?"
            )

    def neutral(self) -> None:
        runtime.neutral(self._path, self._ledger.read().get(self._path, set()))
        self._ledger.set(self._path, set())

    def _by_address(self, assignments: Sequence[Assignment]) -> dict[str, Assignment]:
        """Assignments by "address:port". A loopback address means the host it is on: only this host's count."""
        out: dict[str, Assignment] = {}
        for assignment in assignments:
            here = assignment.instance.partition("/")[0] == self._node
            for text in assignment.addresses:
                host, _, port = text.rpartition(":")
                key = address(host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0)
                if key and (here or not key.startswith(("127.", "::1:"))):
                    out[key] = assignment
        return out


def weights(initial: Sequence[int], shares: Sequence[float], algorithm: str, weight_min: float) -> list[str]:
    """The weights of one backend's servers as HAProxy takes them: "100%" each when all shares are 1.

    A configured weight of 1 cannot be divided, so that the largest is scaled up to 256 and the others with it, at least 1 unless
    drained. COARSE algorithms do not heed the least weight and STATIC ones take none: there such an instance is drained entirely.
    """
    static = algorithm in STATIC
    if static or algorithm in COARSE:
        shares = [0.0 if share <= weight_min else share for share in shares]
    if static:
        return ["0%" if share == 0 else "100%" for share in shares]
    if all(share == 1 for share in shares) or not any(initial):
        return ["100%"] * len(shares)
    scale = WEIGHT_MAX / max(initial)
    return [
        "0" if share == 0 or weight == 0 else str(max(1, round(weight * share * scale)))
        for weight, share in zip(initial, shares, strict=True)
    ]


def address(host: str, port: int) -> str:
    """The key by which servers and instances meet; "" for what is no numeric address with a port."""
    try:
        return f"{ipaddress.ip_address(host).compressed}:{port}" if port else ""
    except ValueError:
        return f"127.0.0.1:{port}" if host == "localhost" and port else ""


def _units(weight: str, server: Server) -> int:
    """The order in HAProxy's units."""
    return server.initial * int(weight[:-1]) // 100 if weight.endswith("%") else int(weight)
