"""`trimtab query`: one SQL question."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column as Heading
from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options, output
from trimtab.collector.client import ClientSettings
from trimtab.collector.node_tables import printable
from trimtab.collector.offline import QUESTION_SECONDS, answer, answer_sql, state_option
from trimtab.collector.output import Column, Form, Row

if TYPE_CHECKING:
    from trimtab.collector.store import Store


class _Rows:
    """The rows of an answer as they come, and what is known only at the end."""

    def __init__(self, chunks: Iterator[pb.SqlChunk]) -> None:
        first = next(chunks)
        names = _distinct(list(first.columns))
        self.columns = [Column(name, kind) for name, kind in zip(names, first.types, strict=True)]
        self.count = 0
        self.truncated = False
        self._chunks = chain([first], chunks)

    def __iter__(self) -> Iterator[Row]:
        names = [column.name for column in self.columns]
        for chunk in self._chunks:
            for row in chunk.rows:
                self.count += 1
                yield dict(zip(names, json.loads(row), strict=True))
            self.truncated = chunk.truncated


@click.command()
@click.argument("sql")
@options.collector
@state_option
@output.options
@click.pass_obj
def query(settings: ClientSettings, *, sql: str, collector: str | None, state: Path | None, form: Form) -> None:
    """Ask the store one SQL question. Tables and views: docs/store.md."""
    request = pb.SqlRequest(sql=sql)

    def read(store: Store) -> Iterator[pb.SqlChunk]:
        return answer_sql(store, sql)

    rows = _Rows(answer(settings, collector, state, lambda stub: stub.Sql(request, timeout=QUESTION_SECONDS), read))
    if form.for_people:
        Console().print(_table(rows))
    else:
        output.write(form, rows.columns, rows)
    if rows.truncated:
        click.echo(f"only the first {rows.count} rows: collector.query_rows_max, or a reply of 64 MiB", err=True)


def _table(rows: _Rows) -> Table:
    """All rows: a column is as wide as its widest cell."""
    table = Table(*(Heading(Text(printable(column.name))) for column in rows.columns), header_style="bold")
    for row in rows:
        table.add_row(*(Text(printable(output.plain(cell, "–")), justify=_side(cell)) for cell in row.values()))
    return table


def _distinct(names: list[str]) -> list[str]:
    """A second column of one name gets a number, so that no value is lost in a JSON object."""
    out: list[str] = []
    for name in names:
        fresh, number = name, 2
        while fresh in out:
            fresh, number = f"{name}_{number}", number + 1
        out.append(fresh)
    return out


def _side(cell: Any) -> Any:
    return "right" if isinstance(cell, (int, float)) and not isinstance(cell, bool) else "left"
