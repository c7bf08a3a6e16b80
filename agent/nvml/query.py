"""One NVML call, or one field value, and the signals that it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trimtab.agent.nvml.library import Device, call, constant, fields
from trimtab.agent.registry import Signal

MEGAHERTZ = 1e6
Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Query:
    """One call, and what its answer says."""

    name: str
    signals: tuple[Signal, ...]
    values: Callable[[Any], tuple[float | None, ...]]
    """One a signal."""
    arguments: tuple[int, ...] = ()
    older: str = ""
    """The call's name in drivers that do not have it by this one, or by this one no more."""


@dataclass(frozen=True, slots=True)
class Field:
    """One field value, and the signal that it is."""

    name: str
    signal: Signal
    least: float = 0.0
    """What is below says nothing."""


def gauge(name: str, unit: str, text: str) -> Signal:
    """A signal of a GPU."""
    return Signal(name, unit, text, "gpu")


def one(scale: float = 1.0) -> Callable[[Any], tuple[float | None, ...]]:
    """The answer is one number, in another unit."""
    return lambda answer: (float(answer) * scale,)


def each(scale: float = 1.0) -> Callable[[Any], tuple[float | None, ...]]:
    """The answer is a list of such numbers."""
    return lambda answer: tuple(float(number) * scale for number in answer)


def ask(device: Device, queries: tuple[Query, ...], wanted: tuple[Field, ...]) -> Values:
    """What these calls and fields say, by signal, without what is not known. Raises Lost."""
    out: Values = {}
    for query in queries:
        answer = call(query.name, device.handle, *query.arguments)
        if answer is None and query.older:
            answer = call(query.older, device.handle, *query.arguments)
        if answer is None:
            continue
        for signal, value in zip(query.signals, query.values(answer), strict=True):
            if value is not None:
                out[signal.name] = value
    by_id = {(constant(field.name), 0): field for field in wanted}
    found = fields(device, tuple(by_id)).items()
    return out | {by_id[key].signal.name: value for key, value in found if key in by_id and value >= by_id[key].least}
