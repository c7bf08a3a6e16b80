"""What a question is about: which instances, and how far back."""

from __future__ import annotations

import datetime
from typing import Any, Protocol

from trimtab.agent.clock import Clock
from trimtab.collector.sql import QuestionError

SINCE_SECONDS_MAX = 366 * 86400.0
WITHIN = """
t.kind = 'instance' AND t.start >= $since AND ($instance = '' OR t.subject = $instance)
AND ($model = '' OR i.model = $model OR list_contains(string_split(i.model, ','), $model))
"""
"""Condition on a table t with `kind`, `subject` and `start`, joined with the view `instances` as i."""


class Scope(Protocol):
    """The part of a request that says it; empty: all instances."""

    instance: str
    model: str
    since_seconds: float


def parameters(request: Scope, clock: Clock) -> dict[str, Any]:
    """Those of `WITHIN`. Raises QuestionError."""
    if request.instance and request.model:
        raise QuestionError("an instance or a model, not both")
    if not 0 < request.since_seconds <= SINCE_SECONDS_MAX:  # NaN fails too
        raise QuestionError(f"since: {request.since_seconds} is not in (0, {SINCE_SECONDS_MAX:g}] seconds")
    since = datetime.datetime.fromtimestamp(clock.unix_ns() / 1e9 - request.since_seconds, datetime.UTC)
    return {"instance": request.instance, "model": request.model, "since": since.replace(tzinfo=None)}
