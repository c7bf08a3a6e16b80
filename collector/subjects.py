"""Which subjects there are, and the number by which the store knows each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Malformed
from trimtab.collector.series import KINDS
from trimtab.collector.store import Connection, insert

SUBJECTS_MAX = 1 << 18
"""Most subjects that the store knows at once; retention forgets those that are gone."""
OF_NODE_MAX = 1 << 14
"""Most of one node."""
LAYOUTS_MAX = 1 << 14
_READ = "SELECT kind, id, subject, node FROM subjects"
_NONE_CURRENT = "UPDATE subjects SET current = false WHERE node IN (SELECT node FROM incoming)"
_UPDATES = (
    "DELETE FROM subjects USING incoming WHERE subjects.subject = incoming.subject",
    """INSERT INTO subjects BY NAME
    SELECT * REPLACE (labels::VARCHAR::JSON::MAP(VARCHAR, VARCHAR) AS labels) FROM incoming""",
)


@dataclass(frozen=True, slots=True)
class TableLayout:
    """One table of a schema."""

    kind: str
    names: tuple[str, ...]
    """Of its series."""
    subjects: NDArray[np.int32]
    """Their numbers."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A schema, as far as the columns of its windows need it."""

    hash: bytes
    tables: tuple[TableLayout, ...]


class Subjects:
    """Owned by the writer. What it met is in the store once `commit` is called."""

    def __init__(self, connection: Connection) -> None:
        self._numbers: dict[tuple[str, str], int] = {}
        self._of_node: dict[str, int] = {}
        self._layouts: dict[str, Layout] = {}
        self._naming: dict[str, list[tuple[Layout, pb.Schema]]] = {}
        self._strays: dict[tuple[str, str], str] = {}
        self._next = 1
        for kind, id_, number, node in connection.execute(_READ).fetchall():
            self._numbers[kind, id_] = number
            self._of_node[node] = self._of_node.get(node, 0) + 1
            self._next = max(self._next, number + 1)

    def __len__(self) -> int:
        return len(self._numbers)

    def layout(self, node: str, schema: pb.Schema) -> Layout:
        """That of a checked schema of this node. Raises Malformed where there is no more room for its subjects."""
        naming = self._naming.get(node, [])
        newest = naming[-1][0] if naming else self._layouts.get(node)
        if newest is not None and newest.hash == schema.hash:
            return newest
        layout = self._name(node, schema)
        self._naming.setdefault(node, []).append((layout, schema))
        return layout

    def number(self, node: str, kind: str, id_: str) -> int:
        """That of a subject which its node's schema need not name any more. Raises Malformed where there is no more room."""
        if (kind, id_) not in self._numbers:
            self._admit(node, [(kind, id_)])
            self._strays[kind, id_] = node
        return self._numbers[kind, id_]

    @property
    def has_news(self) -> bool:
        """Whether something must be written before rows that name it are."""
        return bool(self._naming or self._strays)

    def write(self, connection: Connection) -> None:
        """What was met since, into the open transaction."""
        if self._naming or self._strays:
            columns = self._rows()
            nodes = {"node": [*self._naming]}
            insert(connection, _NONE_CURRENT, nodes)
            if columns:
                for statement in _UPDATES:
                    insert(connection, statement, columns)

    def commit(self) -> None:
        """The transaction is done."""
        if len(self._layouts) + len(self._naming) > LAYOUTS_MAX:
            self._layouts.clear()
        self._layouts.update({node: named[-1][0] for node, named in self._naming.items()})
        self._naming.clear()
        self._strays.clear()

    def forget(self, numbers: Iterable[int]) -> None:
        """These are in the store no more."""
        gone = set(numbers)
        self._numbers = {key: number for key, number in self._numbers.items() if number not in gone}
        self._of_node = {}
        for _, id_ in self._numbers:
            node = id_.partition("/")[0]
            self._of_node[node] = self._of_node.get(node, 0) + 1
        self._layouts.clear()

    def _name(self, node: str, schema: pb.Schema) -> Layout:
        self._admit(node, [(KINDS[table.kind], subject.id) for table in schema.tables for subject in table.subjects])
        return Layout(schema.hash, tuple(self._table(table) for table in schema.tables))

    def _admit(self, node: str, wanted: Sequence[tuple[str, str]]) -> None:
        fresh = [key for key in wanted if key not in self._numbers]
        if self._of_node.get(node, 0) + len(fresh) > OF_NODE_MAX:
            raise Malformed(f"schema.tables: {node} has had {OF_NODE_MAX} subjects; retention forgets the old ones")
        if len(self._numbers) + len(fresh) > SUBJECTS_MAX:
            raise Malformed(f"schema.tables: the store knows {SUBJECTS_MAX} subjects; retention forgets the old ones")
        for key in fresh:
            self._numbers[key] = self._next
            self._next += 1
        self._of_node[node] = self._of_node.get(node, 0) + len(fresh)

    def _table(self, table: pb.Table) -> TableLayout:
        kind = KINDS[table.kind]
        numbers = np.asarray([self._numbers[kind, subject.id] for subject in table.subjects], dtype=np.int32)
        return TableLayout(kind, tuple(series.name for series in table.series), numbers)

    def _rows(self) -> dict[str, list[object]]:
        """Of `subjects`; nothing for none. Of several schemas of a node within the transaction the last one says what is current."""
        rows: dict[int, tuple[object, ...]] = {}
        for (kind, id_), node in self._strays.items():
            rows[self._numbers[kind, id_]] = kind, id_, node, "{}", False
        for node, named in self._naming.items():
            for position, (layout, schema) in enumerate(named, start=1):
                for of, table in zip(layout.tables, schema.tables, strict=True):
                    for number, subject in zip(of.subjects.tolist(), table.subjects, strict=True):
                        labels = json.dumps(dict(subject.labels), sort_keys=True)
                        rows[number] = of.kind, subject.id, node, labels, position == len(named)
        if not rows:
            return {}
        columns = [list(column) for column in zip(*rows.values(), strict=True)]
        return {"subject": list(rows), **dict(zip(("kind", "id", "node", "labels", "current"), columns, strict=True))}
