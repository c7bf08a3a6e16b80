"""`trimtab agent`, `collector` and `actuator`: each floor's service, run until it is told to stop."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from trimtab.agent.clock import SystemClock
from trimtab.agent.settings import state_dir
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

    run(settings.agent, settings.tls, _below(state, "agent"), SystemClock(), _until_told(), _ready("agent"))


@click.command()
@_state
@click.pass_obj
def collector(settings: Settings, state: Path | None) -> None:
    """Keep the windows of every agent, find incidents, answer questions."""
    from trimtab.collector.server import run  # noqa: PLC0415
    from trimtab.detector.watch import Watch  # noqa: PLC0415
    from trimtab.rootcause.rank import Ranking  # noqa: PLC0415

    watch = Watch(settings.detector, Ranking(), settings.rootcause.history_seconds)
    stop, ready = _until_told(), _ready("collector")
    run(settings.collector, settings.tls, _below(state, "collector"), SystemClock(), watch, stop, ready)


@click.command()
@_state
@click.pass_obj
def actuator(settings: Settings, state: Path | None) -> None:
    """Follow the collector, and move the balancers' weights within the guard."""
    from trimtab.actuator.server import run  # noqa: PLC0415

    # Agent and actuator of one host go by one name, or the actuator would not know this host's loopback addresses for its own.
    own = msgspec.structs.replace(settings.actuator, node=settings.actuator.node or settings.agent.node)
    run(own, settings.tls, _below(state, "actuator"), SystemClock(), _until_told(), _ready("actuator"))


def _below(state: Path | None, service: str) -> Path:
    return state_dir(state_dir(state) / service)


def _until_told() -> threading.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _ready(service: str) -> Callable[[], None]:
    """Says, once, that the service works: in the log, and to systemd where it is the one that asked (sd_notify(3))."""

    def ready() -> None:
        log.info("%s is ready", service)
        address = os.environ.get("NOTIFY_SOCKET")
        if address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.connect("\0" + address[1:] if address.startswith("@") else address)
                notify.sendall(b"READY=1")

    return ready
