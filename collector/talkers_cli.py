"""`trimtab talkers`: who sends requests, how many, and how sure that is."""

from __future__ import annotations

import math
from typing import Any

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

COLUMNS = [
    Column("remote", "VARCHAR"),
    *output.estimate("requests"),
    Column("share", "DOUBLE"),
    *output.estimate("errors"),
]


@click.command()
@options.instance
@options.model
@options.since
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Most remotes to show.")
@options.collector
@output.options
@click.pass_obj
def talkers(
    settings: ClientSettings,
    *,
    instance: str,
    model: str,
    since: float,
    limit: int,
    collector: str | None,
    form: Form,
) -> None:
    """Show which remote addresses send the most requests to an instance, to a model, or to all."""
    options.not_both(instance, model)
    with stub(settings, collector) as query:
        request = pb.TalkersRequest(instance=instance, model=model, since_seconds=since, limit=limit)
        reply = query.Talkers(request, timeout=DEADLINE_SECONDS)
    if not form.for_people:
        found = as_object(reply)
        output.write(form, COLUMNS, found["talkers"], document=found)
    elif reply.requests:
        Console().print(summary(reply), talkers_table(reply), sep="\n")
    else:
        whom = instance or (f"instances of {model}" if model else "any instance")
        message = f"no requests to {printable(whom)} are known in that time; `trimtab nodes` lists the instances"
        raise TrimtabError(message, Exit.NO)


def as_object(reply: pb.TalkersReply) -> dict[str, Any]:
    """JSON; null for what is unknown."""
    return {
        "instances": list(reply.instances),
        "requests": reply.requests,
        "errors": reply.errors,
        "remotes": _bounds(reply.remotes),
        "talkers": [
            {
                "remote": talker.remote,
                "requests": _bounds(talker.requests),
                "share": talker.requests.value / reply.requests,
                "errors": _bounds(talker.errors),
            }
            for talker in reply.talkers
        ],
    }


def _bounds(estimate: pb.Estimate) -> dict[str, float | None]:
    value = None if math.isnan(estimate.value) else estimate.value
    return {"value": value, "low": estimate.low, "high": estimate.high}


def summary(reply: pb.TalkersReply) -> Text:
    """One line: all together."""
    of = f"{len(reply.instances)} instances" if len(reply.instances) > 1 else printable(reply.instances[0])
    return Text(f"{reply.requests:,} requests to {of}, {reply.errors:,} errors, from {_shown(reply.remotes)} remotes")


def talkers_table(reply: pb.TalkersReply) -> Table:
    """One row a remote."""
    table = Table("remote", header_style="bold", box=None, pad_edge=False)
    for heading in ("requests", "share", "errors"):
        table.add_column(heading, justify="right")
    for talker in reply.talkers:
        share = f"{talker.requests.value / reply.requests:.1%}"
        table.add_row(Text(printable(talker.remote)), _shown(talker.requests), share, _shown(talker.errors))
    return table


def _shown(estimate: pb.Estimate) -> str:
    """The number, and what it is between unless it is exact."""
    # HyperLogLog is off by a few millionths even where it has counted each.
    low, high = round(estimate.low), round(estimate.high)
    value = "–" if math.isnan(estimate.value) else f"{round(estimate.value):,}"
    return value if low == high else f"{value} ({low:,}–{high:,})"
