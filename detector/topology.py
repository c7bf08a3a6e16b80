"""Who calls whom, and where a node stands: what the labels of the fleet say, put together."""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from trimtab.agent.wire.calls import unpack
from trimtab.agent.wire.places import places
from trimtab.detector.history import INSTANCE, NODE, History, Node

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the labels of one node say. An address that two of its instances have is of neither: empty."""

    schema_hash: bytes
    places: tuple[str, ...]
    addresses: dict[str, str]
    ports: dict[tuple[str, int], str]
    """By network namespace, empty for the agent's own, and port: what is reached there by loopback."""
    calls: dict[str, list[str]]


@dataclass
class Topology:
    """As it was at the last update. An instance never calls itself; calls may go round in circles."""

    callees: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The instances that each calls, in order; only of those that call any."""
    callers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The instances that call each, in order."""
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By node, as in `trimtab.agent.wire.places`; only of those that say where they stand."""
    _known: dict[str, bytes] = field(default_factory=dict)
    """By node, the hash of its schema."""
    _facts: dict[str, _Facts] = field(default_factory=dict)

    def update(self, history: History) -> None:
        """Take over what has changed: nothing is done while no schema has."""
        known = {name: node.schema_hash for name, node in history.nodes.items()}
        if known == self._known:
            return
        self._known = known
        self._facts = {
            name: facts if (facts := self._facts.get(name)) and facts.schema_hash == node.schema_hash else _read(node)
            for name, node in history.nodes.items()
        }
        self.places = {name: facts.places for name, facts in self._facts.items() if facts.places}
        self.callees = self._resolve()
        callers: dict[str, list[str]] = {}
        for caller, callees in self.callees.items():
            for callee in callees:
                callers.setdefault(callee, []).append(caller)
        self.callers = {callee: tuple(sorted(found)) for callee, found in callers.items()}

    def nodes(self, place: str) -> list[str]:
        """Those that stand there; none for what is no place."""
        return sorted(node for node, places in self.places.items() if place in places)

    def _resolve(self) -> dict[str, tuple[str, ...]]:
        if not any(facts.calls for facts in self._facts.values()):
            return {}
        everywhere: dict[str, str] = {}
        for facts in self._facts.values():
            for address, instance in facts.addresses.items():
                everywhere[address] = "" if address in everywhere else instance
        out = {}
        for facts in self._facts.values():
            for caller, addresses in facts.calls.items():
                found = {_instance_at(address, caller, facts, everywhere) for address in addresses}
                if callees := sorted(found - {"", caller}):
                    out[caller] = tuple(callees)
        return out


def _read(node: Node) -> _Facts:
    instances = node.tables[INSTANCE].labels if INSTANCE in node.tables else {}
    own = node.tables[NODE].labels.get(node.name, {}) if NODE in node.tables else {}
    facts = _Facts(
        schema_hash=node.schema_hash,
        places=places(own),
        addresses={},
        ports={},
        calls={id_: calls for id_, labels in instances.items() if (calls := unpack(labels))},
    )
    for id_, labels in instances.items():
        port, netns = _tail(id_)
        ports = {_port(port), _port(labels.get("grpc_port", ""))} - {0}
        for number in ports:
            _enter(facts.ports, (netns, number), id_)
        for host, serving in map(_split, labels.get("addresses", "").split(",")):
            if host and not _is_loopback(host):
                for number in ports | {serving}:
                    _enter(facts.addresses, f"{host}:{number}", id_)
    return facts


def _enter(taken: dict[K, str], key: K, instance: str) -> None:
    taken[key] = "" if taken.get(key, instance) != instance else instance


def _instance_at(address: str, caller: str, facts: _Facts, everywhere: Mapping[str, str]) -> str:
    """The instance behind an address as `caller` sees it; empty for none, or where that cannot be told."""
    host, port = _split(address)
    if not host:
        return ""
    if _is_loopback(host):
        return facts.ports.get((_tail(caller)[1], port), "")
    # Networks of containers have the same addresses on every host: the near one is meant.
    return facts.addresses.get(address, everywhere.get(address, ""))


def _tail(instance: str) -> tuple[str, str]:
    """The port in "NODE/PORT@NETNS", and the network namespace."""
    port, _, netns = instance.partition("/")[2].partition("@")
    return port, netns


def _port(text: str) -> int:
    """0 for what is none."""
    number = int(text) if len(text) <= 5 and text.isascii() and text.isdecimal() else 0
    return number if number < 1 << 16 else 0


@lru_cache(maxsize=65536)
def _split(address: str) -> tuple[str, int]:
    """The IP address and the port in "host:port"; an empty host where it is none."""
    host, _, port = address.rpartition(":")
    try:
        is_one = not ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        is_one = False
    number = _port(port)
    return (host, number) if is_one and number else ("", 0)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host == "[::1]"
