"""`trimtab actuator`: once a second it hears, decides, publishes and records, until it is told to stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from trimtab.actuator.deadman import DeadMan, restore
from trimtab.actuator.follower import Follower
from trimtab.actuator.link import Link
from trimtab.actuator.pilot import Decided, Pilot
from trimtab.actuator.seen import seen
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.snapshot import IDLE, Cache, Snapshot, Target
from trimtab.actuator.targets.discovery import SOCKETS_MAX, Finder
from trimtab.actuator.targets.feed import Feed
from trimtab.actuator.targets.haproxy import HAProxy
from trimtab.actuator.targets.ledger import Ledger
from trimtab.actuator.targets.relay import relays
from trimtab.agent.clock import Clock
from trimtab.agent.settings import Tls, default_node
from trimtab.agent.wire import query_pb2 as pb
from trimtab.agent.wire.overrides import brief

STEP_SECONDS = 1.0
_RECORD_SECONDS = 10.0
SEEN_INSTANCES_PER_SECOND = 20
"""What the policies saw is recorded so often that no more than this is stored: with each decision of a small fleet."""
_LET_GO_SECONDS = 3.0
_NAMED_MAX = 3

log = logging.getLogger("trimtab.actuator")


def run(
    settings: ActuatorSettings, tls: Tls, state: Path, clock: Clock, stop: threading.Event, beat: Callable[[], None]
) -> None:
    """Steer until `stop`. `state` is a directory that is ours. Raises TrimtabError when it cannot start.

    Starts from neutral weights, and leaves neutral weights behind. Calls `beat` after every decision.
    """
    ledger_path = state / "steered.json"
    ledger = Ledger(ledger_path)
    cache = Cache()
    asked = relays(settings, tls, state)
    with ExitStack() as stack:
        feed = Feed(cache, f"{clock.unix_ns():x}")
        stack.callback(feed.close)
        feed.start(settings.listen, tls)
        link = Link(settings.collector, tls, clock)
        stack.callback(link.close)
        # What an actuator before this one may have left behind.
        restore(ledger, lambda: False)
        actuator = Actuator(settings, clock, cache, link, ledger, asked)
        deadman = DeadMan(ledger_path, clock)
        try:
            actuator.step(deadman.beat())
            beat()
            while not clock.wait(stop, STEP_SECONDS):
                actuator.step(deadman.beat())
                beat()
        finally:
            deadman.close(actuator.let_go())


class Actuator:
    """What happens in a second, and what is kept from one to the next."""

    def __init__(
        self,
        settings: ActuatorSettings,
        clock: Clock,
        cache: Cache,
        link: Link,
        ledger: Ledger,
        asked: Sequence[Target],
    ) -> None:
        """`asked`: targets that balancers ask, beside the HAProxies that are found or named."""
        self._settings, self._clock, self._cache, self._link, self._ledger = settings, clock, cache, link, ledger
        self._pilot = Pilot(settings, clock, np.random.default_rng(clock.unix_ns()))
        self._followers: dict[str, Follower] = {}
        """By socket."""
        self._asked = [Follower(target, cache) for target in asked]
        self._finder = Finder(settings.haproxy_sockets)
        self._record_at = clock.monotonic()
        self._recorded: tuple[object, ...] = ()
        self._seen_at = clock.monotonic()

    def step(self, hold: str = "") -> None:
        """Hear, decide, publish, record."""
        now = self._clock.monotonic()
        self._follow(self._finder.found)
        decided = self._pilot.decide(self._link.heard, hold)
        snapshot = self._cache.publish(decided.snapshot)
        decision = self._decision(decided, snapshot)
        news = (snapshot.version, decision.reason, dict(decision.targets))
        if news != self._recorded or now >= self._record_at:
            self._recorded, self._record_at = news, now + _RECORD_SECONDS
            if now >= self._seen_at:
                self._seen_at = now + len(decided.weights) / SEEN_INSTANCES_PER_SECOND
                decision.seen.CopyFrom(seen(decided.states))
            self._link.record(decision)

    def let_go(self) -> bool:
        """Neutral weights everywhere; whether every target took them."""
        self._finder.close()
        decided = self._pilot.decide(self._link.heard, "actuator stopped: neutral")
        snapshot = self._cache.publish(decided.snapshot)
        for follower in self._all():
            follower.stop()
        restored = [follower.join(_LET_GO_SECONDS) for follower in self._all()]
        self._link.record(self._decision(decided, snapshot))
        return all(restored)

    def _follow(self, paths: Sequence[str]) -> None:
        """Follow the sockets that are there; let go of those that are no more."""
        for path in [p for p, f in self._followers.items() if p not in paths and f.error and not Path(p).exists()]:
            self._followers.pop(path).stop()
        node = self._settings.node or default_node()
        for path in paths:
            if path not in self._followers and len(self._followers) < SOCKETS_MAX:
                named = path in self._settings.haproxy_sockets
                target = HAProxy(path, node, self._settings.guard.weight_min, self._ledger, named)
                self._followers[path] = Follower(target, self._cache)

    def _all(self) -> list[Follower]:
        return [*self._followers.values(), *self._asked]

    def _decision(self, decided: Decided, snapshot: Snapshot) -> pb.Decision:
        refused = f"fleet states refused: {self._link.refused}" if self._link.refused else ""
        return pb.Decision(
            unix_ns=snapshot.unix_ns,
            version=snapshot.version,
            mode=snapshot.mode,
            policy=self._settings.policy,
            reason="; ".join(filter(None, [decided.reason, self._unreached(snapshot), refused])),
            weights=decided.weights,
            overrides=map(brief, decided.overrides),
            targets={f.target.name: f.error or ("" if f.target.matched else IDLE) for f in self._all()},
        )

    def _unreached(self, snapshot: Snapshot) -> str:
        """Names the instances that no balancer of ours holds, once all have told what they hold and some hold any."""
        held = frozenset[str]().union(*(f.target.matched for f in self._all()))
        if not held or any(f.error for f in self._all()):
            return ""
        lost = [a.instance for a in snapshot.assignments if a.instance not in held]
        more = f" and {len(lost) - _NAMED_MAX} more" if len(lost) > _NAMED_MAX else ""
        return f"in no balancer here: {', '.join(lost[:_NAMED_MAX])}{more}" if lost else ""
