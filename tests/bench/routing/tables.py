"""What came of it: tables with intervals, and the figures of the last line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from tests.bench.routing.contestants import Contestant
from tests.bench.routing.measure import Seen
from tests.bench.routing.rows import Row

Runs = Mapping[str, Sequence[Seen]]
"""By the contestant's name: its runs, one a seed, the same seeds for all."""
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Ratio:
    """Of geometric means over paired seeds, with a bootstrap interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(mine: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Ratio:
    """How large mine is, theirs being 1."""
    logs = np.log(np.asarray(mine) / np.asarray(theirs))
    draws = np.random.default_rng(seed).integers(0, len(logs), (_DRAWS, len(logs)))
    low, high = np.quantile(logs[draws].mean(axis=1), (0.025, 0.975))
    return Ratio(*(float(np.exp(v)) for v in (logs.mean(), low, high)))


def column(runs: Sequence[Seen], name: str) -> list[float]:
    """One figure of each run."""
    return [getattr(seen, name) for seen in runs]


def winner(runs: Runs, contestants: Sequence[Contestant], name: str) -> str:
    """Whose figure is least on average."""
    return min((c.name for c in contestants), key=lambda c: float(np.mean(column(runs[c], name))))


def table(row: Row, runs: Runs, contestants: Sequence[Contestant]) -> Table:
    """All contestants of a row; ratios are to the best classical one of that column."""
    rivals = [c for c in contestants if c.kind == "classical"]
    best = {name: winner(runs, rivals, name) for name in ("mean_seconds", "p99_seconds")}
    out = Table(title=f"{row.name}: {row.title}", title_justify="left", header_style="bold", box=None, pad_edge=False)
    out.add_column("")
    for heading in ("mean ms", "to the best", "p99 ms", "to the best", "errors", "within SLO"):
        out.add_column(heading, justify="right")
    for contestant in contestants:
        seen = runs[contestant.name]
        cells = []
        for name in ("mean_seconds", "p99_seconds"):
            mine = column(seen, name)
            cells += [f"{np.mean(mine) * 1e3:.1f}", str(ratio(mine, column(runs[best[name]], name)))]
        errors, good = (float(np.mean(column(seen, name))) for name in ("error_ratio", "goodput"))
        style = {"trimtab": "bold", "reference": "dim"}.get(contestant.kind, "")
        out.add_row(contestant.name, *cells, f"{errors:.2%}", f"{good:.1%}", style=style)
    return out


def figures(row: Row, runs: Runs, contestants: Sequence[Contestant]) -> dict[str, Any]:
    """What each policy on each balancer reached, in the terms of the row's goal."""
    rivals = [c for c in contestants if c.kind == "classical"]
    static = next((c.name for c in contestants if c.name.startswith("best static")), "")
    out: dict[str, Any] = {}
    for c in contestants:
        if c.kind != "trimtab":
            continue
        found: dict[str, Any] = {}
        for short in ("mean", "p99"):
            name = f"{short}_seconds"
            mine, theirs = column(runs[c.name], name), column(runs[winner(runs, rivals, name)], name)
            found[f"{short}_vs_best_classical"] = round(ratio(mine, theirs).value, 3)
            found[f"{short}_vs_round_robin"] = round(ratio(mine, column(runs["round-robin"], name)).value, 3)
            over = next(r.name for r in rivals if r.balancer.name == c.over and not r.balancer.outlier_ejection)
            found[f"{short}_vs_same_balancer"] = round(ratio(mine, column(runs[over], name)).value, 3)
            if static:
                room = np.mean(theirs) - np.mean(column(runs[static], name))
                found[f"{short}_headroom_taken"] = (
                    round(float((np.mean(theirs) - np.mean(mine)) / room), 3) if room > 0 else None
                )
        same = next(r.name for r in rivals if r.balancer.name == c.over and not r.balancer.outlier_ejection)
        mine, neutral = (float(np.mean(column(runs[n], "error_ratio"))) for n in (c.name, same))
        if row.compare == "errors" and neutral > 0:
            found["avoidable_errors_avoided"] = round(1 - mine / neutral, 4)
        out[c.name] = found
    return out
