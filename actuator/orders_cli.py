"""`trimtab weights set`, `freeze`, `neutral` and `auto`: a person's hand on the weights, above every policy."""

from __future__ import annotations

from typing import Any

import click

from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.overrides import MODEL
from trimtab.collector import options
from trimtab.collector.client import DEADLINE_SECONDS, ClientSettings, stub, who
from trimtab.collector.node_tables import printable
from trimtab.detector.when import clock

_seconds = click.option(
    "--for",
    "seconds",
    type=options.Duration(),
    default=0.0,
    metavar="DURATION",
    help="How long: 90s, 10m, 2h, 1d.  [default: until `trimtab weights auto`]",
)
_reason = click.option("--reason", default="", help="Why; others see it.")
_model = click.option(
    "--model", default="", metavar="MODEL", help="Only the instances that serve this model.  [default: all]"
)


@click.command("set")
@click.argument("instance")
@click.argument("weight", type=click.FloatRange(0, 1))
@_seconds
@_reason
@options.collector
@click.pass_obj
def set_(
    settings: ClientSettings, instance: str, weight: float, seconds: float, reason: str, collector: str | None
) -> None:
    """Give an instance this share of its neutral weight: 1 is what you configured, 0 is nothing.

    It holds at once, whatever policy and guard say.
    """
    made = _override(
        settings, collector, instance, pb.Override.KIND_WEIGHT, weight=weight, seconds=seconds, reason=reason
    )
    click.echo(f"{printable(instance)} has weight {weight:g} {_until(made)}")


@click.command()
@_model
@_seconds
@_reason
@options.collector
@click.pass_obj
def freeze(settings: ClientSettings, model: str, seconds: float, reason: str, collector: str | None) -> None:
    """Keep the weights as they are now."""
    made = _override(settings, collector, _target(model), pb.Override.KIND_FREEZE, seconds=seconds, reason=reason)
    click.echo(f"the weights of {_whose(model)} stay as they are {_until(made)}")


@click.command()
@_model
@_seconds
@_reason
@options.collector
@click.pass_obj
def neutral(settings: ClientSettings, model: str, seconds: float, reason: str, collector: str | None) -> None:
    """Give all instances the weights that you configured."""
    made = _override(settings, collector, _target(model), pb.Override.KIND_NEUTRAL, seconds=seconds, reason=reason)
    click.echo(f"{_whose(model)} have their neutral weights {_until(made)}")


@click.command()
@click.argument("instance", required=False, default="")
@_model
@options.collector
@click.pass_obj
def auto(settings: ClientSettings, instance: str, model: str, collector: str | None) -> None:
    """Let the policy steer again: an instance, a model, or all. Takes back `set`, `freeze` and `neutral`."""
    options.not_both(instance, model)
    target = instance or _target(model)
    reply = _steer(settings, collector, pb.SteerRequest(who=who(), auto=pb.AutoRequest(target=target)))
    click.echo(f"taken back: {', '.join(printable(one.target) or 'all instances' for one in reply.overrides)}")


COMMANDS = (set_, freeze, neutral, auto)


def _override(
    settings: ClientSettings, collector: str | None, target: str, kind: pb.Override.Kind.ValueType, **more: Any
) -> pb.Override:
    request = pb.OverrideRequest(target=target, kind=kind, **more)
    return _steer(settings, collector, pb.SteerRequest(who=who(), override=request)).overrides[0]


def _steer(settings: ClientSettings, collector: str | None, request: pb.SteerRequest) -> pb.SteerReply:
    with stub(settings, collector) as query:
        reply: pb.SteerReply = query.Steer(request, timeout=DEADLINE_SECONDS)
    return reply


def _target(model: str) -> str:
    return f"{MODEL}{model}" if model else ""


def _whose(model: str) -> str:
    return f"the instances of {printable(model)}" if model else "all instances"


def _until(made: pb.Override) -> str:
    return f"until {clock(made.until_unix_ns)}" if made.until_unix_ns else "until `trimtab weights auto`"
