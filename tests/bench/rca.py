"""`make bench-rca ARGS="--data DIR"`: root causes that others know. The last line is one JSON object (docs/rootcause.md).

Both sets go through one ranking: by the share of the symptom that a subject adds itself, where calls and their numbers are known, and
by how far its signals stepped where they are not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tests.bench.command import run
from tests.bench.incidents import Call, Injection, nezha, petshop
from tests.bench.published import unusable
from trimtab import Exit, TrimtabError
from trimtab.rootcause.blame import blame
from trimtab.rootcause.shift import AFTER_ROWS, shifts, strength

Figures = dict[str, float]
GOALS = {"petshop_ac1": 0.72, "petshop_avg5": 0.86, "nezha_ob_ac1": 0.65, "nezha_tt_ac1": 0.25}
SYSTEMS = {"online-boutique": "ob", "train-ticket": "tt"}
_USUAL_MIN = 20
"""A service that was seen less often when all was well has nothing usual to compare with."""
_RARE = 0.98
_SURE_RANGES = 2.0


def of_petshop(folder: Path) -> Figures:
    """AC@1, AC@3 and Avg@5 over the issues, by our ranking and by the shift of the symptom's metric alone."""
    calls = petshop(folder)
    figures = accuracy("petshop", [(rank_call(call), call.cause) for call in calls])
    for metric in sorted({call.metric for call in calls}):
        figures |= accuracy(f"petshop_{metric}", [(rank_call(c), c.cause) for c in calls if c.metric == metric])
    return figures | accuracy("petshop_furthest_out", [(_furthest_out(call), call.cause) for call in calls])


def rank_call(call: Call) -> list[str]:
    """The services, the likeliest first."""
    sign = -1.0 if call.metric == "availability" else 1.0
    rows = _symptom_rows(call, sign)
    added, sure = {}, {}
    for subject in dict.fromkeys(key[0] for key in call.now.columns):
        usual = sign * call.normal.column(subject, call.metric, "Average")
        usual = usual[~np.isnan(usual)]
        now = sign * call.now.column(subject, call.metric, "Average")[rows]
        if len(usual) >= _USUAL_MIN and not np.isnan(now).all():
            middle = float(np.median(usual))
            requests = np.nan_to_num(call.now.column(subject, "requests", "Sum")[rows])
            added[subject] = float(np.nansum((now - middle) * requests))
            sure[subject] = (float(np.nanmax(now)) - middle) / (_SURE_RANGES * _range(usual, middle))
    shares = blame(added, sure, call.callees, call.symptom)
    return sorted(shares, key=lambda subject: -shares[subject])


def _symptom_rows(call: Call, sign: float) -> NDArray[np.bool_]:
    """bool [time]: since the alarm, where the symptom is at least half as bad as at its worst."""
    since = call.now.unix >= call.told_unix
    symptom = sign * call.now.column(call.symptom, call.metric, "Average")
    usual = call.normal.column(call.symptom, call.metric, "Average")
    excess = np.where(since, np.nan_to_num(symptom - sign * float(np.nanmedian(usual)), nan=-np.inf), -np.inf)
    rows: NDArray[np.bool_] = since & (excess >= excess.max() / 2) if excess.max() > 0 else since
    return rows


def _range(usual: NDArray[np.float64], middle: float) -> float:
    return max(float(np.quantile(usual, _RARE)) - middle, 0.02 * abs(middle), 1e-9)


def _furthest_out(call: Call) -> list[str]:
    """The peer: who is farthest out of its usual range, whatever it adds."""
    rows = call.now.unix >= call.told_unix
    out = {}
    for subject in dict.fromkeys(key[0] for key in call.now.columns):
        usual = call.normal.column(subject, call.metric, "Average")
        now = call.now.column(subject, call.metric, "Average")[rows]
        if not np.isnan(usual).all() and not np.isnan(now).all():
            middle = float(np.nanmedian(usual))
            far = float(np.nanquantile(np.abs(usual - middle), _RARE))
            out[subject] = float(np.nanmax(np.abs(now - middle))) / max(far, 0.02 * abs(middle), 1e-9)
    return sorted(out, key=lambda subject: -out[subject])


def of_nezha(folder: Path) -> Figures:
    """AC@1, AC@3 and Avg@5 by system, by our ranking and by the energy statistic."""
    injections = nezha(folder)
    figures: Figures = {}
    for system, short in SYSTEMS.items():
        mine = [i for i in injections if i.system == system]
        if mine:
            figures |= accuracy(f"nezha_{short}", [(rank_pods(i, _steps), i.cause) for i in mine])
            figures |= accuracy(f"nezha_{short}_energy", [(rank_pods(i, _energies), i.cause) for i in mine])
    if not figures:
        raise unusable(folder, "holds no injection whose day is there")
    return figures


def rank_pods(injection: Injection, measure: Callable[[Injection], NDArray[np.float64]]) -> list[str]:
    """The pods, the likeliest first. The signals of their nodes, which are others' as well, do not count."""
    moved = measure(injection)
    by_pod: dict[str, list[float]] = {}
    for (pod, signal), value in zip(injection.signals, moved.tolist(), strict=True):
        if not signal.startswith("Node"):
            by_pod.setdefault(pod, []).append(value)
    strengths = {pod: strength(np.asarray(values)) for pod, values in by_pod.items()}
    return sorted(strengths, key=lambda pod: -strengths[pod])


def _steps(injection: Injection) -> NDArray[np.float64]:
    return shifts(injection.courses, injection.quiet, injection.row)


def _energies(injection: Injection) -> NDArray[np.float64]:
    """The peer: the energy statistic (Székely and Rizzo, 2013) of the rows after against the quiet ones, in standard deviations."""
    out = np.full(injection.courses.shape[1], np.nan)
    after_rows = slice(injection.row, injection.row + AFTER_ROWS)
    for k in range(len(out)):
        quiet, after = injection.courses[injection.quiet, k], injection.courses[after_rows, k]
        quiet, after = quiet[~np.isnan(quiet)], after[~np.isnan(after)]
        if len(quiet) >= 10 and len(after):
            between = np.abs(quiet[:, None] - after).mean()
            within = _mean_difference(quiet) + _mean_difference(after)
            out[k] = (2 * between - within) / (quiet.std() + 1e-9)
    return out


def _mean_difference(values: NDArray[np.float64]) -> float:
    """Mean of |x - y| over all pairs, from their order."""
    ordered, count = np.sort(values), len(values)
    return float(2 * ((2 * np.arange(count) - count + 1) * ordered).sum() / count**2)


def accuracy(name: str, rankings: Sequence[tuple[Sequence[str], str]]) -> Figures:
    """AC@k is the share of incidents whose cause is among the first k; Avg@5 their mean for k = 1 to 5."""
    places = np.asarray(
        [list(ranking).index(cause) if cause in ranking else len(ranking) for ranking, cause in rankings]
    )
    at = [float(np.mean(places < k)) for k in range(1, 6)]
    return {f"{name}_ac1": at[0], f"{name}_ac3": at[2], f"{name}_avg5": float(np.mean(at))}


SETS: dict[str, Callable[[Path], Figures]] = {"petshop": of_petshop, "nezha": of_nezha}


def table(figures: Figures) -> Table:
    """For people."""
    out = Table(title="root causes of published incidents", title_justify="left", header_style="bold")
    for column in ("ranking", "AC@1", "AC@3", "Avg@5", "goals"):
        out.add_column(column, justify="left" if column in {"ranking", "goals"} else "right")
    for name in [key.removesuffix("_ac1") for key in figures if key.endswith("_ac1")]:
        cells = [f"{figures[f'{name}_{kind}']:.2f}" for kind in ("ac1", "ac3", "avg5")]
        goals = [(k, GOALS[f"{name}_{k}"]) for k in ("ac1", "avg5") if f"{name}_{k}" in GOALS]
        said = [f"{k} {goal:g} {'met' if figures[f'{name}_{k}'] >= goal else 'missed'}" for k, goal in goals]
        out.add_row(name, *cells, ", ".join(said))
    return out


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The folder that holds the sets.")
@click.option("--sets", default="", help="Only these, by comma.")
def main(data: Path, sets: str) -> None:
    """How often the root cause of an incident comes first."""
    names = [name.strip() for name in sets.split(",") if name.strip()] or [n for n in SETS if (data / n).is_dir()]
    if not names:
        raise unusable(data, f"holds none of {', '.join(SETS)}")
    figures: Figures = {}
    seconds: Figures = {}
    for name in names:
        if name not in SETS:
            raise TrimtabError(f"--sets: {name} is not known; choose among {', '.join(SETS)}", Exit.USAGE)
        begun = time.monotonic()
        figures |= SETS[name](data / name)
        seconds[f"{name}_seconds"] = time.monotonic() - begun
    Console(width=100).print(table(figures))
    print(json.dumps({key: round(value, 4) for key, value in (figures | seconds).items()}))


if __name__ == "__main__":
    run(main, "bench-rca")
