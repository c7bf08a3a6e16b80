"""Reads the published incidents whose root cause is known: PetShop and Nezha, each in the layout in which it is kept."""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.bench.published import texts, unusable

_MEMBER_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Metrics:
    """float64 [time, columns]; a column is (subject, metric, statistic)."""

    unix: NDArray[np.float64]
    columns: dict[tuple[str, str, str], int]
    values: NDArray[np.float64]

    def column(self, subject: str, metric: str, statistic: str) -> NDArray[np.float64]:
        """float64 [time]; all NaN for what is not there."""
        k = self.columns.get((subject, metric, statistic))
        return np.full(len(self.unix), np.nan) if k is None else self.values[:, k]


@dataclass(frozen=True, slots=True)
class Call:
    """A symptom of a service in a graph of calls, and the service that caused it."""

    name: str
    symptom: str
    metric: str
    told_unix: float
    cause: str
    callees: Mapping[str, Sequence[str]]
    normal: Metrics
    now: Metrics


@dataclass(frozen=True, slots=True)
class Injection:
    """A fault injected into one pod of a system, in the signals of a whole day."""

    system: str
    kind: str
    cause: str
    row: int
    """The first row after it."""
    signals: tuple[tuple[str, str], ...]
    courses: NDArray[np.float64]
    """float64 [time, signals]."""
    quiet: NDArray[np.bool_]
    """bool [time]: far from every injection of the day."""


def petshop(folder: Path) -> list[Call]:
    """dataset/TRAFFIC/…/target.json with metrics.csv beside it, noissue/metrics.csv and graph.csv, loose or in petshop.tar.xz."""
    files = dict(texts(folder, "petshop.tar.xz"))
    targets = sorted(name for name in files if name.endswith("/target.json"))
    if not targets:
        raise unusable(folder, "has no target.json of an issue")
    normals = {
        name.split("/")[-3]: _metrics(folder / name, text)
        for name, text in files.items()
        if name.endswith("/noissue/metrics.csv")
    }
    try:
        return [_call(folder, name, files, normals) for name in targets]
    except (KeyError, ValueError, IndexError, TypeError) as e:
        raise unusable(folder, f"an issue is not readable: {type(e).__name__}: {e}") from e


def nezha(folder: Path) -> list[Injection]:
    """DAY.csv.xz of each day, and faults.json."""
    try:
        faults: list[dict[str, str]] = json.loads((folder / "faults.json").read_text())
        days = sorted({fault["day"] for fault in faults})
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise unusable(folder / "faults.json", f"is not readable: {e}") from e
    return [
        found
        for day in days
        if (folder / f"{day}.csv.xz").exists()
        for found in _day(folder / f"{day}.csv.xz", faults, day)
    ]


_BEFORE_SECONDS, _AFTER_SECONDS = 60.0, 480.0


def _day(path: Path, faults: Sequence[dict[str, str]], day: str) -> list[Injection]:
    try:
        with lzma.open(path, "rt") as file:
            rows = list(csv.reader(file))
        signals = tuple((name.split("|")[0], name.split("|")[1]) for name in rows[0][1:])
        unix = np.asarray([_unix(row[0]) for row in rows[1:]])
        courses = np.asarray([[_number(cell) for cell in row[1:]] for row in rows[1:]])
    except (OSError, lzma.LZMAError, ValueError, IndexError) as e:
        raise unusable(path, str(e)) from e
    mine = [(fault, _unix(fault["inject_time"])) for fault in faults if fault["day"] == day]
    quiet = np.ones(len(unix), dtype=np.bool_)
    for _, at in mine:
        quiet &= ~((unix >= at - _BEFORE_SECONDS) & (unix <= at + _AFTER_SECONDS))
    return [
        Injection(
            fault["system"],
            fault["type"],
            fault["pod"],
            int(np.searchsorted(unix, at, side="right")),
            signals,
            courses,
            quiet,
        )
        for fault, at in mine
    ]


def _call(folder: Path, name: str, files: Mapping[str, str], normals: Mapping[str, Metrics]) -> Call:
    """An issue lies at …/TRAFFIC/SPLIT/ISSUE/target.json."""
    parts, told = name.split("/"), json.loads(files[name])
    traffic, root = parts[-4], "/".join(parts[:-3])
    # Where a kind of traffic has no normal period of its own, the others' is used.
    normal = normals.get(traffic) or _joined(list(normals.values()))
    if normal is None:
        raise unusable(folder, f"has no noissue/metrics.csv for {traffic}")
    return Call(
        name=name.removesuffix("/target.json"),
        symptom=told["target"]["node"],
        metric=told["target"]["metric"],
        told_unix=float(told["target"]["timestamp"]),
        cause=told["root_cause"]["node"],
        callees=_graph(files[f"{root}/graph.csv"]),
        normal=normal,
        now=_metrics(folder / name, files[name.removesuffix("target.json") + "metrics.csv"]),
    )


def _graph(text: str) -> dict[str, list[str]]:
    """A row calls the columns in which it has a number other than 0."""
    rows = list(csv.reader(io.StringIO(text)))
    return {
        row[0]: [callee for callee, cell in zip(rows[0][1:], row[1:], strict=True) if _number(cell) > 0]
        for row in rows[1:]
    }


def _metrics(path: Path, text: str) -> Metrics:
    """Three header lines (subject, metric, statistic), then rows that begin with a Unix time."""
    rows = list(csv.reader(io.StringIO(text)))
    body = [row for row in rows[3:] if re.fullmatch(r"[0-9.]+", row[0])]
    if len(rows) < 4 or not body:
        raise unusable(path, "has no rows of metrics")
    columns = {key: k for k, key in enumerate(zip(rows[0][1:], rows[1][1:], rows[2][1:], strict=True))}
    return Metrics(
        np.asarray([float(row[0]) for row in body]),
        columns,
        np.asarray([[_number(cell) for cell in row[1:]] for row in body]),
    )


def _joined(parts: Sequence[Metrics]) -> Metrics | None:
    if not parts:
        return None
    columns = {key: k for k, key in enumerate(dict.fromkeys(key for part in parts for key in part.columns))}
    values = np.full((sum(len(part.unix) for part in parts), len(columns)), np.nan)
    row = 0
    for part in parts:
        values[row : row + len(part.unix), [columns[key] for key in part.columns]] = part.values
        row += len(part.unix)
    return Metrics(np.concatenate([part.unix for part in parts]), columns, values)


def _number(cell: str) -> float:
    return float(cell) if cell.strip() else float("nan")


def _unix(text: str) -> float:
    return (datetime.fromisoformat(text.strip()[:19]) - datetime(1970, 1, 1)).total_seconds()  # noqa: DTZ001 - both without a zone
