"""The tables, for people, and the last line, for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tests.bench.routing_real.contestants import Contestant
from tests.bench.routing_real.record import Record
from tests.bench.routing_real.scenarios import SCENARIOS
from tests.bench.routing_real.score import Pairs, Part, figures
from tests.bench.spread import Estimate

HEAD = (
    "",
    "pairs",
    "mean, ms",
    "p50, ms",
    "p99, ms",
    "errors, %",
    "goodput /s",
    "p99 / best",
    "whole: mean, ms",
    "p99, ms",
    "errors, %",
    "p99 / best",
)
_FIGURES = (("mean_seconds", 1e3), ("p50_seconds", 1e3), ("p99_seconds", 1e3), ("error_ratio", 100), ("goodput", 1))
_WHOLE = (("mean_seconds", 1e3), ("p99_seconds", 1e3), ("error_ratio", 100))


def by_scenario(records: Sequence[Record]) -> dict[str, Pairs]:
    """Of the scenarios that were run, in the order of the tables."""
    run = {record.scenario for record in records}
    return {name: Pairs(name, records) for name in SCENARIOS if name in run}


def rows(pairs: Pairs, contestants: Mapping[str, Contestant]) -> list[tuple[str, ...]]:
    """A row a contestant that has run, in their order."""
    return [_row(pairs, name) for name in contestants if name in pairs.contestants]


def table(pairs: Pairs, contestants: Mapping[str, Contestant]) -> Table:
    """For a terminal."""
    made = Table(title=title(pairs), title_justify="left", caption=_best(pairs), caption_justify="left")
    for number, head in enumerate(HEAD):
        made.add_column(head, justify="right" if number else "left")
    for row in rows(pairs, contestants):
        made.add_row(*row, style="bold" if contestants[row[0]].policy else None)
    return made


def markdown(pairs: Pairs, contestants: Mapping[str, Contestant]) -> str:
    """For docs/routing-measured.md."""
    lines = [HEAD, ("---",) * len(HEAD), *rows(pairs, contestants)]
    return "\n".join([f"**{title(pairs)}**", "", *(f"| {' | '.join(line)} |" for line in lines), "", _best(pairs)])


def title(pairs: Pairs) -> str:
    scenario = SCENARIOS[pairs.scenario]
    slo = f"goodput: within {scenario.slo_seconds * 1e3:.0f} ms"
    return f"{pairs.scenario}: {scenario.description}; {scenario.requests_per_second:g} requests/s; {slo}"


def summary(records: Sequence[Record], contestants: Mapping[str, Contestant]) -> dict[str, Any]:
    """All of it. What is not known is None. The figures on top are of the first trimtab that has run; settled, unless said otherwise."""
    pairs = by_scenario(records)
    run = {record.contestant for record in records}
    steering = [name for name, one in contestants.items() if one.policy and name in run]
    told = {name: {part: _figures(pairs, name, part) for part in ("settled", "whole")} for name in steering}
    first = told[steering[0]]["settled"] if steering else {}
    return {
        **{name: figure["value"] for name, figure in first.items()},
        "contestant": steering[0] if steering else None,
        "pairs": {name: {who: one.count(who) for who in one.contestants} for name, one in pairs.items()},
        "figures": told,
        "scenarios": {name: _scenario(one, contestants) for name, one in pairs.items()},
        "lag_p99_ms": max((r.whole.lag_p99_seconds or 0 for r in records), default=0) * 1e3,
    }


def progress(record: Record) -> str:
    """One run, in a line."""
    settled, whole = (
        "/".join(_milliseconds(v) for v in (s.mean_seconds, s.p99_seconds)) for s in (record.settled, record.whole)
    )
    weights = f"; weights {' '.join(map(str, record.weights.values()))}" if record.weights else ""
    errors = f"{100 * record.settled.error_ratio:.1f}" if record.settled.error_ratio is not None else "–"
    return f"mean/p99 {settled} ms settled, {whole} in all; errors {errors} %{weights}"


def _row(pairs: Pairs, name: str) -> tuple[str, ...]:
    cells = [_estimate(pairs.mean(name, figure, "settled"), factor) for figure, factor in _FIGURES]
    whole = [_estimate(pairs.mean(name, figure, "whole"), factor) for figure, factor in _WHOLE]
    return (
        name,
        str(pairs.count(name)),
        *cells,
        _vs_best(pairs, name, "settled"),
        *whole,
        _vs_best(pairs, name, "whole"),
    )


def _vs_best(pairs: Pairs, name: str, part: Part) -> str:
    best = pairs.best_classical(part)
    return _estimate(pairs.ratio(name, best, "p99_seconds", part), 1, 2) if best and best != name else "–"


def _best(pairs: Pairs) -> str:
    return (
        f"best without trimtab: {pairs.best_classical('settled')} when settled, {pairs.best_classical('whole')} in all"
    )


def _estimate(estimate: Estimate, factor: float, digits: int | None = None) -> str:
    if math.isnan(estimate.value):
        return "–"
    scaled = [x * factor for x in (estimate.value, estimate.low, estimate.high)]
    places = digits if digits is not None else 1 if scaled[0] < 10 else 0
    value, low, high = (f"{x:.{places}f}" for x in scaled)
    return value if low == high else f"{value} ({low}–{high})"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.0f}"


def _figures(pairs: Mapping[str, Pairs], name: str, part: Part) -> dict[str, Any]:
    return {figure: _plain(one) for figure, one in figures(pairs, name, name.rpartition("/")[2], part).items()}


def _scenario(pairs: Pairs, contestants: Mapping[str, Contestant]) -> dict[str, Any]:
    parts: tuple[Part, ...] = ("settled", "whole")
    return {
        "best_classical": {part: pairs.best_classical(part) for part in parts},
        **{
            who: {part: {figure: _plain(pairs.mean(who, figure, part)) for figure, _ in _FIGURES} for part in parts}
            for who in contestants
            if who in pairs.contestants
        },
    }


def _plain(estimate: Estimate) -> dict[str, float | None]:
    values = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {name: round(value, 6) if math.isfinite(value) else None for name, value in values.items()}
