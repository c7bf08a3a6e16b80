"""Which instances are in which cluster, and their shares: a cluster is a model's name, its members all who serve it.

A balancer sends nothing to who is not a member, so an instance that trimtab merely lost sight of stays one for a while.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from trimtab.actuator.snapshot import Assignment, Snapshot
from trimtab.actuator.targets.addresses import Addresses, Network, key
from trimtab.agent.clock import Clock

KEEP_SECONDS = 300.0
"""How long an instance that is not heard of stays, at its neutral weight. The last ones of a cluster stay for good."""
CLUSTERS_MAX = 1024
MEMBERS_MAX = 20_000
"""Of one cluster, those that are kept included."""
_FILE_BYTES_MAX = 64 << 20

Clusters = dict[str, dict[str, "Member"]]


@dataclass(frozen=True, slots=True)
class Member:
    address: str
    """"host:port", as `addresses.key` has it."""
    share: float = 1.0


class Members:
    """Follows snapshots; what it knows outlives the process in a file, without the shares."""

    def __init__(self, path: Path | None, node: str, networks: Iterable[Network], clock: Clock) -> None:
        self._path, self._node, self._networks, self._clock = path, node, tuple(networks), clock
        self.clusters: Clusters = _read(path) if path else {}
        self.unreachable: list[str] = []
        """Instances without an address that balancers reach."""
        self.surplus = 0
        """Clusters beyond CLUSTERS_MAX, which are not served."""
        self._gone: dict[tuple[str, str], float] = {}
        self._last: tuple[Assignment, ...] | None = None
        self._unwritten = False

    def update(self, snapshot: Snapshot) -> None:
        """Raises OSError when the file cannot be written; the members are up to date nevertheless."""
        if snapshot.assignments == self._last and not self._gone and not self._unwritten:
            return
        self._last = snapshot.assignments
        fresh = self._fresh(snapshot)
        self._keep(fresh, {a.instance for a in snapshot.assignments if a.model})
        addresses = _addresses(fresh)
        self._unwritten |= addresses != _addresses(self.clusters)
        self.clusters = fresh
        if self._path and self._unwritten:
            _write(self._path, addresses)
        self._unwritten = False

    def _fresh(self, snapshot: Snapshot) -> Clusters:
        addresses = Addresses(snapshot.assignments, self._node)
        fresh: Clusters = {}
        self.unreachable = []
        for assignment in snapshot.assignments:
            address = addresses.reached(assignment, self._networks)
            if not address:
                self.unreachable.append(assignment.instance)
                continue
            for name in _clusters(assignment.model):
                fresh.setdefault(name, {})[assignment.instance] = Member(address, assignment.weight)
        self.surplus = max(0, len(fresh) - CLUSTERS_MAX)
        return {name: fresh[name] for name in sorted(fresh)[:CLUSTERS_MAX]}

    def _keep(self, fresh: Clusters, placed: set[str]) -> None:
        """Add to `fresh` who was a member before. `placed` are those whose models are known: they are where they say."""
        now, gone = self._clock.monotonic(), {}
        for name, before in self.clusters.items():
            group = fresh.get(name)
            if group is None:
                if len(fresh) < CLUSTERS_MAX:
                    fresh[name] = {instance: replace(member, share=1.0) for instance, member in before.items()}
                continue
            taken = {member.address for member in group.values()}
            for instance, member in before.items():
                if instance in group or instance in placed or member.address in taken or len(group) >= MEMBERS_MAX:
                    continue
                since = self._gone.get((name, instance), now)
                if now - since <= KEEP_SECONDS:
                    gone[name, instance] = since
                    group[instance] = replace(member, share=1.0)
        self._gone = gone


def neutral(clusters: Clusters) -> Clusters:
    """The same members, each at its neutral weight."""
    return {name: {i: replace(m, share=1.0) for i, m in group.items()} for name, group in clusters.items()}


def _clusters(model: str) -> set[str]:
    """An instance that serves several models is in the cluster of each, and in that of just these."""
    return {name for name in (model, *model.split(",")) if name}


def _addresses(clusters: Clusters) -> dict[str, dict[str, str]]:
    return {name: {i: m.address for i, m in sorted(group.items())} for name, group in sorted(clusters.items())}


def _read(path: Path) -> Clusters:
    """What is there and makes sense: nobody's traffic is to depend on a file that is damaged."""
    try:
        with path.open("rb") as file:
            known = msgspec.json.decode(file.read(_FILE_BYTES_MAX), type=dict[str, dict[str, str]])
    except (OSError, msgspec.DecodeError):
        return {}
    out = {
        name: {i: Member(found) for i, text in group.items() if (found := key(text))} for name, group in known.items()
    }
    return {name: group for name, group in out.items() if group}


def _write(path: Path, known: dict[str, dict[str, str]]) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(msgspec.json.encode(known))
    os.replace(fresh, path)  # noqa: PTH105 - atomic, and what it says
