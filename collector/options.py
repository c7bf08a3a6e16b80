"""Options that several commands have."""

from __future__ import annotations

import re
from typing import Any

import click

SHOWN_MAX = 40
"""Most rows of a table for people, unless they ask for all: what fits a screen."""
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType[float]):
    """Seconds, written as "90s", "10m", "2h" or "1d"."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*(s|m|min|h|d)", str(value).strip())
        if not found or not float(found[1]):
            self.fail(f"{value!r} is no duration such as 90s, 10m, 2h or 1d", param, ctx)
        return float(found[1]) * _UNITS[found[2]]


def not_both(instance: str, model: str) -> None:
    """Raises UsageError where somebody asks for an instance and for those of a model."""
    if instance and model:
        raise click.UsageError("give an instance or --model, not both")


instance = click.argument("instance", required=False, default="")
model = click.option("--model", default="", help="All instances that serve this model.")
since = click.option(
    "--since", type=Duration(), default="10m", show_default=True, help="How far back: 90s, 10m, 2h, 1d."
)
collector = click.option(
    "--collector", metavar="HOST:PORT", help="Where the collector listens.  [default: the settings']"
)
