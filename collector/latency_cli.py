"""`trimtab latency`: how long requests took, and how sure that is."""

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

_QUANTILES = ("p50_seconds", "p95_seconds", "p99_seconds")
COLUMNS = [
    Column("instance", "VARCHAR"),
    *output.estimate("count"),
    Column("mean_seconds", "DOUBLE"),
    *(column for name in _QUANTILES for column in output.estimate(name)),
]


@click.command()
@options.instance
@options.model
@options.since
@click.option("--signal", default="request_latency", show_default=True, help="The distribution to show.")
@options.collector
@output.options
@click.pass_obj
def latency(
    settings: ClientSettings,
    *,
    instance: str,
    model: str,
    since: float,
    signal: str,
    collector: str | None,
    form: Form,
) -> None:
    """Show the latency of an instance, of those of a model, or of all, with the error that sampling leaves."""
    options.not_both(instance, model)
    with stub(settings, collector) as query:
        request = pb.LatencyRequest(instance=instance, model=model, since_seconds=since, signal=signal)
        reply = query.Latency(request, timeout=DEADLINE_SECONDS)
    if not form.for_people:
        output.write(form, COLUMNS, map(as_object, reply.instances))
    elif reply.instances:
        Console().print(latency_table(reply))
    else:
        message = f"no {printable(signal)} is known in that time; `trimtab nodes` lists the instances"
        raise TrimtabError(message, Exit.NO)


def as_object(one: pb.InstanceLatency) -> dict[str, Any]:
    """JSON; null for what is unknown."""
    quantiles = {name: _bounds(getattr(one, name)) for name in _QUANTILES}
    mean = None if math.isnan(one.mean_seconds) else one.mean_seconds
    return {"instance": one.instance, "count": _bounds(one.count), "mean_seconds": mean, **quantiles}


def _bounds(estimate: pb.Estimate) -> dict[str, float | None]:
    parts = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: None if math.isnan(part) else part for name, part in parts.items()}


def latency_table(reply: pb.LatencyReply) -> Table:
    """One row an instance, of two lines so that it fits a terminal of 80 columns: the bounds are below."""
    meaning = f"below each quantile: the bounds it lies within with {reply.confidence:.0%} confidence"
    table = Table("instance", header_style="bold", box=None, pad_edge=False, caption=meaning, caption_justify="left")
    for heading in ("requests", "mean", "p50", "p95", "p99"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in reply.instances:
        quantiles = (f"{_number(q.value)}\n{_bounds_shown(q)}" for q in (getattr(one, name) for name in _QUANTILES))
        table.add_row(Text(printable(one.instance)), _count(one.count), _number(one.mean_seconds), *quantiles)
    return table


def _count(estimate: pb.Estimate) -> str:
    error = round(estimate.high - estimate.value)
    return f"{round(estimate.value):,}" + (f" ± {error:,}" if error else "")


def _bounds_shown(estimate: pb.Estimate) -> str:
    """The unit once where both have the same."""
    low, high = _number(estimate.low), _number(estimate.high)
    return f"{low.removesuffix(high.lstrip('0123456789.,e+-?'))}–{high}"


def _number(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    return f"{seconds:,.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"
