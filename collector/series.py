"""Which series there are. A name keeps its unit and form for good, because it is a column of the store."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import TEXT_MAX, Malformed

Form = Literal["gauge", "rate", "sketch"]
COLUMNS_MAX = 512
"""Most columns of a fingerprint table."""
RESERVED = ("node", "subject", "start", "windows")
SKETCH = "_sketch"
"""What the name of a column of packed sketches ends in."""
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
KINDS = {
    pb.SUBJECT_KIND_NODE: "node",
    pb.SUBJECT_KIND_GPU: "gpu",
    pb.SUBJECT_KIND_INSTANCE: "instance",
    pb.SUBJECT_KIND_DISK: "disk",
    pb.SUBJECT_KIND_INTERFACE: "interface",
    pb.SUBJECT_KIND_MODEL: "model",
    pb.SUBJECT_KIND_WORKER: "worker",
}
_FORMS: dict[int, Form] = {pb.SERIES_KIND_GAUGE: "gauge", pb.SERIES_KIND_RATE: "rate"}


@dataclass(frozen=True, slots=True)
class Series:
    """A row of the table `series`."""

    kind: str
    name: str
    unit: str
    form: Form

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that hold it; those of a sketch are itself, its count, its mean and its quantiles."""
        if self.form == "sketch":
            return (f"{self.name}{SKETCH}", *self.summary)
        return (self.name,)

    @property
    def summary(self) -> tuple[str, ...]:
        """The columns of a sketch that are numbers."""
        return tuple(f"{self.name}_{part}" for part in ("count", "mean", *QUANTILES))


class Registry:
    """All series that were ever admitted."""

    def __init__(self, known: Iterable[Series]) -> None:
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str], Series] = {}
        self._owners: dict[tuple[str, str], str] = {}
        for series in known:
            self._add(series)

    def admit(self, series: Series) -> None:
        """Raises Malformed when the name already means something else, or when there is no more room."""
        with self._lock:
            known = self._series.get((series.kind, series.name))
            if known == series:
                return
            where = f"series {series.name} of {series.kind}"
            if known:
                was, now = f"{known.form} in {known.unit!r}", f"{series.form} in {series.unit!r}"
                raise Malformed(f"{where}: is stored as {was}, and came as {now}; give it another name")
            if len(series.unit) > TEXT_MAX:
                raise Malformed(f"{where}.unit: over {TEXT_MAX} characters")
            if series.form != "sketch" and series.name.endswith(SKETCH):
                raise Malformed(f"{where}: only the column of a sketch ends in {SKETCH}")
            for column in series.columns:
                owner = self._owners.get((series.kind, column))
                if owner or column in RESERVED:
                    raise Malformed(f"{where}: column {column} belongs to {owner or 'every series'}")
            if sum(kind == series.kind for kind, _ in self._owners) + len(series.columns) > COLUMNS_MAX:
                raise Malformed(f"{where}: there are already {COLUMNS_MAX} columns")
            self._add(series)

    def admit_schema(self, schema: pb.Schema) -> None:
        """Admit every series of a checked schema."""
        for table in schema.tables:
            for series in table.series:
                if series.kind not in _FORMS:
                    raise Malformed(f"series {series.name} of {KINDS[table.kind]}.kind: neither gauge nor rate")
                self.admit(Series(KINDS[table.kind], series.name, series.unit, _FORMS[series.kind]))

    def get(self, kind: str, name: str) -> Series:
        """The series of an admitted name."""
        with self._lock:
            return self._series[kind, name]

    def _add(self, series: Series) -> None:
        self._series[series.kind, series.name] = series
        self._owners.update(((series.kind, column), series.name) for column in series.columns)
