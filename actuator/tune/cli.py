"""`trimtab tune`: train the learned policy, search for its hyper-parameters, and tell how good it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trimtab import Exit, TrimtabError, __version__
from trimtab.actuator.policy.dqn import Network, load, shipped
from trimtab.actuator.tune import search as searching
from trimtab.actuator.tune.dqn import Settings, dump, train
from trimtab.actuator.tune.fleets import fleet
from trimtab.actuator.tune.score import Scored, score, with_margin

_file = click.Path(path_type=Path, dir_okay=False)
_PARTS = 5
"""So often is a training of the search scored on its way, so that a hopeless one is cut short."""


@click.group()
def tune() -> None:
    """Train the learned policy in simulated fleets, and search for how to train it."""


@tune.command("train")
@click.argument("out", type=_file)
@click.option("--settings", "settings_file", type=_file, help="JSON of settings, as `trimtab tune search` prints it.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Of the network, and of the fleets.")
@click.option("--steps", type=click.IntRange(1_000, 100_000_000), help="Seconds of simulated fleets.")
@click.option("--held-out", default=200, show_default=True, type=click.IntRange(2, 100_000), help="Fleets to score on.")
def train_(out: Path, settings_file: Path | None, seed: int | None, steps: int | None, held_out: int) -> None:
    """Train a network and write it to OUT. The same settings give the same network."""
    settings = _settings(settings_file)
    settings = replace(settings, seed=settings.seed if seed is None else seed, steps=steps or settings.steps)
    with Progress(transient=True) as progress:
        task = progress.add_task("training", total=settings.steps)

        def told(step: int, reward: float, _network: object) -> bool:
            progress.update(task, completed=step, description=f"training: {reward:+.3f} to the rule")
            return True

        network = train(settings, partial(fleet, seed=settings.seed), told)
        progress.update(task, completed=settings.steps, description="scoring on fleets it has not seen")
        network = with_margin(network, held_out)
        found = score(network, held_out)
    provenance = {
        "trimtab": __version__,
        "trained": datetime.now(UTC).strftime("%Y-%m-%d"),
        "fleets": "trimtab.actuator.tune.fleets",
        "settings": asdict(settings),
        "held_out": held_out,
        "score": asdict(found),
    }
    _write(out, dump(replace(network, provenance=provenance)))
    _show(found, network.margin, held_out)


@tune.command("score")
@click.argument("network", required=False, type=_file)
@click.option("--held-out", default=200, show_default=True, type=click.IntRange(2, 100_000), help="Fleets to score on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def score_(network: Path | None, held_out: int, as_json: bool) -> None:
    """Compare NETWORK, or the one in the package, with the rule on fleets that it was not trained on."""
    loaded = _load(network)
    found = score(loaded, held_out)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"fleets": held_out, "provenance": dict(loaded.provenance)}))
    else:
        _show(found, loaded.margin, held_out)


@tune.command()
@click.argument("study", type=_file)
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1, 10_000), help="How many more.")
@click.option("--steps", default=20_000, show_default=True, type=click.IntRange(1_000, 100_000_000), help="Of each.")
@click.option("--held-out", default=60, show_default=True, type=click.IntRange(2, 100_000), help="Fleets to score on.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
def search(study: Path, trials: int, steps: int, held_out: int, seed: int) -> None:
    """Search for hyper-parameters, in STUDY, a file; one that is there is gone on with. Prints the best settings as JSON."""
    opened = searching.opened(study, seed)
    base = Settings(seed=seed, steps=steps)
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True) as progress:
        task = progress.add_task("searching", total=trials)

        def done(trial: Any) -> None:
            value = "cut short" if trial.value is None else f"{trial.value:+.3f}"
            progress.console.print(f"trial {trial.number}: {value}", highlight=False)
            progress.advance(task)

        searching.search(opened, base, trials, partial(_trained_score, held_out), done)
    settings, value = searching.best(opened, base)
    errors.print(f"best of {len(opened.trials)}: {value:+.3f} to the rule", highlight=False)
    click.echo(json.dumps(asdict(settings), indent=2))


@tune.command()
@click.argument("study", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("out", type=_file)
def page(study: Path, out: Path) -> None:
    """Write a page with the plots of STUDY to OUT."""
    from trimtab.actuator.tune.page import page as made  # noqa: PLC0415 - only this needs matplotlib

    opened = searching.opened(study, 0)
    _write(out, made(searching.rows(opened), searching.importances(opened)))


def _trained_score(held_out: int, settings: Settings, report: Callable[[int, float], bool]) -> float:
    """The score at the end; it is reported on the way, too."""
    parts = 0

    def told(step: int, _reward: float, network: Callable[[], Network]) -> bool:
        nonlocal parts
        if step < (parts + 1) * settings.steps / _PARTS:
            return True
        parts += 1
        if not report(parts, valued(network())):
            raise searching.Cut
        return True

    def valued(network: Network) -> float:
        return score(replace(network, margin=settings.margin), held_out).mean

    return valued(train(settings, partial(fleet, seed=settings.seed), told))


def _settings(file: Path | None) -> Settings:
    if file is None:
        return Settings()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Settings)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise TrimtabError(f"{file}: {error}; `trimtab tune search` prints such a file", Exit.SETTINGS) from error


def _load(file: Path | None) -> Network:
    try:
        return load(file.read_bytes()) if file else shipped()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrimtabError(f"{file}: no network: {error}", Exit.SETTINGS) from error


def _write(out: Path, text: str) -> None:
    try:
        out.write_text(text)
    except OSError as error:
        raise TrimtabError(f"{out}: {error.strerror}; name a file that can be written", Exit.USAGE) from error


def _show(found: Scored, margin: float, fleets: int) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("fleets", "mean and p99 to the rule's", "±", "worst", "margin"):
        table.add_column(column, justify="right")
    cells = (f"{100 * v:+.1f} %" for v in (found.mean, found.standard_error, found.worst))
    table.add_row(str(fleets), *cells, f"{margin:g}")
    Console().print(table)
