"""Who spreads the requests: balancers by themselves, and trimtab over one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.routing_real.envoy import envoy
from tests.bench.routing_real.scenarios import Scenario
from tests.e2e.fleet import Instance
from tests.e2e.haproxy import HAProxy, haproxy
from trimtab.actuator.policy import POLICIES


class Balancer(Protocol):
    """What takes the clients' requests."""

    @property
    def address(self) -> str: ...

    def weights(self) -> dict[str, int]:
        """In force, by server."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to spread requests."""

    description: str
    start: Callable[[Path, Sequence[Instance], Scenario, str], AbstractContextManager[Balancer]]
    """Given where trimtab tells endpoints; empty: nowhere."""
    policy: str = ""
    """trimtab's; empty: no trimtab, neither agent nor collector."""
    for_errors: bool = False
    """Does something of its own only where there are errors, and is measured only there."""
    envoy: bool = False
    limits: bool = False
    """trimtab also limits how many requests an instance has at once."""

    def takes_part(self, scenario: Scenario) -> bool:
        return scenario.errors or not self.for_errors


def _haproxy(balance: str, options: str = "") -> Callable[..., AbstractContextManager[HAProxy]]:
    return lambda directory, instances, *_: haproxy(directory, instances, balance, server_options=options)


def _central(
    directory: Path, instances: Sequence[Instance], scenario: Scenario, _: str
) -> AbstractContextManager[HAProxy]:
    return haproxy(directory, instances, "random(2)", server_options=f"maxconn {scenario.batch}")


def _envoy(policy: str, outliers: bool = False) -> Callable[..., AbstractContextManager[Balancer]]:
    return lambda directory, instances, _, xds: envoy(directory, instances, policy, outliers, xds)


CENTRAL, RANDOM, LEASTCONN, ENVOY = "central-queue", "random", "leastconn", "envoy-leastrequest"
LIMITED = "limited"
_BELOW_TRIMTAB = {
    CENTRAL: _central,
    RANDOM: _haproxy("random(2)"),
    LEASTCONN: _haproxy("leastconn"),
    ENVOY: _envoy("LEAST_REQUEST"),
}
"""What trimtab is recommended to steer comes first: its figures are told on top."""
CLASSICAL: Mapping[str, Contestant] = {
    "roundrobin": Contestant("HAProxy `roundrobin`", _haproxy("roundrobin")),
    LEASTCONN: Contestant("HAProxy `leastconn`", _BELOW_TRIMTAB[LEASTCONN]),
    RANDOM: Contestant("HAProxy `random(2)`", _BELOW_TRIMTAB[RANDOM]),
    CENTRAL: Contestant("HAProxy, as many at once as a batch has rows (`maxconn`), others wait in it", _central),
    "mark-down": Contestant(
        "HAProxy `random(2)` with `observe layer7 error-limit 10 on-error mark-down`",
        _haproxy("random(2)", "observe layer7 error-limit 10 on-error mark-down"),
        for_errors=True,
    ),
    "envoy-roundrobin": Contestant("Envoy ROUND_ROBIN", _envoy("ROUND_ROBIN"), envoy=True),
    ENVOY: Contestant("Envoy LEAST_REQUEST", _BELOW_TRIMTAB[ENVOY], envoy=True),
    "envoy-outliers": Contestant(
        "Envoy LEAST_REQUEST with outlier detection", _envoy("LEAST_REQUEST", True), for_errors=True, envoy=True
    ),
}


def contestants(policies: Sequence[str]) -> dict[str, Contestant]:
    """By name: the classical ones, and each policy over a central queue, `random(2)`, `leastconn`, an Envoy, and one that it limits.

    Raises ValueError that names the first unknown policy.
    """
    found = dict(CLASSICAL)
    for policy in policies:
        if policy not in POLICIES:
            raise ValueError(f"{policy!r} is no policy; there are: {', '.join(sorted(POLICIES))}")
        for below, start in _BELOW_TRIMTAB.items():
            description = f"trimtab, `{policy}`, over {CLASSICAL[below].description}"
            found[f"{policy}/{below}"] = Contestant(description, start, policy, envoy=below == ENVOY)
        description = f"trimtab, `{policy}` and `haproxy_limit`, over {CLASSICAL[RANDOM].description}"
        found[f"{policy}/{LIMITED}"] = Contestant(description, _BELOW_TRIMTAB[RANDOM], policy, limits=True)
    return found
