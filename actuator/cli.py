"""`trimtab weights`: the routing decision in force, those before it, and what was set by hand."""

from __future__ import annotations

import json
import math
from itertools import groupby
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from trimtab.actuator import orders_cli
from trimtab.actuator.snapshot import IDLE
from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.client import DEADLINE_SECONDS, stub
from trimtab.collector.node_tables import known, printable
from trimtab.detector.when import clock

SILENT_SECONDS = 30.0
_TARGET = {"": "[green]took it[/]", IDLE: f"[dim]{IDLE}[/]"}
"""What is shown of a target that works."""


@click.group(invoke_without_command=True)
@click.option("--history", type=click.IntRange(1, 1000), metavar="N", help="The last N decisions instead.")
@click.option("--collector", metavar="HOST:PORT", help="Where the collector listens.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def weights(ctx: click.Context, history: int | None, collector: str | None, as_json: bool) -> None:
    """Show the balancer weights in force, and why; or set them by hand."""
    if ctx.invoked_subcommand is not None:
        if history or as_json:
            raise click.UsageError("--history and --json belong to `trimtab weights` alone")
        # What stands before the subcommand holds for it too.
        ctx.default_map = {ctx.invoked_subcommand: {"collector": collector}}
        return
    with stub(ctx.obj, collector) as query:
        reply: pb.DecisionsReply = query.Decisions(pb.DecisionsRequest(limit=history or 1), timeout=DEADLINE_SECONDS)
    if as_json:
        click.echo(json.dumps([_plain(d) for d in reply.decisions], indent=2))
        return
    if not reply.decisions:
        click.echo("no decision yet; is the actuator running?")
    elif history:
        Console().print(_history(reply))
    else:
        _show(Console(), reply.decisions[0], (reply.now_unix_ns - reply.decisions[0].unix_ns) / 1e9)
    if reply.overrides and not history:
        Console().print("\n", _by_hand(reply), sep="")


for command in orders_cli.COMMANDS:
    weights.add_command(command)


def _show(console: Console, decision: pb.Decision, age_seconds: float) -> None:
    reason = f": {decision.reason}" if decision.reason else ""
    origin = f"policy {_safe(decision.policy)}, version {decision.version}, {age_seconds:.0f} s old"
    console.print(f"[bold]{_safe(decision.mode)}[/]{_safe(reason)}  [dim]{origin}[/]")
    if age_seconds > SILENT_SECONDS:
        console.print(
            f"[red]The actuator has been silent for {age_seconds:.0f} s: weights should be neutral by now. Does it run?[/]"
        )
    if not decision.weights:
        console.print("\nno instance is known")
    for model, group in groupby(sorted(decision.weights, key=lambda w: (w.model, w.instance)), key=lambda w: w.model):
        table = Table(title=_safe(model or "no model"), title_justify="left", box=None, pad_edge=False)
        for column in ("instance", "weight", "wished", "reason"):
            table.add_column(column, justify="right" if column in {"weight", "wished"} else "left")
        for w in group:
            colour = "green" if w.weight == 1 else "yellow" if w.weight > 0.5 else "red"
            table.add_row(_safe(w.instance), f"[{colour}]{w.weight:.3f}[/]", _number(w.wished), _safe(w.reason))
        console.print("\n", table, sep="")
    if decision.targets:
        table = Table(title="targets", title_justify="left", box=None, pad_edge=False, show_header=False)
        for name, error in sorted(decision.targets.items()):
            table.add_row(_safe(name), _TARGET.get(error) or f"[red]{_safe(error)}[/]")
        console.print("\n", table, sep="")


def _by_hand(reply: pb.DecisionsReply) -> Table:
    """What people ordered, and whether the newest decision heeds it."""
    table = Table(title="set by hand", title_justify="left", box=None, pad_edge=False)
    for column in ("what", "is", "since", "until", "by", "reason"):
        table.add_column(column)
    heeded = {(one.target, one.since_unix_ns) for one in reply.decisions[0].overrides} if reply.decisions else set()
    for one in reply.overrides:
        until = clock(one.until_unix_ns) if one.until_unix_ns else "`trimtab weights auto`"
        waits = "" if (one.target, one.since_unix_ns) in heeded else "not heeded by any decision yet"
        cells = (one.target or "all instances", _order(one), clock(one.since_unix_ns), until, one.who)
        table.add_row(*map(_safe, cells), _safe("; ".join(filter(None, [one.reason, waits]))))
    return table


def _order(override: pb.Override) -> str:
    if override.kind == pb.Override.KIND_WEIGHT:
        return f"{override.weight:.3f}"
    return "frozen" if override.kind == pb.Override.KIND_FREEZE else "neutral"


def _history(reply: pb.DecisionsReply) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("time", "mode", "version", "not neutral", "reason"):
        table.add_column(column)
    for d in reply.decisions:
        steered = ", ".join(f"{w.instance} {w.weight:.3f}" for w in d.weights if w.weight < 1)
        failing = [f"{name}: {error}" for name, error in d.targets.items() if error not in _TARGET]
        cells = (
            clock(d.unix_ns),
            d.mode,
            str(d.version),
            steered or "–",
            "; ".join(filter(None, [d.reason, *failing])),
        )
        table.add_row(*map(_safe, cells))
    return table


def _plain(decision: pb.Decision) -> dict[str, Any]:
    """The message as JSON has it: times as numbers, unknown as null."""
    numbers: dict[str, Any] = {"unix_ns": decision.unix_ns, "version": decision.version}
    numbers["overrides"] = [
        {"target": one.target, "order": _order(one), "who": one.who, "reason": one.reason}
        | {"since_unix_ns": one.since_unix_ns, "until_unix_ns": one.until_unix_ns or None}
        for one in decision.overrides
    ]
    return known(decision) | numbers


def _safe(text: str) -> str:
    """For a terminal: what the collector sent is no markup, and no control sequence."""
    return escape(printable(text))


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"
