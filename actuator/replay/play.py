"""One run of a scene: who decides on weights in, what every request had of it out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from trimtab.actuator.fleetsim.drive import Decide, guarded, ticks
from trimtab.actuator.fleetsim.fleet import Fleet, Tick
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.policy import POLICIES
from trimtab.actuator.replay.recording import Matrix
from trimtab.actuator.replay.scene import Scene
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector

AS_IT_WAS, BY_HAND, NEUTRAL = "as it was", "by hand", "neutral"
Beat = Callable[[], None]
"""Called after each second of a run."""


@dataclass(frozen=True, slots=True)
class Played:
    """Of one run; requests in the order of their arrival."""

    arrived: Vector
    """float64 [requests], seconds."""
    latency_seconds: Vector
    """float64 [requests]; of those that nobody has answered, how long they have waited at the end."""
    failed: NDArray[np.bool_]
    second: NDArray[np.int64]
    """int64 [requests]: in which second it was answered; -1 for never."""
    instance: NDArray[np.int64]
    """int64 [requests]: who answered; -1 for nobody."""
    weights: Matrix
    """float64 [seconds, instances]: that were in force."""


def play(scenario: Scenario, decide: Decide, first: Vector, beat: Beat) -> Played:
    """Run the scenario; `first` are the weights of its first second, float64 [instances]."""
    arrived = np.asarray(scenario.arrivals.times_seconds)
    count = len(arrived)
    latency, failed = scenario.seconds - arrived, np.zeros(count, dtype=bool)
    second, instance = np.full(count, -1, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    weights = np.ones((scenario.seconds, len(scenario.instances)))
    for tick in ticks(Fleet(scenario), decide, first):
        weights[tick.second], answers = tick.weights, tick.answers
        numbers = answers["number"]
        latency[numbers], failed[numbers] = answers["latency"], answers["failed"] > 0
        instance[numbers], second[numbers] = answers["instance"], tick.second
        beat()
    return Played(arrived, latency, failed, second, instance, weights)


def deciders(
    scene: Scene, policies: list[str], settings: GuardSettings, by_hand_seconds: float | None
) -> dict[str, Callable[[], Decide]]:
    """By name, what makes one who decides: as it was, neutral, by hand, and each policy within the guard's bounds.

    A person drains the incident's instances so long after the onset; None: when the incident was opened.
    """
    incident = scene.recording.incident
    if by_hand_seconds is None:
        by_hand_seconds = (incident.opened_unix_ns - scene.recording.origin_unix_ns) / 1e9 - scene.onset_second
    out: dict[str, Callable[[], Decide]] = {AS_IT_WAS: partial(_recorded, scene), NEUTRAL: lambda: _neutral}
    if len(scene.recording.subjects) < len(scene.instances):
        out[BY_HAND] = partial(_drained, scene, scene.onset_second + by_hand_seconds)
    for name in policies:
        if name != NEUTRAL:
            out[name] = _guarded(name, settings)
    return out


def first_weights(scene: Scene, name: str) -> Vector:
    """Of the first second: a policy has not seen anything yet."""
    return scene.weights[0] if name == AS_IT_WAS else np.ones(len(scene.instances))


def _guarded(name: str, settings: GuardSettings) -> Callable[[], Decide]:
    return lambda: guarded(POLICIES[name](), settings)


def _recorded(scene: Scene) -> Decide:
    last = scene.seconds - 1
    return lambda tick: scene.weights[min(tick.second + 1, last)]


def _neutral(tick: Tick) -> Vector:
    return np.ones(len(tick.joined))


def _drained(scene: Scene, since_second: float) -> Decide:
    """As a person does who is sure: no steps, no guard, and nothing given back."""
    drained = np.ones(len(scene.instances))
    drained[list(scene.recording.subjects)] = 0
    return lambda tick: drained if tick.second + 1 >= math.ceil(since_second) else _neutral(tick)
