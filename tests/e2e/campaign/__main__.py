"""`make campaign`: faults of every class against a real fleet, and how well trimtab tells them (docs/campaign.md)."""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import click
from rich.console import Console

from tests.e2e import lines, preflight
from tests.e2e.campaign import record, report
from tests.e2e.campaign.classes import CLASSES, HEALTHY
from tests.e2e.campaign.ground import Ground
from tests.e2e.campaign.run import run
from tests.e2e.interruption import Told, attentive, deaf
from tests.e2e.stage import INSTANCES
from tests.e2e.view import plain_console
from trimtab import Exit, TrimtabError


def missing(names: Sequence[str], runs: int, made: Sequence[record.Record], seed: int) -> list[tuple[str, int]]:
    """The runs that are still to be made: a class and the number of an instance each.

    Round by round, so that what changes in an hour changes for all classes, and each round in an order of its own. A class
    visits the instances in turns. Runs that could not be made are tried again.
    """
    done = Counter(r.fault for r in made if not r.cannot)
    rest = []
    for round_ in range(runs):
        draw = random.Random(f"{seed} {round_}")
        order = draw.sample(list(names), len(names))
        rest += [(name, (names.index(name) + round_) % INSTANCES) for name in order if round_ >= done[name]]
    return rest


def make(console: Console, rest: Sequence[tuple[str, int]], file: Path, seed: int) -> None:
    """Make the runs; each is in `file` when it is over. Raises TrimtabError."""
    with ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trimtab-campaign-")))
            console.print(f"starting {INSTANCES} TorchServe instances, HAProxy, the load generator, the agent …")
            ground = Ground(directory, seed, stack)
            for number, (fault, instance) in enumerate(rest, 1):
                began = time.monotonic()
                one = run(ground, fault, ground.instances[instance])
                lines.append(file, one)
                seconds = time.monotonic() - began
                console.print(f"{number}/{len(rest)} {fault}: {_line(one)} ({seconds:.0f} s)", highlight=False)
        finally:
            deaf()


def _line(one: record.Record) -> str:
    if one.cannot:
        return f"cannot be injected here: {one.cannot}"
    said = [f"{t.subject} {t.mechanism or 'no cause'} {t.confidence:.2f}" for t in (one.told, *one.others) if t]
    after = f" after {one.delay_seconds:.1f} s" if one.delay_seconds is not None else ""
    return f"at {one.instance}, told{after}: {', '.join(said) or 'nothing'}"


def _names(_context: click.Context, _parameter: click.Parameter, value: str) -> list[str]:
    names = value.split(",") if value else list(CLASSES)
    for name in names:
        if name not in CLASSES:
            raise click.BadParameter(f"{name!r} is no fault; there are: {', '.join(CLASSES)}")
    return [name for name in CLASSES if name in names or name == HEALTHY]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Of each class.")
@click.option(
    "--faults",
    "names",
    default="",
    callback=_names,
    help="Classes, joined by commas; healthy runs come in addition.  [default: all]",
)
@click.option(
    "--resume",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where results are kept, a line of JSON a run; runs that it holds are not made again.  [default: a new file here]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order and of the arrivals.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def main(runs: int, names: list[str], file: Path | None, seed: int, markdown: bool) -> None:
    """Inject faults into a real fleet, some under a minute each, and tell how trimtab did. The last line is one JSON object."""
    console = plain_console()
    file = file or Path(time.strftime("campaign-%Y%m%dT%H%M%S.jsonl"))
    try:
        with attentive():
            if rest := missing(names, runs, lines.read(file, record.Record), seed):
                preflight.check()
                console.print(f"{len(rest)} runs, results in {file}", highlight=False)
                make(console, rest, file, seed)
            records = [r for r in lines.read(file, record.Record) if r.fault in names]
    except TrimtabError as error:
        click.echo(f"campaign: {error}", err=True)
        sys.exit(error.exit_code)
    except Told:
        click.echo(f"campaign: interrupted; everything it started is stopped, go on with --resume {file}", err=True)
        sys.exit(Exit.INTERRUPTED)
    _tell(console, records, names, markdown)


def _tell(console: Console, records: Sequence[record.Record], names: Sequence[str], markdown: bool) -> None:
    if markdown:
        click.echo(report.markdown(records, names))
    else:
        # Where nobody looks on, no column need be broken.
        (console if console.is_terminal else Console(width=150)).print(report.table(records, names))
    for line in report.told(records, names):
        click.echo(f"- {line}")
    for line in report.cannot(records):
        click.echo(f"- not injected: {line}")
    click.echo(json.dumps(report.summary(records, names)))


if __name__ == "__main__":
    main()
