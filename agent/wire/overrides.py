"""What collector and actuator agree on about weights that people set: for how long they hold, and whom they are about."""

from __future__ import annotations

from collections.abc import Iterable

from trimtab.agent.wire import query_pb2 as pb

OVERRIDES_MAX = 1024
"""Most that are in force at once."""
MODEL = "model "
"""Begins a target that is a model."""


def in_force(overrides: Iterable[pb.Override], unix_ns: int) -> list[pb.Override]:
    """Those that have not ended."""
    return [one for one in overrides if not 0 < one.until_unix_ns <= unix_ns]


def about(target: str, instance: str, model: str) -> bool:
    """Whether the target is this instance, one of the models that it serves, or all instances."""
    if target.startswith(MODEL):
        wanted = target.removeprefix(MODEL)
        return wanted == model or wanted in model.split(",")
    return target in {"", instance}


def brief(override: pb.Override) -> pb.Override:
    """Without the weights that it holds: for who looks at it."""
    out = pb.Override()
    out.CopyFrom(override)
    out.ClearField("frozen")
    return out
