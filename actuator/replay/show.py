"""How a replay is shown: a table for people, plain objects for programs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from trimtab.actuator.replay.fidelity import DIFFERENCE_MAX, Figure
from trimtab.actuator.replay.play import AS_IT_WAS
from trimtab.actuator.replay.run import Result
from trimtab.actuator.replay.scene import Scene
from trimtab.actuator.replay.verdict import Interval, Row
from trimtab.collector.node_tables import printable
from trimtab.detector.quantity import quantity
from trimtab.detector.when import clock

SURE_MAX = 1.1
"""Bounds that are closer together than this are not shown."""


def page(scene: Scene, result: Result, balancers: str, seeds: int) -> RenderableType:
    """Everything, for a terminal."""
    return Group(
        Text(_head(scene, balancers, seeds)),
        Text(),
        _table(scene, result.rows),
        Text(),
        Text(_answer(result.rows), style="bold"),
        *_fidelity(result.fidelity),
        Text("assumed:", style="dim"),
        *(Text(f"- {printable(one)}", style="dim") for one in scene.assumptions),
    )


def as_object(scene: Scene, result: Result, balancer: str, balancers: int, seeds: int) -> dict[str, Any]:
    """JSON; null for what is unknown. Differences are to "as it was"."""
    recording = scene.recording
    told = {
        "incident": asdict(recording.incident),
        "instances": list(recording.instances),
        "subjects": [recording.instances[k] for k in recording.subjects],
        "begin_unix_ns": recording.origin_unix_ns,
        "onset_second": scene.onset_second,
        "seconds": scene.seconds,
        "requests": int(scene.arrivals.sum()),
        "balancer": balancer,
        "balancers": balancers,
        "seeds": seeds,
        "policies": [asdict(row) for row in result.rows],
        "fidelity": [asdict(figure) | {"differs": figure.differs} for figure in result.fidelity],
        "assumptions": list(scene.assumptions),
    }
    found: dict[str, Any] = _known(told)
    return found


def _head(scene: Scene, balancers: str, seeds: int) -> str:
    recording, incident = scene.recording, scene.recording.incident
    told = (incident.opened_unix_ns - incident.since_unix_ns) / 1e9
    after = scene.seconds - scene.onset_second
    fleet = f"{scene.arrivals.sum():,} requests to {len(recording.instances)} instances"
    lines = [
        f"incident {incident.id}: {incident.subject}, {incident.mechanism or 'cause unknown'}",
        f"since {clock(incident.since_unix_ns)}, told after {quantity(told, 's')}",
        f"replayed: {scene.onset_second} s before it and {after} s of it, {fleet}, {balancers}, {seeds} seeds",
    ]
    return printable("\n".join(lines))


def _table(scene: Scene, rows: list[Row]) -> Table:
    out = Table(header_style="bold", box=None, pad_edge=False)
    out.add_column("policy", no_wrap=True)
    for name in ("mean", "p99", "users hit", "than it was", "errors", "did at"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("lowest")
    best = min(rows, key=lambda row: row.hit.mean)
    for row in rows:
        style = "green" if row is best and _better(row) else "dim" if row.policy == AS_IT_WAS else ""
        did = math.isfinite(row.first_change_seconds)
        out.add_row(
            row.policy,
            quantity(row.mean_seconds.mean, "s"),
            quantity(row.p99_seconds.mean, "s"),
            _interval(row.hit),
            "–" if row.policy == AS_IT_WAS else _interval(row.hit_more, signed=True),
            _interval(row.errors),
            f"{row.first_change_seconds:+.0f} s" if did else "–",
            _lowest(scene, row),
            style=style,
        )
    return out


def _lowest(scene: Scene, row: Row) -> str:
    """Whose it is only where it is not the incident's instance."""
    if row.lowest_weight == 1:
        return "–"
    subjects = [scene.recording.instances[k] for k in scene.recording.subjects]
    whose = "" if subjects == [row.lowest_instance] else f" {printable(row.lowest_instance)}"
    return f"{row.lowest_weight:.3f}{whose}"


def _answer(rows: list[Row]) -> str:
    """In one line: whether anything would have been better than what was done."""
    best = min(rows, key=lambda row: row.hit.mean)
    if not _better(best):
        return "Nothing here would have hit fewer users than what was done, beyond chance."
    less = _interval(Interval(-best.hit_more.mean, best.hit_more.half))
    return f"Best: {best.policy}. It would have spared {less} of {best.requests:,.0f} requests."


def _better(row: Row) -> bool:
    half = row.hit_more.half
    return row.policy != AS_IT_WAS and row.hit_more.mean + (0 if math.isnan(half) else half) < 0


def _fidelity(figures: list[Figure]) -> Iterator[Text]:
    yield Text("as it was, simulated (recorded): " + ", ".join(_figure(f) for f in figures))
    off = [_name(f) for f in figures if f.differs]
    if off:
        far = f"more than {DIFFERENCE_MAX:.0%} from what was recorded: {', '.join(off)}"
        yield Text(f"{far}. Trust the order of the policies, not the numbers", style="yellow")


def _figure(figure: Figure) -> str:
    recorded = _value(figure, figure.recorded)
    wide = not figure.high <= figure.low * SURE_MAX
    if wide and figure.recorded > 0:
        recorded += f", sampled: {_value(figure, figure.low, '?')} to {_value(figure, figure.high, '?')}"
    return f"{_name(figure)} {_value(figure, figure.simulated)} ({recorded})"


def _value(figure: Figure, value: float, unknown: str = "–") -> str:
    if math.isnan(value):
        return unknown
    return quantity(value, "s") if figure.unit == "s" else f"{value:.1%}"


def _name(figure: Figure) -> str:
    return "share of the traffic" if figure.name == "share" else figure.name


def _interval(interval: Interval, signed: bool = False) -> str:
    sign = "+" if signed and interval.mean > 0 else ""
    mean = f"{sign}{interval.mean:,.0f}".replace("-", "−")
    return mean if math.isnan(interval.half) or round(interval.half) == 0 else f"{mean} ± {interval.half:,.0f}"


def _known(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
