"""What a question is about: which instances, and how far back."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, Protocol

from trimtab.agent.clock import Clock
from trimtab.collector.sql import QuestionError

_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - all times of the store are UTC, without a zone
SINCE_SECONDS_MAX = 366 * 86400.0
WITHIN = """
($instance = '' OR i.instance = $instance)
AND ($model = '' OR i.model = $model OR list_contains(string_split(i.model, ','), $model))
"""
"""Condition on the view `instances` as i."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, checked."""

    scope: dict[str, Any]
    """Parameters of `WITHIN`."""
    since: datetime.datetime
    """UTC, without a zone."""


class Scope(Protocol):
    """The part of a request that says it; empty: all instances."""

    instance: str
    model: str
    since_seconds: float


def parameters(request: Scope, clock: Clock) -> Wanted:
    """Raises QuestionError."""
    if request.instance and request.model:
        raise QuestionError("an instance or a model, not both")
    if not 0 < request.since_seconds <= SINCE_SECONDS_MAX:  # NaN fails too
        raise QuestionError(f"since: {request.since_seconds} is not in (0, {SINCE_SECONDS_MAX:g}] seconds")
    since = datetime.datetime.fromtimestamp(clock.unix_ns() / 1e9 - request.since_seconds, datetime.UTC)
    return Wanted({"instance": request.instance, "model": request.model}, since.replace(tzinfo=None))


def utc(unix_ns: int) -> datetime.datetime:
    """As the store has times: whole microseconds, without a zone."""
    return _EPOCH + datetime.timedelta(microseconds=unix_ns // 1000)
