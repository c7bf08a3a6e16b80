"""The recorded windows as a Prometheus would have them: each scalar a gauge, each sketch a classical histogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.bench.fleet.recording import Recording
from trimtab.agent.sketch.loglinear import MIDDLES_SECONDS
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import unpack_sketches, unpack_values

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, float("inf"))
"""The default buckets of Prometheus' client libraries."""
_KINDS = {pb.SUBJECT_KIND_NODE: "node", pb.SUBJECT_KIND_INSTANCE: "instance"}


@dataclass(frozen=True, slots=True)
class Samples:
    """One value of one series at one time is a sample; a window has `len(names)` of them."""

    names: list[str]
    labels: list[dict[str, str]]
    """Of each series, without the node's."""
    values: NDArray[np.float64]
    """float64 [windows, series]; NaN: no sample. Histograms count on from window to window."""

    @property
    def scalars(self) -> Samples:
        """Without the histograms."""
        kept = [i for i, name in enumerate(self.names) if not name.endswith(("_bucket", "_sum", "_count"))]
        return Samples([self.names[i] for i in kept], [self.labels[i] for i in kept], self.values[:, kept].copy())

    def at(self, turn: int) -> NDArray[np.float64]:
        """The values of turn `turn` of a replay that goes round."""
        rounds, index = divmod(turn, len(self.values))
        histogram = np.asarray([name.endswith(("_bucket", "_sum", "_count")) for name in self.names])
        return self.values[index] + np.where(histogram, rounds * self.values[-1], 0.0)


def samples(recording: Recording) -> Samples:
    """All windows."""
    names: list[str] = []
    labels: list[dict[str, str]] = []
    for table in recording.schema.tables:
        for series in table.series:
            for subject in table.subjects:
                names.append(f"{_KINDS[table.kind]}_{series.name}")
                labels.append({"subject": subject.id.partition("/")[2]})
    scalars = np.asarray(
        [np.concatenate([block.ravel() for block in unpack_values(w, recording.schema)]) for w in recording.windows]
    )
    histograms = [_histograms(window, recording.schema) for window in recording.windows]
    keys = sorted(set().union(*histograms))
    columns = []
    for name, subject in keys:
        empty = np.zeros(len(BOUNDS) + 2)
        columns.append(np.cumsum([each.get((name, subject), empty) for each in histograms], axis=0))
        for bound in BOUNDS:
            names.append(f"instance_{name}_bucket")
            labels.append({"subject": subject, "le": "+Inf" if np.isinf(bound) else f"{bound:g}"})
        names += [f"instance_{name}_sum", f"instance_{name}_count"]
        labels += [{"subject": subject}, {"subject": subject}]
    return Samples(names, labels, np.concatenate([scalars, *columns], axis=1))


def _histograms(window: pb.Window, schema: pb.Schema) -> dict[tuple[str, str], NDArray[np.float64]]:
    out = {}
    for column in window.sketches:
        sketches = unpack_sketches(column, schema)
        for k, index in enumerate(sketches.subjects.tolist()):
            mine = sketches.owners == k
            middles, counts = MIDDLES_SECONDS[sketches.buckets[mine]], sketches.counts[mine]
            below = [float(counts[middles <= bound].sum()) for bound in BOUNDS]
            subject = schema.tables[column.table].subjects[index].id.partition("/")[2]
            out[column.name, subject] = np.asarray([*below, sketches.sums[k], below[-1]])
    return out
