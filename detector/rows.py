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
        self._members: dict[str, list[int]] = {}

    def update(self, instances: Mapping[str, str]) -> NDArray[np.int64]:
        """These are the instances and their models; int64 [k]: the known rows that now stand for something else."""
        known = self._known
        if known == instances:
            return np.empty(0, dtype=np.int64)
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
        self._members = {}
        for row, (node, model) in enumerate(zip(self.nodes, self.models, strict=True)):
            self._members.setdefault(node, []).append(row)
            self._members.setdefault(f"model {model}", []).append(row)
        return np.asarray(changed, dtype=np.int64)

    def peers(self, instance: str) -> list[str]:
        """The other instances that serve the same model."""
        row = self.row.get(instance)
        if row is None or not self.models[row]:
            return []
        return [self.ids[r] for r in np.flatnonzero(self.groups == self.groups[row]).tolist() if r != row]

    def members(self, subject: str) -> list[int]:
        """The rows of an instance, of "model NAME", or of a node."""
        if subject in self.row:
            return [self.row[subject]]
        return self._members.get(subject, [])

    def _put(self, row: int, instance: str, model: str) -> None:
        self.ids[row], self.models[row], self.nodes[row] = instance, model, instance.partition("/")[0]


def _numbers(names: list[str]) -> NDArray[np.int64]:
    """int64 [names]: equal for equal names; an empty name equals no other."""
    numbers: dict[str, int] = {}
    keys = [name or f"\0{row}" for row, name in enumerate(names)]
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
