"""`trimtab lookback`: what was strange in a recorded table, in hindsight."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from trimtab import Exit, TrimtabError
from trimtab.collector.node_tables import printable
from trimtab.detector.settings import DetectorSettings

ROWS_MAX = 1_000_000
_CAUSES = 3


@dataclass(frozen=True, slots=True)
class Recording:
    """A table that was read: its numbers, and what its rows are called."""

    features: tuple[str, ...]
    values: NDArray[np.float64]
    """float64 [rows, features]; NaN where nothing was written."""
    rows: list[str]
    row_seconds: float = math.nan
    """From one row to the next; NaN where the rows have no times."""


@dataclass(frozen=True, slots=True)
class Episode:
    """A run of strange rows."""

    since: str
    until: str
    rows: int
    strangeness: float
    """The highest score above what was usual; 1 is where the strangest hundredth of the training begins."""
    features: list[str]
    """Those that moved most, in standard deviations from their usual course."""
    within_budget: bool = True
    """Whether it is among the strangest that the budget of false alarms allows."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--training",
    type=click.FloatRange(0.05, 0.95),
    default=0.5,
    show_default=True,
    help="Share of the rows, from the first on, that show what is normal.",
)
@click.option(
    "--false-alarms-per-week",
    "per_week",
    type=click.FloatRange(0, min_open=True),
    default=DetectorSettings().false_alarms_per_week,
    show_default=True,
    help="How many may be told though nothing was wrong: the strangest are told, and no more than that.",
)
@click.option(
    "--row-seconds",
    type=click.FloatRange(0, min_open=True),
    help="From one row to the next, where no column has times.",
)
@click.option("--all", "every", is_flag=True, help="Tell also what is beyond that budget.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON: all of them, each with whether it is within the budget."
)
def lookback(
    file: Path, training: float, per_week: float, row_seconds: float | None, every: bool, as_json: bool
) -> None:
    """Judge a recorded table in hindsight: FILE is CSV or Parquet, a row a moment, a column a signal.

    What `trimtab query --csv` or `--parquet` wrote will do. It needs no collector and no labels.
    """
    recording = read(file)
    if row_seconds:
        recording = replace(recording, row_seconds=row_seconds)
    found = judge(recording, training, per_week)
    if as_json:
        click.echo(json.dumps([asdict(episode) for episode in found]))
        return
    told = [episode for episode in found if every or episode.within_budget]
    Console().print(_table(told) if told else "nothing was strange")
    if left := len(found) - len(told):
        click.echo(f"{left} less strange, beyond {per_week:g} false alarms a week: --all tells them")
    if found and math.isnan(recording.row_seconds) and not every:
        click.echo("its rows have no times, so no budget limits this: give --row-seconds", err=True)


def read(file: Path) -> Recording:
    """The columns of numbers. Raises TrimtabError for what is no table."""
    import pyarrow as pa  # noqa: PLC0415 - `--help` needs neither
    from pyarrow import compute, csv, parquet  # noqa: PLC0415

    try:
        table = parquet.read_table(file) if file.suffix == ".parquet" else csv.read_csv(file)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise TrimtabError(f"{file}: {reason}; give a CSV or Parquet file with a header", Exit.USAGE) from error
    if not 1 <= len(table) <= ROWS_MAX:
        raise TrimtabError(f"{file}: {len(table)} rows; 1 to {ROWS_MAX:,} can be judged at once", Exit.USAGE)
    numbers = [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_floating(f.type)]
    others = [f.name for f in table.schema if f.name not in numbers]
    if not numbers:
        raise TrimtabError(f"{file}: no column of numbers; give one for each signal", Exit.USAGE)
    columns = [compute.cast(table[name], pa.float64()).to_numpy(zero_copy_only=False) for name in numbers]
    named = [str(value) for value in table[others[0]].to_pylist()] if others else [str(k) for k in range(len(table))]
    return Recording(
        tuple(numbers), np.stack(columns, axis=1).astype(np.float64), named, _step(named) if others else math.nan
    )


def _step(times: Sequence[str]) -> float:
    """Seconds from one to the next, in the median; NaN where they are no times."""
    try:
        moments = [datetime.fromisoformat(time).timestamp() for time in times]
    except ValueError:
        return math.nan
    return float(np.median(np.diff(moments))) if len(moments) > 1 else math.nan


def judge(recording: Recording, training: float, per_week: float) -> list[Episode]:
    """The episodes after the training, oldest first. Raises TrimtabError when that is too short."""
    from trimtab.detector.budget import WEEK_SECONDS  # noqa: PLC0415
    from trimtab.detector.episodes import episodes, runs, strangest, usual  # noqa: PLC0415
    from trimtab.detector.lookback import TRAIN_MIN, Lookback  # noqa: PLC0415
    from trimtab.detector.windows import WIDTH  # noqa: PLC0415

    values = np.where(np.isfinite(recording.values), recording.values, np.nan)
    split = int(training * len(values))
    # Of what the training does not know nothing can be said.
    known = np.flatnonzero(~np.isnan(values[:split]).all(axis=0))
    if split < TRAIN_MIN or len(values) - split < WIDTH or not len(known):
        message = f"--training {training:g}: {split} rows of {len(values)} are for training"
        raise TrimtabError(f"{message}; it needs {TRAIN_MIN} with numbers, and {WIDTH} after it", Exit.USAGE)
    train, test = values[:split, known], values[split:, known]
    fitted = Lookback(train)
    judged, far = fitted.judge(test), fitted.deviations(test)
    constant = np.nanmax(train, axis=0) == np.nanmin(train, axis=0)
    above = judged.test - usual(judged.train, judged.test, judged.season_rows)
    found = runs(episodes(above))
    peaks = np.asarray([np.nanmax(above[first:end]) for first, end in found])
    weeks = len(test) * recording.row_seconds / WEEK_SECONDS
    told = np.ones(len(found), np.bool_) if math.isnan(weeks) else strangest(peaks, weeks, per_week)
    names = [recording.features[k] for k in known.tolist()]
    return [
        Episode(
            since=recording.rows[split + first],
            until=recording.rows[split + end - 1],
            rows=end - first,
            strangeness=round(float(peaks[k]), 2),
            features=_moved(names, far[first:end], constant),
            within_budget=bool(told[k]),
        )
        for k, (first, end) in enumerate(found)
    ]


def _moved(names: list[str], far: NDArray[np.float64], constant: NDArray[np.bool_]) -> list[str]:
    """Those that were farthest from their usual course, by the mean over the episode."""
    mean = np.nanmean(far, axis=0)
    return [
        f"{names[k]} (was constant)" if constant[k] else f"{names[k]} {mean[k]:+.1f}σ"
        for k in np.argsort(-np.abs(mean))[:_CAUSES].tolist()
        if mean[k] != 0
    ]


def _table(found: list[Episode]) -> Table:
    table = Table(header_style="bold", box=None)
    for name, justify in (("since", "left"), ("until", "left"), ("rows", "right"), ("strangeness", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("what moved most", overflow="fold")
    cells: list[Any]
    for episode in found:
        cells = [
            episode.since,
            episode.until,
            f"{episode.rows:,}",
            f"{episode.strangeness:.2f}",
            ", ".join(episode.features),
        ]
        table.add_row(*(printable(cell) for cell in cells))
    return table
