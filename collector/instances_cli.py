"""`trimtab instances`: how every serving instance is doing."""

from __future__ import annotations

import click
from rich.console import Console

from trimtab import Exit, TrimtabError
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector import options, output
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub
from trimtab.collector.instance_tables import COLUMNS, as_object, instances_table, state_of, worst_first
from trimtab.collector.output import Form
from trimtab.collector.trouble import counted


@click.command()
@click.option("--node", default="", help="Those of this node.")
@click.option("--model", default="", help="Those that serve this model.")
@click.option("--all", "everything", is_flag=True, help="Leave nothing out, however many there are; the gone ones too.")
@options.collector
@output.options
@click.pass_obj
def instances(
    settings: ClientSettings, *, node: str, model: str, everything: bool, collector: str | None, form: Form
) -> None:
    """Show the serving instances and how they do now, the worst first."""
    request = pb.InstancesRequest(node=node, model=model, gone=everything)
    with stub(settings, collector) as query:
        found = [one for reply in query.Instances(request, timeout=DEADLINE_SECONDS) for one in reply.instances]
    if not form.for_people:
        output.write(form, COLUMNS, map(as_object, found))
        return
    if not found:
        raise TrimtabError("there is no such instance; --all also shows those that are gone", Exit.NO)
    console = Console()
    shown = worst_first(found)
    if not everything:
        shown = shown[: options.SHOWN_MAX]
    console.print(_summary(found), "", instances_table(shown, console.width), sep="\n", highlight=False)
    if len(shown) < len(found):
        console.print("", f"not shown: {len(found) - len(shown):,} that score lower; --all shows every one", sep="\n")


def _summary(found: list[pb.Instance]) -> str:
    """One line: all of them together."""
    gone = sum(not one.current for one in found)
    named = sum(bool(state_of(one).incident) for one in found)
    rates = [state_of(one).requests_per_second for one in found if state_of(one).requests_per_second >= 0]
    models = counted(len({one.model for one in found if one.model}), "model")
    nodes = counted(len({one.node for one in found}), "node")
    parts = [f"{counted(len(found), 'instance')} of {models} on {nodes}"]
    parts += [f"{gone:,} gone"] if gone else []
    parts += [f"{sum(rates):,.1f} requests/s"] if rates else []
    parts += [f"{named:,} with an incident"] if named else []
    return "; ".join(parts)
