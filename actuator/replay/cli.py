"""`trimtab replay`: what each policy would have done to the users in an incident of the past."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trimtab import Exit, TrimtabError
from trimtab.actuator.fleetsim.scenario import BALANCERS, BALANCERS_MAX, Balancers
from trimtab.actuator.policy import POLICIES
from trimtab.collector import options
from trimtab.collector.offline import asking, state_option

if TYPE_CHECKING:
    from trimtab.actuator.replay.run import Deciders, Result
    from trimtab.actuator.replay.scene import Scene

SEEDS_MAX = 30


@click.command()
@click.argument("incident")
@click.option(
    "--policy", "policies", multiple=True, type=click.Choice(sorted(POLICIES)), help="Only this one; may be repeated."
)
@click.option(
    "--by-hand",
    type=options.Duration(),
    help="How long after the onset a person drains it.  [default: when it was told]",
)
@click.option(
    "--balancer", type=click.Choice(BALANCERS), default="random2", show_default=True, help="How requests are balanced."
)
@click.option(
    "--balancers",
    type=click.IntRange(1, BALANCERS_MAX),
    default=1,
    show_default=True,
    metavar="N",
    help="How many do so.",
)
@click.option(
    "--seeds", type=click.IntRange(1, SEEDS_MAX), default=5, show_default=True, metavar="N", help="Runs of each."
)
@click.option("--model", default="", help="Which, where the incident is about several.")
@options.collector
@state_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def replay(
    settings: Any,
    *,
    incident: str,
    policies: tuple[str, ...],
    by_hand: float | None,
    balancer: str,
    balancers: int,
    seeds: int,
    model: str,
    collector: str | None,
    state: Path | None,
    as_json: bool,
) -> None:
    """Play INCIDENT again in a simulated fleet, under each policy: how many users would it have hit?

    How to read it, and what it assumes: docs/replay.md.
    """
    with _installed():
        from trimtab.actuator.replay import show  # noqa: PLC0415 - `--help` needs no numba
        from trimtab.actuator.replay.play import deciders  # noqa: PLC0415
        from trimtab.actuator.replay.record import read  # noqa: PLC0415
        from trimtab.actuator.replay.scene import scene  # noqa: PLC0415
    with asking(settings, collector, state) as ask:
        found = scene(read(ask, incident, model))
    names = list(policies) or sorted(POLICIES)
    makers = deciders(found, names, settings.actuator.guard, by_hand)
    result = _run(found, makers, Balancers(balancer, balancers), seeds)
    if as_json:
        click.echo(json.dumps(show.as_object(found, result, balancer, balancers, seeds), indent=2, allow_nan=False))
    else:
        Console().print(show.page(found, result, f"{balancers} × {balancer}", seeds))


def _run(scene: Scene, makers: Deciders, balancers: Balancers, seeds: int) -> Result:
    from trimtab.actuator.replay.run import compare  # noqa: PLC0415 - needs numba

    parts = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*parts, console=console, transient=True, disable=not console.is_terminal) as progress:
        # The first second of the first run waits for the compiler, where nothing is in its cache.
        task = progress.add_task("compiling the simulator, once", total=seeds * len(makers) * scene.seconds)
        doing = f"{len(makers)} policies, {seeds} seeds"
        return compare(scene, makers, balancers, seeds, lambda: progress.update(task, advance=1, description=doing))


@contextmanager
def _installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("trimtab"):
            raise
        message = f"`trimtab replay` needs {error.name}: pip install 'trimtab[collector]'"
        raise TrimtabError(message, Exit.SETTINGS) from error
