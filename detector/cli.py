"""`trimtab incidents`: what is wrong, since when, and why."""

from __future__ import annotations

import json
from collections.abc import Callable

import click
from rich.console import Console

from trimtab.agent.clock import SystemClock
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub
from trimtab.detector import impact, remark_cli, show

_collector = click.option(
    "--collector", metavar="HOST:PORT", help="Where the collector listens.  [default: the settings']"
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_open_only = click.option("--open", "open_only", is_flag=True, help="Only those that are open.")
_limit = click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=100,
    show_default=True,
    help="Show at most this many, newest first.",
)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    return _collector(_json(command))


@click.group(invoke_without_command=True)
@_options
@_open_only
@_limit
@click.pass_context
def incidents(ctx: click.Context, collector: str | None, as_json: bool, open_only: bool, limit: int) -> None:
    """Show incidents: what is degraded, since when, and why."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_, collector=collector, as_json=as_json, open_only=open_only, limit=limit)
    elif open_only or limit != 100:
        raise click.UsageError("--open and --limit belong to `trimtab incidents list`")
    else:
        # What stands before the subcommand holds for it too.
        ctx.default_map = {ctx.invoked_subcommand: {"collector": collector, "as_json": as_json}}


@incidents.command("list")
@_options
@_open_only
@_limit
@click.pass_obj
def list_(settings: ClientSettings, collector: str | None, as_json: bool, open_only: bool, limit: int) -> None:
    """List incidents, newest first."""
    with stub(settings, collector) as query:
        request = pb.IncidentsRequest(open_only=open_only, limit=limit)
        found = query.Incidents(request, timeout=DEADLINE_SECONDS).incidents
    if as_json:
        click.echo(json.dumps([show.as_object(incident) for incident in found], indent=2, allow_nan=False))
    elif found:
        Console().print(show.table(found, SystemClock().unix_ns()))
    else:
        click.echo("no incident is open" if open_only else "no incidents", err=True)


@incidents.command("show")
@click.argument("incident_id", metavar="ID")
@_options
@click.pass_obj
def show_(settings: ClientSettings, incident_id: str, collector: str | None, as_json: bool) -> None:
    """Show one incident: how bad it is, its cause with evidence and remedy, and what was done."""
    with stub(settings, collector) as query:
        reply = query.IncidentReport(pb.IncidentReportRequest(id=incident_id), timeout=DEADLINE_SECONDS)
    if as_json:
        found = show.as_object(reply.incident) | impact.as_objects(reply)
        click.echo(json.dumps(found, indent=2, allow_nan=False))
    else:
        Console().print(show.panel(reply, SystemClock().unix_ns()))


@incidents.command()
@_options
@click.pass_obj
def watch(settings: ClientSettings, collector: str | None, as_json: bool) -> None:
    """Print the open incidents, then every change, until interrupted."""
    clock, console = SystemClock(), Console()
    with stub(settings, collector) as query:
        for incident in query.WatchIncidents(pb.WatchIncidentsRequest()):
            if as_json:
                click.echo(json.dumps(show.as_object(incident), allow_nan=False))
            else:
                console.print(show.line(incident, clock.unix_ns()), soft_wrap=True)


for command in remark_cli.COMMANDS:
    incidents.add_command(command)
