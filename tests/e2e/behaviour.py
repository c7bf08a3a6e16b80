"""What the simulated model of an instance does: how slow it is, and how often it fails at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from tests.e2e.fleet import Instance


@dataclass(frozen=True, slots=True)
class Behaviour:
    """By default it is well."""

    slowdown: float = 1.0
    """Times what the model takes."""
    error_ratio: float = 0.0
    """Share of requests that fail, in no time."""


WELL = Behaviour()


def behave(instance: Instance, behaviour: Behaviour) -> None:
    """From the next batch on."""
    new = instance.behaviour.with_suffix(".new")
    new.write_text(json.dumps(asdict(behaviour)))
    new.rename(instance.behaviour)


@contextmanager
def behaving(instance: Instance, behaviour: Behaviour) -> Iterator[None]:
    """Until the way out; then it is well."""
    behave(instance, behaviour)
    try:
        yield
    finally:
        behave(instance, WELL)
