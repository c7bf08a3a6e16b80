"""`make bench-routing-real`: trimtab's routing beside what balancers do by themselves, on a real fleet (docs/routing-measured.md)."""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from tests.bench.routing_real import order, report
from tests.bench.routing_real.contestants import LEASTCONN, RANDOM, Contestant, contestants
from tests.bench.routing_real.envoy import binary
from tests.bench.routing_real.order import Visit
from tests.bench.routing_real.record import Plan, Record
from tests.bench.routing_real.run import Run, warm
from tests.bench.routing_real.scenarios import INSTANCES, SCENARIOS
from tests.e2e import lines, preflight
from tests.e2e.fleet import fleet
from tests.e2e.interruption import Told, attentive, deaf
from tests.e2e.view import plain_console
from trimtab import Exit, TrimtabError
from trimtab.actuator.settings import ActuatorSettings

_QUICK = Plan(known_seconds_max=4.0, well_seconds=6.0, notice_seconds=9.0, settled_seconds=10.0)
_QUICK_SCENARIOS = ("slow", "errors")
_TABLE_WIDTH = 200


def make(
    console: Console, visits: Sequence[Visit], chosen: Mapping[str, Contestant], plan: Plan, file: Path, seed: int
) -> None:
    """Make the runs; each is in `file` when it is over. Raises TrimtabError."""
    number, count = 0, sum(len(visit.runs) for visit in visits)
    for visit in visits:
        with attentive(), ExitStack() as stack:
            try:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-routing-")))
                console.print(f"starting {INSTANCES} TorchServe instances with {visit.model} …", highlight=False)
                instances = stack.enter_context(fleet(directory / "fleet", INSTANCES, model=visit.model))
                warm(instances)
                for scenario, who in visit.runs:
                    number += 1
                    own = directory / str(number)
                    own.mkdir()
                    began = time.monotonic()
                    one = Run(own, instances, SCENARIOS[scenario], chosen[who], plan).make(
                        scenario, who, visit.pair, seed
                    )
                    lines.append(file, one)
                    told = f"{report.progress(one)} ({time.monotonic() - began:.0f} s)"
                    console.print(
                        f"{number}/{count} pair {visit.pair + 1} {scenario} {who}: {told}",
                        highlight=False,
                        soft_wrap=True,
                    )
            finally:
                deaf()


def _scenarios(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    return _chosen(value, list(SCENARIOS), "scenario") if value else []


def _chosen(value: str, known: Sequence[str], what: str) -> list[str]:
    names = value.split(",")
    for name in names:
        if name not in known:
            raise click.BadParameter(f"{name!r} is no {what}; there are: {', '.join(known)}")
    return [name for name in known if name in names]


def _field(policies: str, only: str, quick: bool) -> dict[str, Contestant]:
    """Who takes part."""
    named = policies.split(",") if policies else [ActuatorSettings().policy]
    try:
        known = contestants(named)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--policies") from error
    names = _chosen(only, list(known), "contestant") if only else list(known)
    if quick and not only:
        names = [LEASTCONN, f"{named[0]}/{RANDOM}"]
    return {name: known[name] for name in names}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--pairs", type=click.IntRange(1), help="Runs of each contestant in each scenario.  [default: 5, quick: 1]"
)
@click.option(
    "--scenarios", callback=_scenarios, default="", help=f"Joined by commas, of {', '.join(SCENARIOS)}.  [default: all]"
)
@click.option("--policies", default="", help="trimtab's, joined by commas.  [default: the actuator's default]")
@click.option("--contestants", "only", default="", help="Who takes part, joined by commas.  [default: all]")
@click.option("--notice-seconds", type=click.FloatRange(6), help="What trimtab has until it counts as settled.")
@click.option("--settled-seconds", type=click.FloatRange(5), help="What counts beyond that.")
@click.option("--quick", is_flag=True, help="One pair of two scenarios in under three minutes, coarser.")
@click.option(
    "--resume",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where results are kept, a line of JSON a run; runs that it holds are not made again.  [default: a new file here]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order and of the requests.")
@click.option("--markdown", is_flag=True, help="Print the tables as Markdown.")
def main(
    pairs: int | None,
    scenarios: list[str],
    policies: str,
    only: str,
    quick: bool,
    file: Path | None,
    seed: int,
    markdown: bool,
    **seconds: float | None,
) -> None:
    """Spread the same requests over a real fleet in several ways, and compare. The last line is one JSON object."""
    console = plain_console()
    file = file or Path(time.strftime("routing-real-%Y%m%dT%H%M%S.jsonl"))
    field, plan = _field(policies, only, quick), _plan(quick, seconds)
    names = scenarios or (list(_QUICK_SCENARIOS) if quick else list(SCENARIOS))
    if binary() is None and any(one.envoy for one in field.values()):
        console.print("Envoy takes no part: it is not installed (`make bench-routing-real` brings one)")
        field = {name: one for name, one in field.items() if not one.envoy}
    try:
        with attentive():
            made = lines.read(file, Record)
            order.check(made, plan, seed)
            if rest := order.visits(names, field, pairs or (1 if quick else 5), made, seed):
                preflight.check()
                console.print(f"{sum(len(v.runs) for v in rest)} runs, results in {file}", highlight=False)
                make(console, rest, field, plan, file, seed)
            records = [r for r in lines.read(file, Record) if r.scenario in names and r.contestant in field]
    except TrimtabError as error:
        click.echo(f"bench-routing-real: {error}", err=True)
        sys.exit(error.exit_code)
    except Told:
        click.echo(
            f"bench-routing-real: interrupted; everything it started is stopped, go on with --resume {file}", err=True
        )
        sys.exit(Exit.INTERRUPTED)
    _tell(console, records, field, plan, markdown)


def _plan(quick: bool, seconds: Mapping[str, float | None]) -> Plan:
    for name, value in seconds.items():
        if value is not None and not math.isfinite(value):
            raise click.BadParameter(f"{value} is no number of seconds", param_hint=f"--{name.replace('_', '-')}")
    base = _QUICK if quick else Plan()
    return Plan(
        known_seconds_max=base.known_seconds_max,
        well_seconds=base.well_seconds,
        notice_seconds=seconds["notice_seconds"] or base.notice_seconds,
        settled_seconds=seconds["settled_seconds"] or base.settled_seconds,
    )


def _tell(
    console: Console, records: Sequence[Record], field: Mapping[str, Contestant], plan: Plan, markdown: bool
) -> None:
    wide = console if console.is_terminal else Console(width=_TABLE_WIDTH)
    for pairs in report.by_scenario(records).values():
        if markdown:
            click.echo(report.markdown(pairs, field) + "\n")
        else:
            wide.print(report.table(pairs, field))
    parts = f"whole: from when it ails; settled: {plan.notice_seconds:g} s later, for {plan.settled_seconds:g} s"
    click.echo(f"{parts}. Means over the pairs (95 % bootstrap interval); ratios within pairs, their geometric mean.")
    click.echo("The best without trimtab is chosen in hindsight.")
    told: dict[str, Any] = report.summary(records, field)
    click.echo(
        json.dumps(
            told | {"notice_seconds": plan.notice_seconds, "settled_seconds": plan.settled_seconds}, allow_nan=False
        )
    )


if __name__ == "__main__":
    main()
