"""`trimtab series`: what signals there are."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options, output
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub
from trimtab.collector.node_tables import printable
from trimtab.collector.output import Column, Form
from trimtab.collector.series import KINDS

COLUMNS = [*(Column(name, "VARCHAR") for name in ("kind", "name", "unit", "form")), Column("subjects", "BIGINT")]


@click.command()
@click.argument("name", required=False, default="")
@click.option("--kind", type=click.Choice(list(KINDS.values())), help="Those of such subjects.")
@options.collector
@output.options
@click.pass_obj
def series(settings: ClientSettings, *, name: str, kind: str | None, collector: str | None, form: Form) -> None:
    """Show the signals whose names begin with NAME, or all, and how many subjects have each now."""
    with stub(settings, collector) as query:
        reply = query.Series(pb.SeriesRequest(kind=kind or "", prefix=name), timeout=DEADLINE_SECONDS)
    if not form.for_people:
        output.write(
            form, COLUMNS, ({column.name: getattr(one, column.name) for column in COLUMNS} for one in reply.series)
        )
    elif not reply.series:
        raise TrimtabError("no agent has sent such a signal; docs/signals.md lists those that there can be", Exit.NO)
    else:
        Console().print(_table(reply))


def _table(reply: pb.SeriesReply) -> Table:
    """One row a signal."""
    meaning = f"subjects: how many had a value in the last {reply.since_seconds:.0f} s"
    table = Table(header_style="bold", box=None, pad_edge=False, caption=meaning, caption_justify="left")
    for heading in ("kind", "name", "unit", "form"):
        table.add_column(heading, overflow="fold")
    table.add_column("subjects", justify="right", no_wrap=True)
    for one in reply.series:
        subjects = Text(f"{one.subjects:,}", style="" if one.subjects else "dim")
        table.add_row(*(Text(printable(text)) for text in (one.kind, one.name, one.unit, one.form)), subjects)
    return table
