"""Reads the published, labelled sets that the detectors are measured on, each in the layout in which it is kept: DIR/SET/…"""

from __future__ import annotations

import csv
import io
import itertools
import json
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab import Exit, TrimtabError

_MEMBER_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """Many features of one machine: a training without labels, and what followed."""

    name: str
    train: NDArray[np.float64]
    test: NDArray[np.float64]
    labels: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Signal:
    """One labelled signal. NAB labels windows, others rows."""

    name: str
    values: NDArray[np.float64]
    season_rows: int
    """Rows in a day, by its timestamps."""
    labels: NDArray[np.bool_]
    windows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """Step times of the workers of one distributed job, float64 [time, workers]."""

    name: str
    workers: tuple[str, ...]
    step_seconds: float
    durations: NDArray[np.float64]


def machines(folder: Path) -> list[Machine]:
    """NAME_train.npy.xz, NAME_test.npy.xz and NAME_label.npy.xz of each machine."""
    names = sorted(path.name.removesuffix("_test.npy.xz") for path in folder.glob("*_test.npy.xz"))
    if not names:
        raise unusable(folder, "has no NAME_test.npy.xz")
    found = []
    for name in names:
        train, test, labels = (_array(folder / f"{name}_{part}.npy.xz") for part in ("train", "test", "label"))
        if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or len(labels) != len(test):
            raise unusable(folder / name, f"train {train.shape}, test {test.shape} and label {labels.shape} do not fit")
        found.append(Machine(name, train.astype(np.float64), test.astype(np.float64), labels > 0))
    return found


def nab(folder: Path) -> list[Signal]:
    """data/GROUP/NAME.csv and labels/combined_windows.json, loose or in nab.tar.xz."""
    files = dict(texts(folder, "nab.tar.xz"))
    try:
        labelled = json.loads(files["labels/combined_windows.json"])
    except (KeyError, ValueError) as e:
        raise unusable(folder, "has no readable labels/combined_windows.json") from e
    found = []
    for name, text in sorted(files.items()):
        if name.endswith(".csv"):
            times, values, _ = _columns(folder / name, text)
            row_of = {time: row for row, time in reversed(list(enumerate(times)))}
            windows = [
                tuple(row_of[_time(edge)] for edge in window) for window in labelled.get(name.removeprefix("data/"), [])
            ]
            nothing = np.zeros(len(values), dtype=np.bool_)
            found.append(Signal(name, values, _day(times), nothing, tuple((a, b) for a, b in windows)))
    return found


def monitoring(folder: Path) -> dict[str, list[Signal]]:
    """data/DOMAIN/NAME.csv with TimeStamp, Value and Label, loose or in data.tar.xz; by domain."""
    found: dict[str, list[Signal]] = {}
    for name, text in sorted(texts(folder, "data.tar.xz")):
        if name.endswith(".csv"):
            times, values, labels = _columns(folder / name, text)
            found.setdefault(name.split("/")[-2], []).append(Signal(name, values, _day(times), labels > 0))
    if not found:
        raise unusable(folder, "has no data/DOMAIN/NAME.csv")
    return found


def jobs(folder: Path) -> list[Job]:
    """job_N_norm.csv: worker, time and batch_time_norm."""
    paths = sorted(folder.glob("job_*_norm.csv"))
    if not paths:
        raise unusable(folder, "has no job_N_norm.csv")
    return [_job(path) for path in paths]


def unusable(path: Path, why: str) -> TrimtabError:
    """What the user reads when a set cannot be used."""
    remedy = "give the folder that holds the sets, or choose others with --sets"
    return TrimtabError(f"--data: {path}: {why}; {remedy}", Exit.USAGE)


def _job(path: Path) -> Job:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    workers = sorted({row["worker"] for row in rows}, key=float)
    times = sorted({float(row["time"]) for row in rows})
    durations = np.full((len(times), len(workers)), np.nan)
    for row in rows:
        durations[times.index(float(row["time"])), workers.index(row["worker"])] = float(row["batch_time_norm"])
    return Job(path.stem, tuple(workers), float(np.median(np.diff(times))), durations)


def _array(path: Path) -> NDArray[np.float64]:
    try:
        with lzma.open(path) as file:
            array: NDArray[np.float64] = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (OSError, lzma.LZMAError, ValueError) as e:
        raise unusable(path, str(e)) from e
    return array


def texts(folder: Path, archive: str) -> Iterator[tuple[str, str]]:
    """Every file below `folder`, or in its archive, by its path."""
    packed = folder / archive
    if not packed.exists():
        for path in folder.rglob("*"):
            if path.suffix in {".csv", ".json"}:
                yield path.relative_to(folder).as_posix(), path.read_text()
        return
    try:
        with tarfile.open(packed) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() and member.size <= _MEMBER_BYTES_MAX else None
                if file is not None:
                    yield member.name.removeprefix("./"), file.read().decode()
    except (OSError, tarfile.TarError, lzma.LZMAError, UnicodeDecodeError) as e:
        raise unusable(packed, str(e)) from e


def _columns(path: Path, text: str) -> tuple[list[datetime], NDArray[np.float64], NDArray[np.float64]]:
    """Timestamp, value and, where there is one, label."""
    rows = [row for row in list(csv.reader(text.splitlines()))[1:] if len(row) >= 2 and row[1].strip()]
    try:
        times, values = [_time(row[0]) for row in rows], np.asarray([float(row[1]) for row in rows])
        labels = np.asarray([float(row[2]) if len(row) > 2 else 0.0 for row in rows])
    except ValueError as e:
        raise unusable(path, str(e)) from e
    return times, values, labels


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.strip().removesuffix("Z")[:19])


def _day(times: list[datetime]) -> int:
    steps = [(b - a).total_seconds() for a, b in itertools.pairwise(times[:200])]
    return max(2, round(86400 / float(np.median(steps)))) if steps and np.median(steps) > 0 else 24
