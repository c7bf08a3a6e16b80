"""`trimtab agent`, `collector` and `actuator`: each floor's service, run until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import state_dir
from trimtab.notify import Notify
from trimtab.settings import Settings

log = logging.getLogger("trimtab")

_state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    help="State directory.  [default: /var/lib/trimtab for root]",
)


@click.command()
@_state
@click.pass_obj
def agent(settings: Settings, state: Path | None) -> None:
    """Sample this host, and send what it sees to the collector."""
    from trimtab.agent.service import run  # noqa: PLC0415 - each host imports only what it runs

    notify = Notify(os.environ)
    notify.expect(settings.agent.window_seconds)
    own = settings.agent
    status = f"a window every {own.window_seconds:g} s, to the collector at {own.collector}"
    stop, beat = _until_told(notify), _beat(notify, "agent", status)
    # It lives without a disk, if need be: a host whose disk has failed is one to look at.
    run(own, settings.tls, _own(state, "agent", required=False), SystemClock(), stop, beat)


@click.command()
@_state
@click.pass_obj
def collector(settings: Settings, state: Path | None) -> None:
    """Keep the windows of every agent, find incidents, answer questions."""
    from trimtab.analysis import command  # noqa: PLC0415
    from trimtab.collector.analysis import Apart  # noqa: PLC0415
    from trimtab.collector.server import run  # noqa: PLC0415
    from trimtab.detector.page import pages  # noqa: PLC0415

    notify, own = Notify(os.environ), settings.collector
    stop, beat = _until_told(notify), _beat(notify, "collector", f"listens on {own.listen}")
    run(own, settings.tls, _own(state, "collector"), SystemClock(), Apart(command(settings)), stop, beat, pages)


@click.command()
@_state
@click.pass_obj
def actuator(settings: Settings, state: Path | None) -> None:
    """Follow the collector, and move the balancers' weights within the guard."""
    from trimtab.actuator.server import run  # noqa: PLC0415

    notify = Notify(os.environ)
    # Agent and actuator of one host go by one name, or the actuator would not know this host's loopback addresses for its own.
    own = msgspec.structs.replace(settings.actuator, node=settings.actuator.node or settings.agent.node)
    status = f"mode {own.mode}; follows the collector at {own.collector}, serves weights on {own.listen}"
    stop, beat = _until_told(notify), _beat(notify, "actuator", status)
    run(own, settings.tls, _own(state, "actuator"), SystemClock(), stop, beat)


def _own(state: Path | None, service: str, required: bool = True) -> Path:
    """The service's own directory: systemd's StateDirectory= as it is, for its parent is not ours; else one below the state directory."""
    if state is None and os.environ.get("STATE_DIRECTORY"):
        return state_dir(None, required)
    return state_dir(state_dir(state, required) / service, required)


def _until_told(notify: Notify) -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()

    def told(*_: object) -> None:
        notify.stopping()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, told)
    return stop


def _beat(notify: Notify, service: str, status: str) -> Callable[[], None]:
    """Tells systemd of each beat of the service's heart, and once `status`; and the log, once, that it is ready."""

    def beat() -> None:
        if notify.beat(status):
            log.info("%s is ready", service)

    return beat
