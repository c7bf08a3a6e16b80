"""Which runs are still to be made, and in which order: neighbours are compared, and nobody always goes first."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from tests.bench.routing_real.contestants import Contestant
from tests.bench.routing_real.record import Plan, Record
from tests.bench.routing_real.scenarios import SCENARIOS
from trimtab import Exit, TrimtabError


@dataclass(frozen=True, slots=True)
class Visit:
    """Runs on one fleet, one after the other: (scenario, contestant)."""

    pair: int
    model: str
    runs: tuple[tuple[str, str], ...]


def visits(
    scenarios: Sequence[str], contestants: Mapping[str, Contestant], pairs: int, made: Sequence[Record], seed: int
) -> list[Visit]:
    """Pair by pair, so that what changes in an hour changes for all scenarios.

    Within a pair the contestants of a scenario follow each other, and those of the next pair in the opposite order.
    Scenarios that are served by the same model share a fleet.
    """
    done = {(r.pair, r.scenario, r.contestant) for r in made}
    found = []
    for pair in range(pairs):
        draw = random.Random(f"{seed} {pair}")
        shuffled = draw.sample(list(scenarios), len(scenarios))
        models = list(dict.fromkeys(SCENARIOS[name].model for name in shuffled))
        by_fleet = sorted(shuffled, key=lambda name: models.index(SCENARIOS[name].model))
        for model, names in groupby(by_fleet, key=lambda name: SCENARIOS[name].model):
            runs = [(name, who) for name in names for who in _order(name, contestants, pair, seed)]
            rest = tuple((name, who) for name, who in runs if (pair, name, who) not in done)
            found += [Visit(pair, model, rest)] if rest else []
    return found


def check(made: Sequence[Record], plan: Plan, seed: int) -> None:
    """Raises TrimtabError when runs were made by another plan: they cannot be compared."""
    for record in made:
        if (record.plan, record.seed) != (plan, seed):
            raise TrimtabError(
                f"the file holds runs of another plan ({record.plan}, seed {record.seed}): give the same options, or another file",
                Exit.STATE,
            )


def _order(scenario: str, contestants: Mapping[str, Contestant], pair: int, seed: int) -> list[str]:
    names = [name for name, one in contestants.items() if one.takes_part(SCENARIOS[scenario])]
    # Two pairs that follow each other mirror each other.
    drawn = random.Random(f"{seed} {scenario} {pair // 2}").sample(names, len(names))
    return drawn[::-1] if pair % 2 else drawn
