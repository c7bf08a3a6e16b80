"""`trimtab nodes` and `trimtab query`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import state_dir
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub
from trimtab.collector.node_tables import as_object, instances_table, nodes_table, printable, refusals
from trimtab.collector.settings import CollectorSettings

_QUERY_DEADLINE_SECONDS = 120.0
_collector = click.option(
    "--collector", metavar="HOST:PORT", help="Where the collector listens.  [default: the settings']"
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_collector
@_json
@click.pass_obj
def nodes(settings: ClientSettings, collector: str | None, as_json: bool) -> None:
    """Show every node and what runs on it."""
    with stub(settings, collector) as query:
        reply = query.Nodes(pb.NodesRequest(), timeout=DEADLINE_SECONDS)
    if as_json:
        click.echo(json.dumps([as_object(node, reply.now_unix_ns) for node in reply.nodes], indent=2, allow_nan=False))
    elif not reply.nodes:
        click.echo("no agent has connected yet: start `trimtab agent` on the nodes", err=True)
    else:
        Console().print(nodes_table(reply), *refusals(reply), sep="\n")
        instances = [instance for node in reply.nodes for instance in node.instances]
        if instances:
            Console().print("", instances_table(instances), sep="\n")


@click.command()
@click.argument("sql")
@_collector
@click.option(
    "--state", type=click.Path(path_type=Path, file_okay=False), help="State directory to read when no collector runs."
)
@_json
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.pass_obj
def query(
    settings: ClientSettings, *, sql: str, collector: str | None, state: Path | None, as_json: bool, as_csv: bool
) -> None:
    """Ask the store one SQL question. Tables and views: docs/store.md."""
    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    columns: list[str] = []
    rows: list[list[Any]] = []
    truncated = False
    for chunk in _answer(settings, sql, collector, state):
        columns = columns or _distinct(list(chunk.columns))
        rows += [json.loads(row) for row in chunk.rows]
        truncated = chunk.truncated
    if as_json:
        click.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], ensure_ascii=False, indent=2))
    elif as_csv:
        csv.writer(sys.stdout).writerows([columns, *([_plain(cell, "") for cell in row] for row in rows)])
    else:
        table = Table(*(Column(Text(column)) for column in columns), header_style="bold")
        for row in rows:
            table.add_row(*(Text(_plain(cell, "–"), justify=_side(cell)) for cell in row))
        Console().print(table)
    if truncated:
        click.echo(f"only the first {len(rows)} rows: collector.query_rows_max, or a reply of 64 MiB", err=True)


def _answer(settings: ClientSettings, sql: str, collector: str | None, state: Path | None) -> Iterator[pb.SqlChunk]:
    try:
        with stub(settings, collector) as connected:
            yield from connected.Sql(pb.SqlRequest(sql=sql), timeout=_QUERY_DEADLINE_SECONDS)
            return
    except TrimtabError as error:
        if error.exit_code != Exit.UNREACHABLE:
            raise
        path = _database(state)
        if collector or path is None:
            raise
    click.echo(f"no collector answers; reading {path}", err=True)
    yield from _read_file(path, sql)


def _database(state: Path | None) -> Path | None:
    from trimtab.collector.store import FILE  # noqa: PLC0415 - a client needs no DuckDB until it reads the file itself

    try:
        path = (state or state_dir(None)) / "collector" / FILE
    except TrimtabError:
        return None
    return path if path.exists() else None


def _read_file(path: Path, sql: str) -> Iterator[pb.SqlChunk]:
    from trimtab.collector.sql import QuestionError, ask  # noqa: PLC0415
    from trimtab.collector.store import Corrupt, Store  # noqa: PLC0415

    settings = CollectorSettings()
    try:
        store = Store(path, settings.memory_bytes_max, read_only=True)
    except Corrupt as error:
        raise TrimtabError(str(error), Exit.STATE) from error
    try:
        yield from ask(store, sql, settings.query_seconds_max, settings.query_rows_max)
    except QuestionError as error:
        raise TrimtabError(str(error), Exit.USAGE) from error
    finally:
        store.close()


def _distinct(names: list[str]) -> list[str]:
    """A second column of one name gets a number, so that no value is lost in a JSON object."""
    out: list[str] = []
    for name in names:
        fresh, number = name, 2
        while fresh in out:
            fresh, number = f"{name}_{number}", number + 1
        out.append(fresh)
    return out


def _plain(cell: Any, unknown: str) -> str:
    if cell is None:
        return unknown
    return printable(cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False))


def _side(cell: Any) -> Any:
    return "right" if isinstance(cell, (int, float)) and not isinstance(cell, bool) else "left"
