"""The agent, put together: collectors → loop → spool → publisher."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from trimtab import Exit, TrimtabError, __version__
from trimtab.agent.clock import Clock
from trimtab.agent.collectors.own import Own, Vitals
from trimtab.agent.collectors.talkers import Talkers
from trimtab.agent.figures import PREFIX, figures_of
from trimtab.agent.instances import Discovery
from trimtab.agent.loop import Loop
from trimtab.agent.probes import Probes
from trimtab.agent.publish import Publisher
from trimtab.agent.registry import Collector, Host, discover
from trimtab.agent.settings import AgentSettings, Tls, default_node
from trimtab.agent.spool import Spool
from trimtab.agent.window import Builder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import PROTOCOL, Malformed, check_labels, check_node_name
from trimtab.agent.wire.exposition import PATH, serve
from trimtab.agent.wire.metrics import Metrics
from trimtab.agent.wire.places import check_places

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0


def run(
    settings: AgentSettings,
    tls: Tls,
    state: Path,
    clock: Clock,
    stop: threading.Event,
    beat: Callable[[], None],
) -> None:
    """Sample this host until `stop` is set. Calls `beat` when a window is in the spool, for each.

    Raises TrimtabError for settings, or a state directory, that cannot work.
    """
    node = settings.node or default_node()
    _check(node, settings.labels)
    vitals = Vitals()
    disable = settings.disable if settings.talkers else (*settings.disable, Talkers.name)
    collectors = _enabled(disable, vitals)
    spool = Spool(state / "spool", settings.spool_bytes_max, vitals, settings.spool_age_seconds_max, clock)
    probes = Probes(settings.sampling_probability)
    metrics = Metrics(PREFIX)
    metrics.add(*figures_of(vitals, spool, probes, clock, settings.spool_bytes_max))
    page = None

    def hello() -> pb.Hello:
        return _hello(node, settings.labels, spool, clock)

    def keep(schema: pb.Schema, window: pb.Window) -> None:
        spool.append(schema, window)
        beat()

    try:
        publisher = Publisher(
            target=settings.collector,
            tls=tls,
            spool=spool,
            hello=hello,
            refused=state / "refused",
            clock=clock,
            rng=random.Random(),  # noqa: S311 - spreads reconnections, keeps no secret
            vitals=vitals,
        )
        loop = Loop(
            collectors=collectors,
            find=Discovery(node).find,
            host=Host(node, clock, probes, settings.budget_cores),
            window_seconds=settings.window_seconds,
            builder=Builder(node, settings.labels, collectors, vitals),
            keep=keep,
            vitals=vitals,
        )
        page = serve(settings.metrics_listen, {PATH: metrics.page}, clock, "agent.metrics_listen")
        publisher.start()
        try:
            loop.run(stop)
            loop.say_goodbye()
        finally:
            loop.close(_CLOSE_SECONDS)
            publisher.close(_CLOSE_SECONDS)
    finally:
        if page:
            page.close()
        spool.close()


def _check(node: str, labels: dict[str, str]) -> None:
    """What the collector would refuse."""
    try:
        check_node_name("agent.node", node)
    except Malformed as error:
        raise TrimtabError(f"{error}; set agent.node, which stands for the host name", Exit.SETTINGS) from error
    try:
        check_labels("agent.labels", labels)
        check_places("agent.labels", labels)
    except Malformed as error:
        raise TrimtabError(f"{error}; set fewer or shorter ones", Exit.SETTINGS) from error


def _enabled(disable: Sequence[str], vitals: Vitals) -> list[Collector]:
    known = {collector.name: collector for collector in discover()}
    unknown = sorted(set(disable) - set(known))
    if unknown:
        message = f"agent.disable: no collector is called {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        raise TrimtabError(message, Exit.SETTINGS)
    enabled = [collector for name, collector in known.items() if name not in disable]
    return [Own(vitals) if collector is Own else collector() for collector in enabled]


def _hello(node: str, labels: dict[str, str], spool: Spool, clock: Clock) -> pb.Hello:
    return pb.Hello(
        protocol=PROTOCOL,
        node=node,
        machine_id=_text("/etc/machine-id"),
        boot_id=_text("/proc/sys/kernel/random/boot_id"),
        spool_id=spool.id,
        agent_version=__version__,
        first_seq=spool.first_seq,
        labels=labels,
        # Last, so that they are as fresh as can be, and one right after the other.
        unix_ns=clock.unix_ns(),
        boottime_ns=clock.boottime_ns(),
    )


def _text(path: str) -> str:
    """The file's text; empty where this host has none."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
