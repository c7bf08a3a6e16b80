"""What a decision takes in the actuator, of one model: each policy by itself, the network's forward pass, and all of a second.

    OMP_NUM_THREADS=1 python -m tests.bench.deciding

CPU time, after a warm-up, of states in which every second instance is slower: the policies have something to do. The last line is JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from tests.actuator.conftest import instance
from tests.bench.spread import Estimate, median
from trimtab.actuator.link import Heard
from trimtab.actuator.pilot import Pilot
from trimtab.actuator.policy import POLICIES
from trimtab.actuator.policy.dqn import shipped
from trimtab.actuator.policy.features import NAMES
from trimtab.actuator.settings import ActuatorSettings
from trimtab.actuator.state import by_model
from trimtab.agent.clock import ManualClock
from trimtab.agent.wire import query_pb2 as pb

SIZES, WARM, RUNS = (4, 64, 1000), 5, 50


def milliseconds(work: Callable[[], object]) -> Estimate:
    """CPU time of one call."""
    spent = []
    for number in range(WARM + RUNS):
        began = time.process_time_ns()
        work()
        spent += [(time.process_time_ns() - began) / 1e6] if number >= WARM else []
    return median(spent)


def fleet(size: int) -> pb.FleetState:
    """Healthy instances of one model, of two speeds."""
    group = [
        instance(
            f"n/{k}", service_seconds=0.02 * (1 + 2 * (k % 2)), workers=1.0, utilisation=0.5, in_flight=1.0, queue=0.0
        )
        for k in range(size)
    ]
    return pb.FleetState(unix_ns=1, instances=group)


def measured(size: int) -> dict[str, Estimate]:
    """By what is done."""
    told = fleet(size)
    (state,) = by_model(told.instances)
    features = np.random.default_rng(0).normal(size=(size, len(NAMES))).astype(np.float32)
    network = shipped()
    found = {"forward pass": milliseconds(lambda: network.values(features))}
    for name, policy in POLICIES.items():
        one = policy()
        found[name] = milliseconds(lambda one=one: one.decide(state.copy()))
    clock = ManualClock()
    pilot = Pilot(ActuatorSettings(policy="dqn"), clock)

    def second() -> None:
        clock.advance(1.0)
        pilot.decide(Heard(told, clock.monotonic()))

    return found | {"a second with dqn": milliseconds(second)}


def main() -> None:
    found = {size: measured(size) for size in SIZES}
    for size, figures in found.items():
        for what, one in figures.items():
            print(f"{size:5} instances, {what:18} {one.value:7.3f} ms ({one.low:.3f} to {one.high:.3f})")
    print(json.dumps({str(s): {what: round(one.value, 4) for what, one in f.items()} for s, f in found.items()}))


if __name__ == "__main__":
    main()
