"""The environment for reinforcement learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run
from trimtab import TrimtabError
from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, Service, instances
from trimtab.actuator.policy.features import HIGHEST, NAMES
from trimtab.actuator.policy.neutral import Neutral
from trimtab.actuator.policy.split import Split
from trimtab.actuator.reward import Reward
from trimtab.actuator.settings import GuardSettings

pytest.importorskip("gymnasium", reason="pip install 'trimtab[train]'")

from gymnasium.utils.env_checker import check_env

from trimtab.actuator.fleetsim.env import SETTLE_SECONDS, FleetEnv

SECONDS = SETTLE_SECONDS + 11


def scenario(seed: int) -> Scenario:
    """Three to five instances, one of which joins late and one of which fails fast; the others have room for its requests."""
    count = 3 + seed % 3
    return Scenario(
        seed=seed,
        seconds=SECONDS,
        arrivals=Arrivals(20 * count),
        instances=(*instances([1] * (count - 1)), Instance(joins_seconds=SETTLE_SECONDS + 4)),
        balancers=Balancers("round_robin"),
        faults=(Fault(0, "fail_fast", SETTLE_SECONDS + 3),),
    )


def play(env: FleetEnv, shares: np.ndarray, seed: int = 1) -> tuple[float, dict[str, object]]:
    env.reset(seed=seed)
    total, over, info = 0.0, False, {}
    while not over:
        _, reward, _, over, info = env.step(shares)
        total += reward
    return total, info


def test_gymnasium_takes_it() -> None:
    check_env(FleetEnv(scenario, instances_max=6), skip_render_check=True)
    check_env(FleetEnv(scenario, instances_max=5, guard=GuardSettings()), skip_render_check=True)


def test_the_same_seed_is_the_same_episode() -> None:
    env, shares = FleetEnv(scenario), np.linspace(0, 1, 16)
    assert play(env, shares)[0] == play(env, shares)[0] == play(FleetEnv(scenario), shares)[0]
    assert play(env, shares)[0] != play(env, shares, seed=2)[0]


def test_who_is_not_there_is_masked() -> None:
    env = FleetEnv(scenario, instances_max=6)
    seen, _ = env.reset(seed=3)
    masks = [seen["mask"]]
    for _ in range(11):
        seen, *_ = env.step(np.ones(6))
        assert (seen["instances"][seen["mask"] == 0] == 0).all()
        masks.append(seen["mask"])
    assert [int(m.sum()) for m in masks] == [int(masks[0].sum())] * 5 + [int(masks[0].sum()) + 1] * 7


def test_an_instance_that_fails_fast_is_worth_avoiding() -> None:
    even = np.ones(16)
    avoiding = even.copy()
    avoiding[0] = 0
    env = FleetEnv(scenario)
    better, info = play(env, avoiding)
    worse, other = play(env, even)
    assert better > worse
    assert info["outcome"].error_ratio < other["outcome"].error_ratio  # type: ignore[attr-defined]


def test_only_the_ratio_of_shares_counts_and_all_zero_is_neutral() -> None:
    env = FleetEnv(scenario)
    shares = np.linspace(0.1, 0.9, 16)
    assert play(env, shares)[0] == pytest.approx(play(env, shares / 2)[0], rel=1e-9)
    assert play(env, np.zeros(16))[0] == play(env, np.ones(16))[0]


def test_the_guard_stays_in_force() -> None:
    """It drains nobody entirely; without it the action does."""
    only = np.zeros(16)
    only[1] = 1
    for settings, drained in ((None, True), (GuardSettings(), False)):
        env = FleetEnv(scenario, guard=settings)
        env.reset(seed=1)
        for _ in range(11):
            *_, info = env.step(only)
        assert ((info["weights"][2:] == 0) == drained).all()


def test_nonsense_is_refused() -> None:
    env = FleetEnv(scenario)
    env.reset(seed=1)
    for action in (np.full(16, np.nan), np.full(16, 1.5), np.ones(15)):
        with pytest.raises(TrimtabError, match="action"):
            env.step(action)
    with pytest.raises(TrimtabError, match="instances_max"):
        FleetEnv(scenario, instances_max=2).reset(seed=1)
    with pytest.raises(TrimtabError, match="seconds"):
        FleetEnv(lambda seed: replace(scenario(seed), seconds=SETTLE_SECONDS)).reset(seed=1)


def test_an_episode_is_the_scenario_of_its_seed() -> None:
    """And without a seed of another one each time."""
    made: list[int] = []
    env = FleetEnv(lambda seed: made.append(seed) or scenario(seed))  # type: ignore[func-returns-value]
    for seed in (7, None, None, 7, None, None):
        env.reset(seed=seed)
    assert made[0] == 7
    assert made[:3] == made[3:]
    assert len(set(made)) == 3


def test_the_reward_is_the_actuators_of_what_users_had() -> None:
    """In units of what a request takes in this fleet when nobody waits."""
    steady = replace(scenario(1), instances=instances((1, 1, 4)))
    _, ticks = run(steady)
    reward = Reward(1, 0.5, 0.25)
    env = FleetEnv(lambda _seed: steady, reward=reward)
    env.reset()
    found = [env.step(np.ones(16))[1] for _ in range(11)]
    for got, tick in zip(found, ticks[SETTLE_SECONDS:], strict=True):
        fine = tick.answers["latency"][tick.answers["failed"] == 0]
        failed = int(tick.answers["failed"].sum())
        assert got == reward.of(tick.arrived, len(fine), fine.mean(), fine.var(), failed, 0.02 * 3 / 6)
    assert max(found) <= 1
    assert np.mean(found[:3]) > np.mean(found[5:])


def test_who_does_as_the_rival_is_no_better() -> None:
    """And who does something else is worse by what it cost, on the same requests."""
    env, alone = FleetEnv(scenario, rival=Split), FleetEnv(scenario)
    _, info = env.reset(seed=3)
    over = False
    while not over:
        _, reward, _, over, info = env.step(info["proposal"])
        assert reward == 0
    even = np.ones(16)
    env = FleetEnv(scenario, rival=Neutral)
    assert play(env, even)[0] == 0
    avoiding = even.copy()
    avoiding[0] = 0
    gained = play(alone, avoiding)[0] - play(alone, even)[0]
    assert 0 < play(env, avoiding)[0] <= gained + 1e-9


def test_observations_do_not_tell_models_apart() -> None:
    """A model that takes ten times as long, under a tenth of the load, looks the same."""
    seen = []
    for service_seconds in (0.005, 0.05):
        arrivals = Arrivals(0.5 * 3.25 * 8 / service_seconds)
        alike = Scenario(
            seconds=60,
            arrivals=arrivals,
            instances=instances((1, 1, 1, 0.25), workers=8),
            service=Service(service_seconds),
        )
        env, over = FleetEnv(lambda _seed, alike=alike: alike), False  # type: ignore[misc] # bound at once
        rows, _ = env.reset()
        while not over:
            rows, *_, over, _ = env.step(np.ones(16))
        assert np.abs(rows["instances"]).max() <= HIGHEST
        seen.append(rows["instances"][:4])
    for name, near in (("known", 0), ("latency", 0.2), ("service", 0.2), ("capacity", 0.1), ("proposal", 0.1)):
        column = NAMES.index(name)
        np.testing.assert_allclose(seen[0][:, column], seen[1][:, column], atol=near, err_msg=name)
