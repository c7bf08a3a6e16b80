"""Training and the search: the same seed is the same network, a study goes on where it was, and its page shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result

from trimtab import TrimtabError
from trimtab.actuator.fleetsim.scenario import Scenario
from trimtab.actuator.policy.dqn import PROPOSED, load
from trimtab.actuator.policy.features import NAMES
from trimtab.actuator.tune import search as searching
from trimtab.actuator.tune.cli import tune
from trimtab.actuator.tune.dqn import Settings, Trial, train
from trimtab.actuator.tune.fleets import SIZES, fleet
from trimtab.actuator.tune.page import page
from trimtab.actuator.tune.score import Scored, compared

SHORT = Settings(steps=320, fleets=4, hidden=8, batch=16, warm_up=80, target_every=10)


def short(number: int) -> Scenario:
    return replace(fleet(number, 7), seconds=30)


def told(network: object) -> np.ndarray:
    features = np.random.default_rng(0).normal(size=(5, len(NAMES))).astype(np.float32)
    return network.values(features)  # type: ignore[attr-defined,no-any-return]


def test_the_same_seed_is_the_same_network() -> None:
    first, second, other = (train(replace(SHORT, seed=seed), short) for seed in (1, 1, 2))
    np.testing.assert_array_equal(told(first), told(second))
    assert not np.array_equal(told(first), told(other))


def test_a_training_ends_when_it_is_told_to() -> None:
    seen = []

    def once(step: int, reward: float, network: Callable[[], object]) -> bool:
        seen.append((step, reward, network()))
        return False

    train(replace(SHORT, steps=10_000), short, once)
    assert len(seen) == 1


def test_fleets_are_as_they_are_said_to_be() -> None:
    sizes = {len(fleet(number).instances) for number in range(300)}
    assert (min(sizes), max(sizes)) == SIZES
    assert fleet(5) == fleet(5)
    assert fleet(5) != fleet(5, seed=1)


def test_one_branch_at_a_time_departs_and_holds() -> None:
    """Never one that is not there."""
    chance, trial = np.random.default_rng(0), Trial()
    best, there = np.asarray([1, 2, PROPOSED, 3, 4]), np.asarray([True, True, False, True, True])
    course = [trial.choose(best, there, 0.5, 5, chance) for _ in range(2000)]
    assert all(c[2] == PROPOSED for c in course)
    departed = [int((c != best).sum()) for c in course if not ((c == PROPOSED).sum() >= 4)]
    assert max(departed) == 1
    share = np.mean([not np.array_equal(c, best) for c in course])
    assert 0.3 < share < 0.6
    assert all(np.array_equal(trial.choose(best, there, 0.0, 5, chance), best) for _ in range(20)[6:])


def test_a_score_is_half_the_difference_of_prices() -> None:
    assert compared([0.0, 0.2], [0.0, 0.0]) == Scored(0.05, 0.1, pytest.approx(0.05))


def quadratic(settings: Settings, report: Callable[[int, float], bool]) -> float:
    value = (np.log10(settings.learning_rate) + 3) ** 2 + settings.reward.alpha
    for part in range(1, 4):
        if not report(part, value):
            raise searching.Cut
    return float(value)


def test_a_study_goes_on_where_it_was(tmp_path: Path) -> None:
    file, numbers = tmp_path / "study.log", []
    for _ in range(2):
        study = searching.opened(file, seed=0)
        searching.search(study, Settings(), 8, quadratic, lambda trial: numbers.append(trial.number))
    assert numbers == list(range(16))
    settings, value = searching.best(study, Settings(steps=5))
    complete = [row for row in searching.rows(study) if row["state"] == "complete"]
    assert value == min(row["score"] for row in complete)
    assert quadratic(settings, lambda *_: True) == pytest.approx(value)
    assert settings.steps == 5
    html = page(searching.rows(study), searching.importances(study))
    assert html.count("<svg") >= 3
    assert html.count("<tr>") == 17
    svg = html[html.index("<svg") : html.index("</svg>") + 6]
    ElementTree.fromstring(svg)


def test_a_study_without_a_completed_trial_has_no_best(tmp_path: Path) -> None:
    study = searching.opened(tmp_path / "study.log", seed=0)
    with pytest.raises(TrimtabError, match="no completed trial"):
        searching.best(study, Settings())
    assert "<svg" in page(searching.rows(study), searching.importances(study))


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(tune, [str(a) for a in arguments])


def test_a_network_is_trained_written_and_scored(tmp_path: Path) -> None:
    settings, out = tmp_path / "settings.json", tmp_path / "net.json"
    settings.write_text(json.dumps({"fleets": 4, "hidden": 8, "batch": 16, "warm_up": 80}))
    result = ask("train", out, "--settings", settings, "--steps", 1000, "--seed", 3, "--held-out", 2)
    assert result.exit_code == 0, result.output
    network = load(out.read_bytes())
    assert network.provenance["settings"]["seed"] == 3
    assert network.provenance["settings"]["hidden"] == 8
    scored = json.loads(ask("score", out, "--held-out", 2, "--json").output)
    assert scored["mean"] == pytest.approx(network.provenance["score"]["mean"], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "content", "arguments", "said"),
    [
        ("bad.json", "{}", ["score"], "no network"),
        ("bad.json", '{"steps": "x"}', ["train", "OUT", "--settings"], "steps"),
        ("bad.json", '{"reward": {"beta": -1}}', ["train", "OUT", "--settings"], "beta"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, name: str, content: str, arguments: list[str], said: str) -> None:
    (tmp_path / name).write_text(content)
    result = ask(*(a if a != "OUT" else tmp_path / "out" for a in arguments), tmp_path / name)
    assert isinstance(result.exception, TrimtabError)
    assert said in str(result.exception)
    assert "\n" not in str(result.exception)
