"""Deep Q-learning for one branch an instance, from top to bottom: double (van Hasselt et al., 2016), duelling, replay, target network.

The only file that imports PyTorch. The network itself, and what it sees and chooses, is in `trimtab.actuator.policy.dqn`.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trimtab.actuator.fleetsim.env import FleetEnv, Observation
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.policy.dqn import CHOICES, LAYERS, PROPOSED, Network, chosen, wish
from trimtab.actuator.policy.features import NAMES
from trimtab.actuator.policy.split import Split
from trimtab.actuator.reward import Reward

INSTANCES_MAX = 16
"""Largest fleet that is trained on; smaller ones are padded."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a training is made of; the search (`trimtab tune search`) is over those marked with *."""

    seed: int = 0
    steps: int = 60_000
    """Seconds of simulated fleets, all together."""
    fleets: int = 8
    """Trained on side by side."""
    hidden: int = 64
    learning_rate: float = 5e-4
    """*"""
    epsilon_first: float = 0.8
    """*Share of the fleets in which a branch is tried out, at first."""
    epsilon_last: float = 0.1
    """*The same at the end."""
    exploration: float = 0.5
    """*Share of the steps over which it falls."""
    hold: int = 5
    """Seconds for which what is tried is held: a weight shows within seconds."""
    buffer: int = 20_000
    """*Steps that are remembered."""
    batch: int = 128
    discount: float = 0.8
    train_every: int = 4
    """Steps between two updates."""
    target_every: int = 500
    """Updates between two copies to the target network."""
    warm_up: int = 2_000
    """Steps beside the rule alone, before the network is asked: the bootstrap."""
    margin: float = 0.1
    """How much more than the rule's proposal another choice must be worth to be taken while training."""
    reward: Reward = field(default_factory=Reward)
    """*α, β and γ."""


class Branches(nn.Module):
    """The network of `trimtab.actuator.policy.dqn.Network`, on padded batches: float32 [batch, instances, NAMES] and bool [batch,
    instances]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.instance, self.instance2 = nn.Linear(len(NAMES), hidden), nn.Linear(hidden, hidden)
        self.fleet = nn.Linear(3 * hidden, hidden)
        self.advantage, self.value = nn.Linear(hidden, len(CHOICES)), nn.Linear(2 * hidden, 1)

    def forward(self, features: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """float32 [batch, instances, CHOICES]."""
        mask = there[..., None]
        seen = torch.relu(self.instance2(torch.relu(self.instance(features)))) * mask
        # What is seen is not negative, so that what is not there does not count in the maximum either.
        fleet = torch.cat([seen.sum(1) / mask.sum(1), seen.max(1).values], dim=-1)
        joined = torch.cat([seen, fleet[:, None].expand(-1, seen.shape[1], -1)], dim=-1)
        advantage = self.advantage(torch.relu(self.fleet(joined)))
        value: torch.Tensor = self.value(fleet)[:, None] + advantage - advantage.mean(-1, keepdim=True)
        return value


class Replay:
    """The last steps, in a ring."""

    def __init__(self, size: int) -> None:
        self.features = np.zeros((size, INSTANCES_MAX, len(NAMES)), dtype=np.float32)
        self.following = np.zeros_like(self.features)
        self.there = np.zeros((size, INSTANCES_MAX), dtype=np.bool_)
        self.choices = np.zeros((size, INSTANCES_MAX), dtype=np.int64)
        self.rewards = np.zeros(size, dtype=np.float32)
        self.lasting = np.zeros(size, dtype=np.float32)
        self.count = 0

    def add(self, now: Observation, choices: NDArray[np.int64], reward: float, then: Observation, last: bool) -> None:
        at = self.count % len(self.rewards)
        self.features[at], self.there[at], self.following[at] = now["instances"], now["mask"], then["instances"]
        self.choices[at], self.rewards[at], self.lasting[at] = choices, reward, 0.0 if last else 1.0
        self.count += 1

    def sample(self, chance: np.random.Generator, batch: int) -> tuple[torch.Tensor, ...]:
        at = chance.integers(0, min(self.count, len(self.rewards)), batch)
        columns = (self.features, self.following, self.there, self.choices, self.rewards, self.lasting)
        return tuple(torch.from_numpy(column[at]) for column in columns)


Progress = Callable[[int, float, Callable[[], Network]], bool]
"""Told the step, the mean reward of the last ones, and how to get the network as it is now; False ends the training."""
_TOLD_EVERY = 50


def train(settings: Settings, make: Callable[[int], Scenario], progress: Progress = lambda *_: True) -> Network:
    """Train a network to be better than the rule. `make` makes the fleet of a number: the same number is the same fleet."""
    torch.manual_seed(settings.seed)
    torch.set_num_threads(1)
    chance = np.random.default_rng(settings.seed)
    online, target = Branches(settings.hidden), Branches(settings.hidden)
    target.load_state_dict(online.state_dict())
    optimiser = torch.optim.Adam(online.parameters(), lr=settings.learning_rate)
    replay, updates = Replay(settings.buffer), 0
    numbers = itertools.count()
    envs = [FleetEnv(make, INSTANCES_MAX, settings.reward, rival=Split) for _ in range(settings.fleets)]
    episodes = [Episode(env, next(numbers)) for env in envs]
    rewards: list[float] = []
    for step in range(0, settings.steps, settings.fleets):
        epsilon = _epsilon(settings, step)
        best = _best(online, [episode.seen for episode in episodes], settings.margin)
        if step < settings.warm_up:
            best = np.full_like(best, PROPOSED)
        for k, episode in enumerate(episodes):
            before, there = episode.seen, episode.seen["mask"] > 0
            choices = episode.trial.choose(best[k], there, epsilon, settings.hold, chance)
            reward, over = episode.act(choices)
            replay.add(before, choices, reward, episode.seen, over)
            rewards.append(reward)
            if over:
                episodes[k] = Episode(envs[k], next(numbers))
        if step < settings.warm_up:
            continue
        for _ in range(max(1, settings.fleets // settings.train_every)):
            _learn(online, target, optimiser, replay.sample(chance, settings.batch), settings.discount)
            updates += 1
            if updates % settings.target_every == 0:
                target.load_state_dict(online.state_dict())
        told = step // settings.fleets % _TOLD_EVERY == 0
        if told and not progress(step, float(np.mean(rewards[-2000:])), partial(exported, online)):
            break
    return exported(online)


def _epsilon(settings: Settings, step: int) -> float:
    fallen = min(step / max(settings.exploration * settings.steps, 1), 1.0)
    return settings.epsilon_first + fallen * (settings.epsilon_last - settings.epsilon_first)


class Episode:
    """One fleet on its way through its scenario."""

    def __init__(self, env: FleetEnv, number: int) -> None:
        self._env, self.trial = env, Trial()
        self.seen, self._info = env.reset(seed=number)

    def act(self, choices: NDArray[np.int64]) -> tuple[float, bool]:
        """Another second, with these choices, int64 [INSTANCES_MAX]; by how much it was better than the rule's, and whether it was the
        last."""
        self.seen, reward, _, over, self._info = self._env.step(wish(choices, self._info["proposal"]))
        return reward, over


class Trial:
    """What one fleet tries out: one branch, as a rule, departs from the rest for some seconds, so that what comes of it is known to be
    its doing."""

    def __init__(self) -> None:
        self._left = 0
        self._branch, self._choice, self._on_rule = 0, 0, False

    def choose(
        self,
        best: NDArray[np.int64],
        there: NDArray[np.bool_],
        epsilon: float,
        hold: int,
        chance: np.random.Generator,
    ) -> NDArray[np.int64]:
        """int64 [INSTANCES_MAX]: the best choices, or, in a share `epsilon` of the time, those but for one branch that is there; half of
        these beside the rule's own."""
        if self._left <= 0 and chance.random() < epsilon / (epsilon + hold * (1 - epsilon)):
            self._left = hold
            self._branch = int(np.flatnonzero(there)[chance.integers(there.sum())])
            self._choice, self._on_rule = int(chance.integers(len(CHOICES))), bool(chance.random() < 0.5)
        if self._left <= 0:
            return best
        self._left -= 1
        tried = np.full_like(best, PROPOSED) if self._on_rule else best.copy()
        tried[self._branch] = self._choice
        return tried


def _best(online: Branches, seen: Sequence[Observation], margin: float) -> NDArray[np.int64]:
    """int64 [fleets, INSTANCES_MAX]: the best choice of each branch of each fleet; the rule's for who is not there."""
    features = np.stack([each["instances"] for each in seen])
    there = np.stack([each["mask"] for each in seen]) > 0
    with torch.no_grad():
        values = online(torch.from_numpy(features), torch.from_numpy(there)).numpy()
    return np.where(there, [chosen(each, margin) for each in values], PROPOSED)


def _learn(
    online: Branches,
    target: Branches,
    optimiser: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, ...],
    discount: float,
) -> None:
    features, following, there, choices, rewards, lasting = batch
    taken = online(features, there).gather(-1, choices[..., None]).squeeze(-1)
    with torch.no_grad():
        # The online network chooses, the target network values: the double estimate.
        next_choices = online(following, there).argmax(-1, keepdim=True)
        valued = target(following, there).gather(-1, next_choices).squeeze(-1)
        fleet_value = (valued * there).sum(-1) / there.sum(-1)
        goal = (rewards + discount * lasting * fleet_value)[:, None].expand_as(taken)
    loss = (nn.functional.smooth_l1_loss(taken, goal, reduction="none") * there).sum() / there.sum()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(online.parameters(), 10.0)
    optimiser.step()


def exported(online: Branches) -> Network:
    """As the policy uses it; without a margin, and of unknown provenance."""
    layers = {}
    for name in LAYERS:
        layer = getattr(online, name)
        layers[name] = (layer.weight.detach().numpy().T.copy(), layer.bias.detach().numpy().copy())
    return Network(layers, 0.0, {})


def dump(network: Network) -> str:
    """What `trimtab.actuator.policy.dqn.load` reads. Weights have six digits: more say nothing."""

    def plain(array: NDArray[np.floating[Any]]) -> Any:
        return [plain(row) for row in array] if array.ndim > 1 else [float(f"{value:.6g}") for value in array]

    layers = {name: [plain(a) for a in pair] for name, pair in network.layers.items()}
    if not all(math.isfinite(v) for pair in network.layers.values() for a in pair for v in a.ravel().tolist()):
        raise ValueError("the training diverged: its weights are no numbers; try a lower learning rate")
    return json.dumps(
        {
            "provenance": dict(network.provenance),
            "margin": network.margin if math.isfinite(network.margin) else None,
            "features": list(NAMES),
            "choices": list(CHOICES),
            "layers": layers,
        }
    )
