"""The growth curve as an SVG: cores and acknowledgement over the number of agents, both axes logarithmic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 640, 300, 60, 40, 50
_X = (10, 1000)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows have agents, cores and ack_p99_ms."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{2 * _WIDTH}" height="{_HEIGHT}" fill="white"/>',
        *_panel(0, "cores of the collector", [(r["agents"], r["cores"]) for r in rows], (0.01, 1.0)),
        *_panel(
            _WIDTH, "p99 from sent to acknowledged, ms", [(r["agents"], r["ack_p99_ms"]) for r in rows], (10, 1000)
        ),
        "</svg>\n",
    ]
    path.write_text("\n".join(parts))


def _panel(x0: int, title: str, points: Sequence[tuple[float, float]], y_range: tuple[float, float]) -> list[str]:
    def x(value: float) -> float:
        return x0 + _LEFT + (_WIDTH - _LEFT - 30) * math.log(value / _X[0]) / math.log(_X[1] / _X[0])

    def y(value: float) -> float:
        low, high = y_range
        height = _HEIGHT - _TOP - _BOTTOM
        return _HEIGHT - _BOTTOM - height * math.log(max(value, low) / low) / math.log(high / low)

    out = [f'<text x="{x0 + _LEFT}" y="24" font-weight="bold">{title}</text>']
    out += [
        f'<text x="{x(tick):.0f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick}</text>'
        for tick in (10, 30, 100, 300, 1000)
    ]
    decade = y_range[0]
    while decade <= y_range[1] * 1.001:
        out.append(
            f'<line x1="{x0 + _LEFT}" x2="{x0 + _WIDTH - 30}" y1="{y(decade):.1f}" y2="{y(decade):.1f}" stroke="#ddd"/>'
        )
        out.append(f'<text x="{x0 + _LEFT - 6}" y="{y(decade) + 4:.1f}" text-anchor="end">{decade:g}</text>')
        decade *= 10
    line = " ".join(f"{x(a):.1f},{y(v):.1f}" for a, v in points)
    out.append(f'<polyline points="{line}" fill="none" stroke="#1f77b4" stroke-width="2"/>')
    out += [f'<circle cx="{x(a):.1f}" cy="{y(v):.1f}" r="3.5" fill="#1f77b4"/>' for a, v in points]
    out += [f'<text x="{x(a):.1f}" y="{y(v) - 8:.1f}" text-anchor="middle">{v:.3g}</text>' for a, v in points]
    out.append(
        f'<text x="{x0 + _WIDTH / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">agents, a window a second each</text>'
    )
    return out
