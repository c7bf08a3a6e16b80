"""`trimtab nodes`: whether trimtab sees everything."""

from __future__ import annotations

import click
from rich.console import Console

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options, output, trouble
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub
from trimtab.collector.instance_tables import WIDE_COLUMNS, instances_table, worst_first
from trimtab.collector.node_tables import as_object, nodes_table, refusals
from trimtab.collector.output import Column, Form

COLUMNS = [
    Column("name", "VARCHAR"),
    Column("state", "VARCHAR"),
    Column("trouble", "VARCHAR[]"),
    Column("last_window", "TIMESTAMP"),
    Column("age_seconds", "DOUBLE"),
    *(Column(name, "BIGINT") for name in ("instance_count", "gpus", "windows", "duplicates", "lost", "refused")),
    Column("last_refusal", "VARCHAR"),
    Column("clock_error_seconds", "DOUBLE"),
    Column("agent_version", "VARCHAR"),
]


@click.command()
@click.option("--all", "everything", is_flag=True, help="Leave nothing out, however many there are.")
@options.collector
@output.options
@click.pass_obj
def nodes(settings: ClientSettings, *, everything: bool, collector: str | None, form: Form) -> None:
    """Show the nodes, those in trouble first, and what runs on them. Of many, only those in trouble."""
    with stub(settings, collector) as query:
        reply = query.Nodes(pb.NodesRequest(), timeout=DEADLINE_SECONDS)
    if not form.for_people:
        output.write(form, COLUMNS, (as_object(node, reply.now_unix_ns) for node in reply.nodes))
    elif not reply.nodes:
        click.echo("no agent has connected yet: start `trimtab agent` on the nodes", err=True)
    else:
        show(Console(), reply, everything)


def show(console: Console, reply: pb.NodesReply, everything: bool) -> None:
    """The table for people: how all are, then as many rows as fit a screen, or `everything`."""
    ordered = trouble.worst_first(reply)
    shown = ordered
    if not everything and len(ordered) > options.SHOWN_MAX:
        shown = [node for node in ordered if trouble.troubles(node, reply.now_unix_ns)][: options.SHOWN_MAX]
    console.print(trouble.summary(reply), highlight=False)
    if shown:
        console.print("", nodes_table(shown, reply.now_unix_ns, console.width), *refusals(shown), sep="\n")
    if len(shown) < len(ordered):
        troubled = sum(bool(trouble.troubles(node, reply.now_unix_ns)) for node in ordered)
        console.print("", _rest(len(shown), troubled, len(ordered)), sep="\n", highlight=False)
    # The node does not say where its instances listen, nor what with: `trimtab instances` does.
    instances = worst_first(
        [
            pb.Instance(id=one.id, node=one.node, model=one.model, current=True, state=one)
            for node in shown
            for one in node.instances
        ]
    )
    if not everything and len(instances) > options.SHOWN_MAX:
        instances = [one for one in instances if one.state.incident][: options.SHOWN_MAX]
    if instances:
        console.print("", instances_table(instances, min(console.width, WIDE_COLUMNS - 1)), sep="\n")


def _rest(shown: int, troubled: int, total: int) -> str:
    """What was left out."""
    left = [f"{troubled - shown:,} more in trouble"] if troubled > shown else []
    left += [f"{total - troubled:,} that are well"] if total > troubled else []
    return f"not shown: {' and '.join(left)}; --all shows every node"
