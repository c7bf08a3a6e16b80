"""What creeps in is found while a change that all share, noise that lasts, and what users would not mind are left alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from tests.detector.test_budget import made
from trimtab.detector.creep import BLOCK_SECONDS, Creep
from trimtab.detector.decide import Judge
from trimtab.detector.settings import DetectorSettings

COUNT, MODELS = 60, 3
GROUPS, WELL = np.arange(COUNT) % MODELS, np.ones(COUNT, dtype=np.bool_)


class Minutes:
    """Sixty instances of three models, a window a minute; noise that all share, and noise of their own that lasts."""

    def __init__(self, seed: int, memory: float = 0.6, sigma: float = 0.04) -> None:
        self.chance, self.memory, self.sigma, self.minute = np.random.default_rng(seed), memory, sigma, 0
        self.own, self.noise = 0.2 * self.chance.standard_normal(COUNT), np.zeros(COUNT)
        self.creep = Creep(DetectorSettings())
        self.creep.resize(COUNT)

    def window(self, slower: np.ndarray | float = 0.0) -> np.ndarray:
        self.noise = self.memory * self.noise + self.sigma * self.chance.standard_t(4, COUNT)
        day = 0.3 * math.sin(2 * math.pi * self.minute / 1440)
        log = math.log(0.05) + self.own + day + self.noise + slower
        return np.stack([log, log + 0.8, np.full(COUNT, 0.001)], axis=1).astype(np.float32)

    def step(self, slower: np.ndarray | float = 0.0, excluded: np.ndarray | None = None) -> np.ndarray:
        """Which creep, after another minute."""
        self.minute += 1
        window, seconds = self.window(slower), np.full(COUNT, BLOCK_SECONDS, dtype=np.float32)
        self.creep.observe(window, GROUPS, WELL, self.minute * BLOCK_SECONDS, seconds)
        self.creep.learn(GROUPS, WELL if excluded is None else ~excluded)
        return self.creep.creeps

    def run(self, minutes: int) -> int:
        """How many minutes in which somebody crept."""
        return sum(bool(self.step().any()) for _ in range(minutes))


def on(row: int, value: float) -> np.ndarray:
    slower = np.zeros(COUNT)
    slower[row] = value
    return slower


@pytest.mark.parametrize("doubling_minutes", [20, 60, 240])
def test_what_creeps_in_is_found_once_users_would_mind_and_since_when(doubling_minutes: int) -> None:
    scene = Minutes(1)
    scene.run(240)
    for minute in range(1, 3 * doubling_minutes):
        slower = on(7, minute / doubling_minutes * math.log(2))
        creeps = scene.step(slower)
        assert not creeps[np.arange(COUNT) != 7].any()
        if creeps[7]:
            break
    assert creeps[7]
    assert math.exp(slower[7]) < 2.7
    assert math.exp(slower[7]) > 1.3, "before, users would not mind"
    assert 0.2 * minute < scene.creep.seconds()[7] / BLOCK_SECONDS < minute + 60
    # It stays told for as long as it is ill, also when that is no more than a part of it, and is over with it.
    assert scene.creep.lingers[7]
    while slower[7] > 0.5:
        slower = on(7, slower[7] - 0.1)
        scene.step(slower, excluded=creeps)
    assert scene.creep.lingers[7]
    for _ in range(5):
        scene.step(0.0, excluded=creeps)
    assert not scene.creep.lingers.any()


@pytest.mark.parametrize("memory", [0.0, 0.6, 0.9])
def test_a_healthy_fleet_creeps_nowhere(memory: float) -> None:
    assert Minutes(2, memory).run(2880) == 0


def test_what_all_of_a_model_share_creeps_nowhere() -> None:
    scene = Minutes(3)
    scene.run(240)
    slower = np.zeros(COUNT)
    for _ in range(240):
        slower[GROUPS == 1] += math.log(3) / 240
        assert not scene.step(slower).any()


def test_what_is_small_is_no_fault_however_long_it_lasts() -> None:
    scene = Minutes(4)
    scene.run(240)
    assert not any(scene.step(on(7, math.log(1.25))).any() for _ in range(720))


def test_a_moment_is_not_enough() -> None:
    scene = Minutes(5)
    scene.run(240)
    for _ in range(20):
        assert not any(scene.step(on(7, math.log(4))).any() for _ in range(2))
        assert scene.run(30) == 0


def test_windows_of_a_second_make_the_same_minutes() -> None:
    """Whoever is known for half of a minute is judged by it."""
    creep, chance = Creep(DetectorSettings(warmup_windows=3)), np.random.default_rng(0)
    creep.resize(COUNT)
    seen = []
    for second in range(0, 600, 2):
        window = chance.standard_normal((COUNT, 3)).astype(np.float32)
        fresh = (
            WELL & ~((np.arange(COUNT) == 4) & (second % 60 >= 28)) & ~((np.arange(COUNT) == 5) & (second % 60 >= 40))
        )
        creep.observe(window, GROUPS, fresh, float(second), np.full(COUNT, 2, dtype=np.float32))
        creep.learn(GROUPS, WELL)
        seen.append(creep.score(GROUPS))
    known = ~np.isnan(seen[-1])
    assert not known[4]
    assert known[[0, 5, 59]].all()
    # Nothing changes within a minute.
    changes = [not np.array_equal(a, b, equal_nan=True) for a, b in pairwise(seen)]
    assert sum(changes) == 7


def test_an_instance_that_is_another_one_knows_nothing() -> None:
    scene = Minutes(6)
    scene.run(240)
    scene.creep.forget(np.asarray([3]))
    assert np.isnan(scene.creep.score(GROUPS)[3])
    scene.creep.resize(COUNT + 1)
    assert len(scene.creep.creeps) == COUNT + 1


def readings(scene: Minutes, slower: np.ndarray | float):  # type: ignore[no-untyped-def]
    window = scene.window(slower)
    out = made(window[:, 0], window[:, 1], scene.chance.binomial(300, 0.0005, COUNT), scene.minute)
    out.slot_seconds[:] = 10.0
    return out


def test_the_judge_opens_what_crept_in_and_says_what_was_usual() -> None:
    """At windows of ten seconds own history reaches back a hundred minutes: a fault that takes longer is learnt by it."""
    scene, judge, nodes = Minutes(7, sigma=0.02), Judge(DetectorSettings()), np.arange(COUNT)
    judge.resize(COUNT)
    excluded = np.zeros(COUNT, dtype=np.bool_)
    minutes, found = 400, None
    for scene.minute in range(240 * 6 + minutes * 6):
        creeping = max(0.0, (scene.minute - 240 * 6) / 6 / minutes) * math.log(3)
        told = readings(scene, on(9, creeping))
        verdicts = judge.judge(told, GROUPS, nodes)
        assert not verdicts.creeps[np.arange(COUNT) != 9].any()
        if verdicts.opens[9]:
            found = verdicts, creeping
            break
        judge.learn(told, GROUPS, verdicts, excluded, excluded)
    assert found is not None
    verdicts, creeping = found
    assert verdicts.creeps[9]
    assert verdicts.creeping_seconds[9] > 600
    assert math.exp(creeping) < 2.5
    usual = math.exp(verdicts.expected[9, 0]) / (0.05 * math.exp(scene.own[9]))
    assert 0.6 < usual < 1.5, "what is told as usual is what was before it crept in"
    odd, known = judge.agreement(told, GROUPS)
    assert known[9] == 5
    assert odd[9] >= 1
