"""The forms of an answer: a table for people; JSON, CSV or a Parquet file for programs. One mechanism for every command."""

from __future__ import annotations

import csv
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trimtab.collector.node_tables import printable

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of CSV and Parquet."""

    name: str
    kind: str
    """DuckDB's name of its type: "BIGINT", "DOUBLE", "VARCHAR", "TIMESTAMP", …"""
    path: tuple[str, ...] = ()
    """Where in a row it is; ("p50_seconds", "low"). Empty: under its own name."""

    def of(self, row: Row) -> Any:
        """Its value in this row; None is unknown."""
        found: Any = row
        for key in self.path or (self.name,):
            found = None if found is None else found[key]
        return found


def estimate(name: str) -> list[Column]:
    """Those of a value with its bounds: NAME, NAME_low, NAME_high."""
    parts = {name: "value", f"{name}_low": "low", f"{name}_high": "high"}
    return [Column(column, "DOUBLE", (name, part)) for column, part in parts.items()]


@dataclass(frozen=True, slots=True)
class Form:
    """What the user asked for; at most one of them."""

    json: bool = False
    csv: bool = False
    parquet: Path | None = None

    @property
    def for_people(self) -> bool:
        return not (self.json or self.csv or self.parquet)


def options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--json`, `--csv` and `--parquet`, which it gets as one `form`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
    @click.option(
        "--parquet", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False), help="Write a Parquet file."
    )
    @functools.wraps(command)
    def wrapped(*arguments: Any, as_json: bool, as_csv: bool, parquet: Path | None, **named: Any) -> None:
        if as_json + as_csv + (parquet is not None) > 1:
            raise click.UsageError("one of --json, --csv and --parquet")
        command(*arguments, form=Form(as_json, as_csv, parquet), **named)

    return wrapped


def write(form: Form, columns: Sequence[Column], rows: Iterable[Row], document: Any = None) -> None:
    """Each row as it comes, but Parquet all at once. JSON is a list of the rows, or `document` where there is one.

    Raises TrimtabError when the file cannot be written.
    """
    if form.parquet:
        from trimtab.collector.parquet import write_parquet  # noqa: PLC0415 - only this form needs pyarrow

        count = write_parquet(form.parquet, columns, rows)
        click.echo(f"{form.parquet}: {count:,} {'row' if count == 1 else 'rows'}", err=True)
    elif form.csv:
        _write_csv(columns, rows)
    elif document is not None:
        click.echo(_text(document, indent=2))
    else:
        _write_json(rows)


def _write_json(rows: Iterable[Row]) -> None:
    """One line a row. An answer that broke off is no JSON: nobody can take it for a whole one."""
    before = "["
    for row in rows:
        sys.stdout.write(f"{before}\n{_text(row)}")
        before = ","
    sys.stdout.write("[]\n" if before == "[" else "\n]\n")


def _write_csv(columns: Sequence[Column], rows: Iterable[Row]) -> None:
    shown = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([shown(column.name) for column in columns])
    for row in rows:
        writer.writerow([shown(plain(column.of(row))) for column in columns])


def plain(cell: Any, unknown: str = "") -> str:
    """A value as text."""
    if cell is None:
        return unknown
    return cell if isinstance(cell, str) else _text(cell)


def _text(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
