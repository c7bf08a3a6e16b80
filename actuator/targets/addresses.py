"""Where balancers and instances meet: numeric address and port, in one spelling."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network

from trimtab import Exit, TrimtabError
from trimtab.actuator.snapshot import Assignment

Network = IPv4Network | IPv6Network

LOOPBACK = ("127.", "::1:")
"""How the keys of loopback addresses begin."""


def address(host: str, port: int) -> str:
    """The key by which servers and instances meet; "" for what is no numeric address with a port."""
    try:
        return f"{ipaddress.ip_address(host).compressed}:{port}" if 0 < port < 1 << 16 else ""
    except ValueError:
        return f"127.0.0.1:{port}" if host == "localhost" and 0 < port < 1 << 16 else ""


@lru_cache(maxsize=65_536)
def key(text: str) -> str:
    """The key of "host:port"; "" for what is none."""
    host, _, port = text.rpartition(":")
    return address(host.strip("[]"), int(port) if port.isascii() and port.isdigit() else 0)


def networks(texts: Sequence[str]) -> list[Network]:
    """Raises TrimtabError, naming the setting, for what is no network."""
    try:
        return [ipaddress.ip_network(text) for text in texts]
    except ValueError as error:
        raise TrimtabError(f"actuator.xds_networks: {error}; write 10.0.0.0/8", Exit.SETTINGS) from error


class Addresses:
    """The assignments of a snapshot by address. A loopback address means the host it is on: only those of `node`, this host, count."""

    def __init__(self, assignments: Sequence[Assignment], node: str) -> None:
        self._node = node
        self._by_key: dict[str, set[Assignment]] = {}
        for assignment in assignments:
            for text in assignment.addresses:
                found = key(text)
                if found and (self.here(assignment) or not found.startswith(LOOPBACK)):
                    self._by_key.setdefault(found, set()).add(assignment)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def claimants(self, key: str) -> set[Assignment]:
        """All who have the address."""
        return self._by_key.get(key, set())

    def meant(self, key: str) -> Assignment | None:
        """Whom this host reaches there: every container host may have a 172.17.0.2, and this host reaches its own."""
        candidates = self.claimants(key)
        meant = {a for a in candidates if self.here(a)} or candidates
        return next(iter(meant)) if len(meant) == 1 else None

    def reached(self, assignment: Assignment, networks: Sequence[Network]) -> str:
        """Where balancers of any host reach it: its first address in `networks`, or, when there are none, the first beyond loopback.

        A loopback address is the last resort, and one that others have too is none. "" when nothing is left.
        """
        keys = [found for text in assignment.addresses if self.claimants(found := key(text)) == {assignment}]
        if networks:
            hosts = {found: ipaddress.ip_address(found.rpartition(":")[0]) for found in keys}
            keys = [found for found in keys if any(hosts[found] in network for network in networks)]
        return min(keys, key=lambda found: found.startswith(LOOPBACK), default="")

    def several(self, key: str) -> str:
        """Names those who have one address and cannot be told apart by it."""
        names = sorted(a.instance for a in self.claimants(key))
        return f"{key} is the address of {', '.join(names[:2])}" + (" and others" if len(names) > 2 else "")

    def here(self, assignment: Assignment) -> bool:
        """Whether the instance is on this host."""
        return assignment.instance.partition("/")[0] == self._node
