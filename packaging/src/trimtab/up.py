"""`trimtab up`: agent, collector and actuator on this machine, each a process of its own, started again when it dies."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click

from trimtab import Exit, TrimtabError
from trimtab.agent.settings import state_dir
from trimtab.settings import Settings

log = logging.getLogger("trimtab.up")

SERVICES = ("collector", "agent", "actuator")
# What a restart cannot mend: the person has to.
_FINAL = {Exit.USAGE, Exit.SETTINGS, Exit.LISTEN, Exit.STATE}
_BACKOFF_SECONDS_MAX = 30.0
_HEALTHY_SECONDS = 60.0
_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1


@dataclass
class _Child:
    service: str
    command: list[str]
    process: subprocess.Popen[bytes]
    started: float
    backoff_seconds: float = 1.0
    restart_at: float | None = None


@click.command()
@click.option("--state", type=click.Path(path_type=Path, file_okay=False), help="State directory.")
@click.pass_context
def up(ctx: click.Context, state: Path | None) -> None:
    """Run agent, collector and actuator on this machine."""
    settings: Settings = ctx.obj
    directory = state_dir(state)
    root = ctx.find_root().params
    base = [sys.executable, "-m", "trimtab"]
    base += ["--config", str(root["config"])] if root.get("config") else []
    base += ["--verbose"] if root.get("verbose") else []
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    log.info(
        "collector on %s, routing feed on %s, state in %s; ask with `trimtab incidents`, `nodes`, `weights`",
        settings.collector.listen,
        settings.actuator.listen,
        directory,
    )
    children = [_start(service, [*base, service, "--state", str(directory)]) for service in SERVICES]
    try:
        _supervise(children, stop)
    finally:
        _stop(children)


def _start(service: str, command: list[str]) -> _Child:
    process = subprocess.Popen(command, preexec_fn=_die_with_parent, stdin=subprocess.DEVNULL)  # noqa: S603, PLW1509
    return _Child(service, command, process, time.monotonic())


def _die_with_parent() -> None:
    """Runs in the child: a supervisor that is killed takes its services along, orderly."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A terminal's Ctrl-C is for the supervisor; it stops the services in order.
    os.setpgid(0, 0)


def _supervise(children: list[_Child], stop: threading.Event) -> None:
    while not stop.wait(0.2):
        now = time.monotonic()
        for child in children:
            if child.restart_at is None:
                _notice_death(child, now)
            elif now >= child.restart_at:
                fresh = _start(child.service, child.command)
                child.process, child.started, child.restart_at = fresh.process, fresh.started, None


def _notice_death(child: _Child, now: float) -> None:
    code = child.process.poll()
    if code is None:
        return
    if code in _FINAL:
        raise TrimtabError(f"{child.service} cannot run; its message is above", Exit(code))
    if now - child.started > _HEALTHY_SECONDS:
        child.backoff_seconds = 1.0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log.warning("%s %s; starting it again in %.0f s", child.service, how, child.backoff_seconds)
    child.restart_at = now + child.backoff_seconds
    child.backoff_seconds = min(child.backoff_seconds * 2, _BACKOFF_SECONDS_MAX)


def _stop(children: list[_Child]) -> None:
    """The actuator first, while the collector can still take its last word; then what feeds it."""
    for child in sorted(children, key=lambda c: ("actuator", "agent", "collector").index(c.service)):
        if child.process.poll() is None:
            child.process.terminate()
            try:
                child.process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                log.warning("%s did not stop within %.0f s: killed", child.service, _STOP_SECONDS)
                child.process.kill()
                child.process.wait()
