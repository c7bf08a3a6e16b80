"""What of the agent works on this host: every collector is opened for a moment, and instances are looked for."""

from __future__ import annotations

from contextlib import ExitStack

from trimtab import Check
from trimtab.agent.bpf.capability import what_is_missing
from trimtab.agent.clock import SystemClock
from trimtab.agent.instances import Discovery
from trimtab.agent.registry import Collector, Host, Unavailable, discover
from trimtab.agent.settings import default_node


def checks() -> list[Check]:
    """eBPF in detail, every collector, and the serving instances found."""
    host = Host(default_node(), SystemClock())
    # All are opened before the first is closed: some share a program that takes a second to compile.
    with ExitStack() as opened:
        return [*what_is_missing(), *(_opens(collector(), host, opened) for collector in discover()), _instances(host)]


def _opens(collector: Collector, host: Host, opened: ExitStack) -> Check:
    name = f"signals: {collector.name}"
    try:
        collector.open(host)
    except Unavailable as why:
        return Check(name, False if why.remedy else None, f"unknown: {why.reason}", why.remedy)
    opened.callback(collector.close)
    return Check(name, True, ", ".join(sorted({signal.kind for signal in collector.signals})))


def _instances(host: Host) -> Check:
    found = Discovery(host.node).find(host.clock.monotonic())
    if found:
        return Check(
            "serving instances", True, ", ".join(f"{i.id} ({i.runtime}: {i.model or 'no model'})" for i in found)
        )
    remedy = "start TorchServe, Triton or vLLM, or run as a user who may read the other processes' /proc"
    return Check("serving instances", None, "none found on this host", remedy)
