"""Policies: a fleet state in, wished-for weights out, one a file. A module that ends with `POLICY = TheClass` is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from trimtab.actuator.policy.base import Policy


def _discover() -> dict[str, Callable[[], Policy]]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = (getattr(importlib.import_module(f"{__name__}.{name}"), "POLICY", None) for name in names)
    return {policy.name: policy for policy in found if policy is not None}


POLICIES = _discover()
"""By the name that the settings give; each model gets one of its own."""
