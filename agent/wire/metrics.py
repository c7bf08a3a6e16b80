"""Metrics in Prometheus' text format and in OpenMetrics: read when they are scraped, and free otherwise."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

log = logging.getLogger(__name__)

SAMPLES_MAX = 256
"""Of one metric; there are far fewer collectors and probes."""

Values = float | Mapping[str, float]
"""One figure, or one for each value of its label. NaN is unknown, and left out."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric: its name lacks the prefix, and a counter's the suffix."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    read: Callable[[], Values]
    label: str = ""


class Metrics:
    """All figures of a service, whose names begin with `prefix`. A collector, in the sense of prometheus_client."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._figures: dict[str, Figure] = {}
        self._broken: set[str] = set()

    def add(self, *figures: Figure) -> None:
        """Have them told too. Raises ValueError for a name that is taken."""
        for figure in figures:
            if figure.name in self._figures:
                raise ValueError(f"there is a metric {figure.name} already")
            self._figures[figure.name] = figure

    def collect(self) -> Iterator[Metric]:
        """Every metric, read now. One that cannot be read has no samples."""
        for figure in self._figures.values():
            make = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
            family = make(self._prefix + figure.name, figure.help, labels=[figure.label] if figure.label else [])
            values = self._read(figure)
            samples = values.items() if isinstance(values, Mapping) else (("", values),)
            for label, value in islice(samples, SAMPLES_MAX):
                if not math.isnan(value):
                    family.add_metric([label] if figure.label else [], value)
            yield family

    def page(self, accept: str, query: str) -> tuple[str, Callable[[], bytes]]:
        """The format that an Accept header asks for, OpenMetrics or Prometheus' own: its content type, and what makes the page."""
        # The library's own choice repeats the version that the scraper names, whatever it is.
        media = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
        if "application/openmetrics-text" in media:
            return openmetrics.CONTENT_TYPE_LATEST, lambda: openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]
        return CONTENT_TYPE_PLAIN_0_0_4, lambda: generate_latest(self)

    def _read(self, figure: Figure) -> Values:
        try:
            return figure.read()
        except Exception as error:  # noqa: BLE001 - one figure must not take the others down
            if figure.name not in self._broken:
                self._broken.add(figure.name)
                log.warning(
                    "metric %s%s cannot be read: %s: %s", self._prefix, figure.name, type(error).__name__, error
                )
            return math.nan
