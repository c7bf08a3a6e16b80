"""One run: a contestant spreads the requests of one seed over one fleet, and what clients saw of it is written down."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from tests.bench.routing_real.contestants import Balancer, Contestant
from tests.bench.routing_real.record import Plan, Record, seen
from tests.bench.routing_real.scenarios import Scenario
from tests.e2e.behaviour import WELL, Behaviour, behave
from tests.e2e.fleet import Instance, check_alive, post
from tests.e2e.haproxy import runtime_api
from tests.e2e.load import Load, load
from tests.e2e.observe import observe
from tests.e2e.services import NODE, Installation, install
from trimtab import Exit, TrimtabError

_AT_ONCE = Behaviour(slowdown=0.0)
_ASKED = {"ids": [1000], "work": 1.0, "luck": 1.0}
"""What every model of the fleet answers, and what no fault fails."""
_LOOK_SECONDS = 0.1
_DRAIN_SECONDS_MAX = 60.0
_FIRST_SECONDS_MAX = 20.0


class Run:
    """What one run has running, in `directory`."""

    def __init__(
        self, directory: Path, instances: Sequence[Instance], scenario: Scenario, contestant: Contestant, plan: Plan
    ) -> None:
        self._directory, self._instances = directory, instances
        self._scenario, self._contestant, self._plan = scenario, contestant, plan
        self._checks: list[Callable[[], None]] = [partial(check_alive, i) for i in instances]

    def make(self, name: str, who: str, pair: int, seed: int) -> Record:
        """Takes the plan's seconds. Raises TrimtabError when something died that should not."""
        plan, scenario = self._plan, self._scenario
        with ExitStack() as stack:
            stack.callback(drain, self._instances)
            self._stand(pair)
            trimtab = self._install() if self._contestant.policy else None
            xds = trimtab.xds if trimtab else ""
            balancer = stack.enter_context(self._contestant.start(self._directory, self._instances, scenario, xds))
            if trimtab:
                self._get_to_know(stack, trimtab, balancer, seed)
                # Draining made them well.
                self._stand(pair)
            began_unix_ns = time.time_ns()
            # Every contestant of a pair gets the same requests.
            generator = stack.enter_context(self._load(balancer.address, seed * 1000 + pair, "requests.csv"))
            ails_at = self._first_arrival(generator)
            if trimtab:
                self._start(stack, trimtab, "actuator")
            if scenario.fault:
                self._wait(ails_at + plan.well_seconds)
                stack.enter_context(scenario.fault(scenario.ailing(self._instances, pair)))
                ails_at = time.monotonic()
            settled_at = ails_at + plan.notice_seconds
            ends_at = settled_at + plan.settled_seconds
            self._wait(ends_at)
            weights = balancer.weights()
            requests = generator.finish()
        slo = scenario.slo_seconds
        whole, settled = (seen(requests, start, ends_at, slo) for start in (ails_at, settled_at))
        return Record(name, pair, who, seed, plan, began_unix_ns, whole, settled, weights)

    def _stand(self, pair: int) -> None:
        for instance, behaviour in zip(self._instances, self._scenario.standing(pair), strict=True):
            behave(instance, behaviour)

    def _install(self) -> Installation:
        socket = None if self._contestant.envoy else runtime_api(self._directory)
        return install(self._directory, socket, self._contestant.policy, self._contestant.limits)

    def _get_to_know(self, stack: ExitStack, trimtab: Installation, balancer: Balancer, seed: int) -> None:
        """Returns when a trimtab without a past knows the fleet, at neutral weights."""
        for service in ("collector", "agent"):
            self._start(stack, trimtab, service)
        subjects = [f"{NODE}/{i.port}" for i in self._instances]
        with ExitStack() as meanwhile:
            if trimtab.xds:
                # An Envoy has no endpoints until it was told of them; then it keeps them.
                meanwhile.enter_context(trimtab.idle().run("actuator"))
            meanwhile.enter_context(self._load(balancer.address, -1 - seed, "known.csv"))
            observer = meanwhile.enter_context(observe(trimtab.collector, balancer))
            deadline = time.monotonic() + self._plan.known_seconds_max

            def known() -> bool:
                states = [observer.instances.get(subject) for subject in subjects]
                return all(state is not None and math.isfinite(state.score) for state in states)

            while not known() and time.monotonic() < deadline:
                self._check()
                time.sleep(_LOOK_SECONDS)
        drain(self._instances)

    def _start(self, stack: ExitStack, trimtab: Installation, service: str) -> None:
        process = stack.enter_context(trimtab.run(service))
        self._checks.append(partial(trimtab.check, service, process))

    @contextmanager
    def _load(self, address: str, seed: int, results: str) -> Iterator[Load]:
        scenario = self._scenario
        file = self._directory / results
        with load(address, scenario.requests_per_second, seed, file, model=scenario.model) as generator:
            self._checks.append(generator.check)
            try:
                yield generator
            finally:
                self._checks.remove(generator.check)

    def _first_arrival(self, generator: Load) -> float:
        """In monotonic seconds: what counts begins there, however long the generator took to start."""
        deadline = time.monotonic() + _FIRST_SECONDS_MAX
        while not (requests := generator.requests()):
            self._check()
            if time.monotonic() > deadline:
                raise TrimtabError(f"no request was over after {_FIRST_SECONDS_MAX:.0f} s", Exit.UNREACHABLE)
            time.sleep(_LOOK_SECONDS)
        return requests[0].arrival

    def _wait(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            self._check()
            time.sleep(min(_LOOK_SECONDS, left))

    def _check(self) -> None:
        for check in self._checks:
            check()


def drain(instances: Sequence[Instance]) -> None:
    """Return when every instance is well and has no request left. Raises TrimtabError."""
    for instance in instances:
        behave(instance, _AT_ONCE)
    deadline = time.monotonic() + _DRAIN_SECONDS_MAX
    for instance in instances:
        while not _answers(instance):
            check_alive(instance)
            if time.monotonic() > deadline:
                raise TrimtabError(
                    f"{instance.name} still does not answer after {_DRAIN_SECONDS_MAX:.0f} s", Exit.UNREACHABLE
                )
            time.sleep(_LOOK_SECONDS)
    for instance in instances:
        behave(instance, WELL)


def _answers(instance: Instance) -> bool:
    """Requests are answered in the order in which they came, so that none before this one is left."""
    try:
        post(instance.address, instance.model, _ASKED)
    except OSError:
        return False
    return True


WARM_REQUESTS = 50


def warm(instances: Sequence[Instance]) -> None:
    """The first requests of a fresh server are slow by themselves. Raises TrimtabError."""
    drain(instances)
    for instance in instances:
        for _ in range(WARM_REQUESTS):
            if not _answers(instance):
                raise TrimtabError(f"{instance.name} does not answer", Exit.UNREACHABLE)
