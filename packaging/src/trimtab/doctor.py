"""`trimtab doctor`: what this host allows, what trimtab loses without it, and how to get it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from trimtab import Check, Exit, TrimtabError
from trimtab.actuator import doctor as actuator
from trimtab.agent import doctor as agent
from trimtab.agent.settings import state_dir
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.client import DEADLINE_SECONDS, stub
from trimtab.settings import Settings

_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]–[/]"}


@click.command()
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), help="State directory.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def doctor(settings: Settings, state: Path | None, as_json: bool) -> int:
    """Tell what this host allows, and how to get what is missing. Exit code 1 when something is."""
    checks = {
        "agent": agent.checks(),
        "collector": _collector(settings, state),
        "actuator": actuator.checks(settings.actuator),
    }
    if as_json:
        click.echo(
            json.dumps({part: [dataclasses.asdict(c) for c in found] for part, found in checks.items()}, indent=2)
        )
    else:
        _show(checks)
    return Exit.NO if any(c.ok is False for found in checks.values() for c in found) else Exit.OK


def _collector(settings: Settings, state: Path | None) -> list[Check]:
    try:
        checks = [Check("state directory", True, str(state_dir(state)))]
    except TrimtabError as error:
        checks = [Check("state directory", False, str(error), "give another one with --state")]
    try:
        with stub(settings, None) as query:
            nodes = query.Nodes(pb.NodesRequest(), timeout=DEADLINE_SECONDS).nodes
        checks.append(Check("collector", True, f"answers on {settings.actuator.collector}; {len(nodes)} nodes"))
    except TrimtabError as error:
        checks.append(Check("collector", None, str(error)))
    return checks


def _show(checks: dict[str, list[Check]]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("", "what", "found"):
        table.add_column(column, no_wrap=column == "what")
    for part, found in checks.items():
        table.add_row("", f"[bold]{part}[/]", "")
        for check in found:
            remedy = f"\n[yellow]{check.remedy}[/]" if check.remedy else ""
            table.add_row(_MARKS[check.ok], check.name, check.detail + remedy)
    Console().print(table)
