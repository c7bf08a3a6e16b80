"""Which row of the arrays stands for which instance, and who is whose peer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray


class Rows:
    """Row i is the same instance from tick to tick; rows of instances that are gone are used again."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        """Empty for a row that is free."""
        self.models: list[str] = []
        self.nodes: list[str] = []
        self.groups: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """int64 [rows]: equal for instances that serve the same model; one that serves none has no peers."""
        self.node_groups: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        """int64 [rows]: equal for instances on one node."""
        self.row: dict[str, int] = {}
        """In the order of the names."""
        self._known: dict[str, str] = {}
        self._places: dict[str, tuple[str, ...]] = {}
        self._members: dict[str, list[int]] = {}
        self.of_places: dict[str, list[int]] = {}
        """The rows of each place."""

    def update(
        self, instances: Mapping[str, str], places: Mapping[str, tuple[str, ...]] | None = None
    ) -> NDArray[np.int64]:
        """These are the instances and their models, and what each node shares with others.

        int64 [k]: the known rows that now stand for something else.
        """
        known, places = self._known, places or {}
        if known == instances and self._places == places:
            return np.empty(0, dtype=np.int64)
        self._places = dict(places)
        changed = [self.row[i] for i, model in known.items() if instances.get(i) != model]
        for instance in known.keys() - instances.keys():
            self._put(self.row.pop(instance), "", "")
        free = [row for row, instance in enumerate(self.ids) if not instance]
        for instance, model in instances.items():
            if instance not in self.row:
                if not free:
                    free.append(len(self.ids))
                    for column in (self.ids, self.models, self.nodes):
                        column.append("")
                self.row[instance] = free.pop()
            self._put(self.row[instance], instance, model)
        self.row, self._known = dict(sorted(self.row.items())), dict(instances)
        self.groups, self.node_groups = _numbers(self.models), _numbers(self.nodes)
        self._members, self.of_places = {}, {}
        for row, (node, model) in enumerate(zip(self.nodes, self.models, strict=True)):
            self._members.setdefault(node, []).append(row)
            self._members.setdefault(f"model {model}", []).append(row)
            for place in self.places(row):
                self.of_places.setdefault(place, []).append(row)
        return np.asarray(changed, dtype=np.int64)

    def peers(self, instance: str) -> list[str]:
        """The other instances that serve the same model."""
        row = self.row.get(instance)
        if row is None or not self.models[row]:
            return []
        return [self.ids[r] for r in np.flatnonzero(self.groups == self.groups[row]).tolist() if r != row]

    def members(self, subject: str) -> list[int]:
        """The rows of an instance, of "model NAME", of a node, or of a place."""
        if subject in self.row:
            return [self.row[subject]]
        return self._members.get(subject) or self.of_places.get(subject, [])

    def places(self, row: int) -> tuple[str, ...]:
        """What its node shares with others: "rack NAME", "switch NAME"."""
        return self._places.get(self.nodes[row], ())

    def _put(self, row: int, instance: str, model: str) -> None:
        self.ids[row], self.models[row], self.nodes[row] = instance, model, instance.partition("/")[0]


def _numbers(names: list[str]) -> NDArray[np.int64]:
    """int64 [names]: equal for equal names; an empty name equals no other."""
    numbers: dict[str, int] = {}
    keys = [name or f"\0{row}" for row, name in enumerate(names)]
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
