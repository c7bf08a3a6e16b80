"""Who takes part: what good operators run, and trimtab's policies over what they run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.routing.measure import Control, neutral, simple
from trimtab.actuator.fleetsim.drive import Decide, guarded
from trimtab.actuator.fleetsim.scenario import Balancers, Scenario
from trimtab.actuator.policy import POLICIES

OVER = ("random2", "leastconn", "central_queue")
"""Balancers that trimtab steers."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """A balancer, and who steers it."""

    name: str
    kind: str
    """"classical", "trimtab" or "reference"."""
    balancer: Balancers
    control: Control
    over: str = ""
    policy: str = ""


def classical() -> list[Contestant]:
    """Round-robin is the paper's rival, and only a reference."""
    names = {
        "leastconn": "least-conn", "random2": "random(2)", "central_queue": "central queue", "envoy_least_request": "Envoy least request",
        "orca_wrr": "ORCA WRR", "peak_ewma": "peak EWMA", "prequal": "Prequal",
    }  # fmt: skip
    found = [Contestant("round-robin", "reference", Balancers("round_robin"), neutral)]
    found += [Contestant(name, "classical", Balancers(key), neutral) for key, name in names.items()]
    for key in ("leastconn", "random2"):
        found.append(
            Contestant(f"{names[key]} + ejection", "classical", Balancers(key, outlier_ejection=True), neutral)
        )
    for key in ("round_robin", "leastconn"):
        found.append(Contestant(f"1/service on {key}", "classical", Balancers(key), simple))
    return found


def steered(policies: Sequence[str]) -> list[Contestant]:
    """Each policy within the guard, over each balancer."""
    return [
        Contestant(f"{policy} on {over}", "trimtab", Balancers(over), _guarded(policy), over, policy)
        for policy in policies
        for over in OVER
    ]


def _guarded(policy: str) -> Control:
    def made(_scenario: Scenario) -> Decide:
        return guarded(POLICIES[policy]())

    return made
