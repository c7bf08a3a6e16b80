"""`python -m tests.bench.routing`: the tables, and a last line of JSON."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress

from tests.bench.command import run as command
from tests.bench.routing.best import best
from tests.bench.routing.contestants import Contestant, classical, steered
from tests.bench.routing.measure import Seen, run
from tests.bench.routing.recordings import recorded
from tests.bench.routing.rows import Row, rows
from tests.bench.routing.tables import Runs, figures, table
from trimtab.actuator.policy import POLICIES

QUICK = ("slow3", "fail30", "healthy")
POLICIES_DEFAULT = tuple(name for name in POLICIES if name != "neutral")


def _one(row: Row, policies: tuple[str, ...], search_seeds: int, seeds: Sequence[int]) -> dict[str, list[Seen]]:
    """All contestants of a row, on the same seeds."""
    logging.disable(logging.WARNING)
    contestants = [*classical(), *steered(policies)]
    if search_seeds and row.compare == "headroom":
        contestants.append(best(row, search_seeds))
    return {c.name: [run(row.scenario(seed, c.balancer), c.control, row.since) for seed in seeds] for c in contestants}


@click.command()
@click.option("--quick", is_flag=True, help="Three rows, three seeds, one policy: under 50 s.")
@click.option("--rows", "wanted", default="", metavar="A,B", help="These rows only.")
@click.option("--policies", default="", metavar="A,B", help="These policies only.")
@click.option("--seeds", default=10, show_default=True, type=click.IntRange(2, 1000))
@click.option(
    "--search-seeds",
    default=3,
    show_default=True,
    type=click.IntRange(0, 100),
    help="Of the best static weights; 0: no search.",
)
@click.option("--default-policy", default="split", show_default=True, help="Whose figures are those of the last line.")
@click.option("--workers", default=2, show_default=True)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Where `llm-traces` and `servegen-rates` are: adds rows of recorded arrivals.",
)
@click.option("--save", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures to this JSON file.")
def main(
    quick: bool,
    wanted: str,
    policies: str,
    seeds: int,
    search_seeds: int,
    default_policy: str,
    workers: int,
    data: Path | None,
    save: Path | None,
) -> None:
    """Every policy over every balancer, in every scenario."""
    known = {row.name: row for row in [*rows(), *(_recorded(data) if data else [])]}
    names = [name for name in wanted.split(",") if name] or list(QUICK if quick else known)
    unknown = sorted(set(names) - known.keys())
    if unknown:
        raise click.UsageError(f"--rows: no {unknown[0]!r}; there are {', '.join(known)}")
    chosen = tuple(p for p in policies.split(",") if p) or ((default_policy,) if quick else POLICIES_DEFAULT)
    if missing := sorted(set(chosen) - POLICIES.keys()):
        raise click.UsageError(f"--policies: no {missing[0]!r}; there are {', '.join(POLICIES)}")
    if not (data or quick or wanted):
        print("Rows of recorded arrivals are left out: no --data.")
    seeds, search_seeds = (3, 0) if quick else (seeds, search_seeds)
    console, all_figures = Console(width=140), {}
    with Progress(console=Console(stderr=True), transient=True) as progress, ProcessPoolExecutor(workers) as pool:
        task = progress.add_task("simulating", total=len(names))
        futures = {name: pool.submit(_one, known[name], chosen, search_seeds, range(seeds)) for name in names}
        for name, future in futures.items():
            runs = future.result()
            contestants = _contestants_of(chosen, runs)
            console.print(table(known[name], runs, contestants), "")
            all_figures[name] = figures(known[name], runs, contestants)
            progress.advance(task)
    summary = _summary(known, all_figures, default_policy if default_policy in chosen else chosen[0])
    if save:
        save.write_text(json.dumps({"seeds": seeds, "rows": all_figures, "summary": summary}, indent=1))
    print(json.dumps(summary))


def _recorded(data: Path) -> list[Row]:
    try:
        return recorded(data)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--data: {error}") from error


def _contestants_of(policies: tuple[str, ...], runs: Runs) -> list[Contestant]:
    """Those of this process, with the best static weights as they were found in another."""
    found = [*classical(), *steered(policies)]
    known = {c.name for c in found}
    return found + [
        Contestant(extra, "reference", found[0].balancer, found[0].control) for extra in runs if extra not in known
    ]


def _summary(known: dict[str, Row], all_figures: dict[str, dict[str, Any]], policy: str) -> dict[str, Any]:
    """Of the policy on the balancer that is recommended: geometric means of ratios, means of shares."""
    gathered: dict[str, list[float]] = defaultdict(list)
    for name, found in all_figures.items():
        row = known[name]
        mine = found[f"{policy} on {recommended(row)}"]
        if row.compare == "headroom":
            gathered["p99_vs_best_classical"].append(mine["p99_vs_best_classical"])
            gathered["mean_vs_best_classical"].append(mine["mean_vs_best_classical"])
            for part in ("mean", "p99"):
                share = mine.get(f"{part}_headroom_taken")
                if share is not None:
                    gathered[f"{part}_headroom_taken"].append(share)
        elif row.compare == "errors":
            gathered["avoidable_errors_avoided"].append(mine["avoidable_errors_avoided"])
        elif name.startswith("healthy"):
            gathered["healthy_p99_vs_leastconn"].append(mine["p99_vs_same_balancer"])
        else:
            gathered["harmless_p99_vs_same_balancer_worst"].append(mine["p99_vs_same_balancer"])
    out: dict[str, Any] = {"policy": policy}
    for key, values in gathered.items():
        kind = (
            max
            if key.endswith("worst")
            else np.median
            if key.endswith("taken")
            else np.mean
            if key.endswith("avoided")
            else _geometric
        )
        out[key] = round(float(kind(values)), 4)
    taken = [out[k] for k in ("mean_headroom_taken", "p99_headroom_taken") if k in out]
    return out | ({"headroom_taken": min(taken)} if taken else {})


def recommended(row: Row) -> str:
    """The balancer that docs/routing.md recommends: a queue of its own, but where batches need several requests at the instance."""
    return "leastconn" if row.base.instances[0].batch_max > 1 else "central_queue"


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


if __name__ == "__main__":
    command(main, "bench-routing")
