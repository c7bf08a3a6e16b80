"""The environment for reinforcement learning."""

from __future__ import annotations

import numpy as np
import pytest

from tests.actuator.fleetsim.scenes import run
from trimtab import TrimtabError
from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.observe import FEATURES, HIGHEST, observe
from trimtab.actuator.fleetsim.scenario import Arrivals, Balancers, Instance, Scenario, instances
from trimtab.actuator.fleetsim.state import state_of
from trimtab.actuator.settings import GuardSettings

pytest.importorskip("gymnasium", reason="pip install 'trimtab[train]'")

from gymnasium.utils.env_checker import check_env

from trimtab.actuator.fleetsim.env import FleetEnv, Reward


def scenario(seed: int) -> Scenario:
    """Three to five instances, one of which joins late and one of which fails fast."""
    count = 3 + seed % 3
    return Scenario(
        seed=seed,
        seconds=12,
        arrivals=Arrivals(30 * count),
        instances=(*instances([1] * (count - 1)), Instance(joins_seconds=5)),
        balancers=Balancers("round_robin"),
        faults=(Fault(0, "fail_fast", 4),),
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
    env, shares = FleetEnv(scenario), np.linspace(0, 1, 16, dtype=np.float32)
    assert play(env, shares)[0] == play(env, shares)[0] == play(FleetEnv(scenario), shares)[0]
    assert play(env, shares)[0] != play(env, shares, seed=2)[0]


def test_who_is_not_there_is_masked() -> None:
    env = FleetEnv(scenario, instances_max=6)
    seen, _ = env.reset(seed=3)
    masks = [seen["mask"]]
    for _ in range(11):
        seen, *_ = env.step(np.ones(6, dtype=np.float32))
        assert (seen["instances"][seen["mask"] == 0] == 0).all()
        masks.append(seen["mask"])
    assert [int(m.sum()) for m in masks] == [int(masks[0].sum())] * 5 + [int(masks[0].sum()) + 1] * 7


def test_an_instance_that_fails_fast_is_worth_avoiding() -> None:
    even = np.ones(16, dtype=np.float32)
    avoiding = even.copy()
    avoiding[0] = 0
    env = FleetEnv(scenario)
    better, info = play(env, avoiding)
    worse, other = play(env, even)
    assert better > worse
    assert info["outcome"].error_ratio < other["outcome"].error_ratio  # type: ignore[attr-defined]


def test_only_the_ratio_of_shares_counts_and_all_zero_is_neutral() -> None:
    env = FleetEnv(scenario)
    shares = np.linspace(0.1, 0.9, 16, dtype=np.float32)
    assert play(env, shares)[0] == pytest.approx(play(env, shares / 2)[0], abs=1e-3)
    assert play(env, np.zeros(16, dtype=np.float32))[0] == play(env, np.ones(16, dtype=np.float32))[0]


def test_the_guard_stays_in_force() -> None:
    """It drains nobody entirely; without it the action does."""
    only = np.zeros(16, dtype=np.float32)
    only[1] = 1
    last = {}
    for settings in (None, GuardSettings()):
        env = FleetEnv(scenario, guard=settings)
        env.reset(seed=1)
        for _ in range(11):
            seen, *_ = env.step(only)
        last[settings] = seen["instances"][seen["mask"] == 1][2:, FEATURES.index("weight")]
    assert (last[None] == 0).all()
    assert (last[GuardSettings()] > 0).all()


def test_nonsense_is_refused() -> None:
    env = FleetEnv(scenario)
    env.reset(seed=1)
    for action in (np.full(16, np.nan), np.full(16, 1.5), np.ones(15)):
        with pytest.raises(TrimtabError, match="action"):
            env.step(action.astype(np.float32))
    with pytest.raises(TrimtabError, match="instances_max"):
        FleetEnv(scenario, instances_max=2).reset(seed=1)


def test_reward_is_throughput_less_latency_and_variance() -> None:
    _, ticks = run(Scenario(seconds=4, arrivals=Arrivals(100)))
    tick = ticks[-1]
    latency = tick.answers["latency"]
    expected = min(1, len(latency) / tick.arrived) - 0.5 * latency.mean() / 0.02 - 0.25 * latency.var() / 0.02**2
    assert Reward(1, 0.5, 0.25).of(tick, 0.02) == pytest.approx(expected)
    assert Reward(1, 0, 0).of(tick, 0.02) <= 1


def test_observations_do_not_tell_models_apart() -> None:
    """A model that takes ten times as long, under a tenth of the load, looks the same."""
    quick = run(Scenario(seconds=30, arrivals=Arrivals(100)))[1][-1]
    rows = observe(state_of(quick), quick.weights)
    assert rows.shape == (4, len(FEATURES))
    assert np.abs(rows).max() <= HIGHEST
    column = FEATURES.index("latency")
    assert np.median(rows[:, column]) == pytest.approx(0, abs=0.5)
    assert (rows[:, FEATURES.index("known")] == 1).all()
