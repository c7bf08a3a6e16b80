"""The newest fingerprint of every subject as Prometheus' text: an existing Prometheus and Grafana see what trimtab sees.

A gauge or a rate is `trimtab_KIND_SIGNAL`. A distribution is `trimtab_KIND_SIGNAL_count`, `_mean` and, with a label `quantile`,
`trimtab_KIND_SIGNAL`: those of the last window. Each sample has the time of its window, so that a silent node goes stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs

import numpy as np

from trimtab.agent.clock import Clock
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import Malformed, Sketches
from trimtab.agent.wire.exposition import Wrong
from trimtab.collector.latest import Latest
from trimtab.collector.packed import SketchList
from trimtab.collector.series import KINDS
from trimtab.collector.window import Window

PATH = "/federate"
SERIES_MAX = 500_000
STALE_SECONDS = 30.0
"""A node that has been silent for longer is left out."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FILTERS = ("kind", "node", "signal")
_PARTS = ("_count", "_mean", 'quantile="0.5"', 'quantile="0.95"', 'quantile="0.99"')
_SHOWN = ("model", "runtime")
"""Labels of a subject that are shown with it, beside its node and its own name."""
_SHAPES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """Each is empty for all."""

    kind: str
    node: str
    signal: str


class Federation:
    """Renders the page."""

    def __init__(self, latest: Latest, clock: Clock) -> None:
        self._latest = latest
        self._clock = clock
        self._labels: dict[tuple[str, bytes], list[list[str]]] = {}
        self.cut = 0
        """Series that the last page had no room for."""

    def page(self, accept: str, query: str) -> tuple[str, Callable[[], bytes]]:
        """See `trimtab.agent.wire.exposition.Page`."""
        given = parse_qs(query, keep_blank_values=True, max_num_fields=16)
        strange = sorted(given.keys() - set(_FILTERS))
        if strange:
            raise Wrong(f"{strange[0]}: not known here; filter by {', '.join(_FILTERS)}")
        wanted = Wanted(*(given.get(name, [""])[-1] for name in _FILTERS))
        return CONTENT_TYPE, lambda: self._render(wanted)

    def _render(self, wanted: Wanted) -> bytes:
        lines: list[str] = []
        windows = self._latest.windows(self._clock.unix_ns() - int(STALE_SECONDS * 1e9))
        cut = 0
        for window in windows:
            if wanted.node in {"", window.node}:
                lines += self._lines(window, wanted)
            if len(lines) > SERIES_MAX:
                cut += len(lines) - SERIES_MAX
                del lines[SERIES_MAX:]
        self.cut = cut
        if cut:
            lines.append(f"# cut off: at most {SERIES_MAX} series; {cut} are left out: filter by {', '.join(_FILTERS)}")
        return ("\n".join(lines) + "\n").encode()

    def _lines(self, window: Window, wanted: Wanted) -> Iterator[str]:
        stamp = (window.start_unix_ns + window.duration_ns) // 10**6
        labels = self._labels_of(window)
        try:
            blocks, sketches = window.values, window.sketches
        except Malformed:  # it was checked when it was stored
            return
        for t, (table, block) in enumerate(zip(window.schema.tables, blocks, strict=True)):
            kind = KINDS[table.kind]
            if wanted.kind not in {"", kind}:
                continue
            for series, values in zip(table.series, block.tolist(), strict=True):
                if wanted.signal in {"", series.name}:
                    name = f"trimtab_{kind}_{series.name}"
                    yield from (
                        f"{name}{{{of}}} {value!r} {stamp}"
                        for of, value in zip(labels[t], values, strict=True)
                        if value == value  # NaN is unknown  # noqa: PLR0124
                    )
            for found in sketches:
                if found.table == t and wanted.signal in {"", found.name}:
                    yield from _sketch_lines(f"trimtab_{kind}_{found.name}", found, labels[t], stamp)

    def _labels_of(self, window: Window) -> list[list[str]]:
        """Of each table, the text of the labels of each subject."""
        key = window.node, window.schema.hash
        if key not in self._labels:
            if len(self._labels) >= _SHAPES_MAX:
                self._labels.clear()
            self._labels[key] = [[_text(window.node, s) for s in table.subjects] for table in window.schema.tables]
        return self._labels[key]


def _sketch_lines(name: str, found: Sketches, labels: list[str], stamp: int) -> Iterator[str]:
    offsets = np.searchsorted(found.owners, np.arange(len(found.subjects) + 1))
    listed = SketchList(offsets, found.buckets.copy(), found.counts.copy(), found.probabilities.copy())
    for part, values in zip(_PARTS, listed.summary(found.sums.copy()).tolist(), strict=True):
        for subject, value in zip(found.subjects.tolist(), values, strict=True):
            if value == value:  # noqa: PLR0124
                if part.startswith("_"):
                    yield f"{name}{part}{{{labels[subject]}}} {value!r} {stamp}"
                else:
                    yield f"{name}{{{labels[subject]},{part}}} {value!r} {stamp}"


def _text(node: str, subject: pb.Subject) -> str:
    shown = {"node": node, "subject": subject.id, **{n: subject.labels[n] for n in _SHOWN if subject.labels.get(n)}}
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in shown.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
