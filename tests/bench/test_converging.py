"""When a training has converged, and what the ratio of two is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bench import converging
from tests.bench.converging import Curve, goal, ratio
from trimtab.actuator.tune.dqn import Settings

STEPS = (1000, 2000, 3000, 4000, 5000, 6000)


def test_converged_is_who_has_come_95_percent_of_the_way_of_the_defaults() -> None:
    """Three scores in a row, and one goal for all seeds."""
    aim = goal([Curve(STEPS, (0.5, 0.3, 0.2, 0.1, 0.1, 0.1)), Curve(STEPS, (0.1, 0.3, 0.3, 0.1, 0.1, 0.1))])
    assert aim == pytest.approx(0.3 - 0.95 * 0.2)
    assert Curve(STEPS, (0.6, 0.3, 0.2, 0.1, 0.0, 0.1)).reaches(aim) == 5000
    assert Curve(STEPS, (0.6, 0.0, 0.5, 0.5, 0.5, 0.5)).reaches(aim) is None
    assert Curve(STEPS, (0.1, 0.1, 0.1, 0.5, 0.5, 0.5)).reaches(aim) == 3000


def test_the_ratio_is_found_to_defaults_and_says_how_sure_it_is() -> None:
    same = ratio([(1000, 1000), (3000, 3000)])
    assert (same.value, same.low, same.high) == (1, 1, 1)
    sooner = ratio([(800, 1000), (1600, 2000), (4000, 5000)])
    assert (sooner.low, sooner.value, sooner.high) == pytest.approx((0.8, 0.8, 0.8))
    mixed = ratio([(500, 1000), (2000, 1000), (1000, 1000)])
    assert mixed.value == pytest.approx(1)
    assert mixed.low < 1 < mixed.high


def test_the_same_seeds_and_steps_are_given_to_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who never converges counts with the last step."""
    trained: list[Settings] = []

    def curve(settings: Settings, every: int, held_out: int) -> Curve:
        trained.append(settings)
        return Curve(STEPS, (0.5, 0.4, *(0.4,) * 4) if settings.learning_rate == 1.0 else (0.5, 0.1, *(0.0,) * 4))

    monkeypatch.setattr(converging, "curve", curve)
    file, save = tmp_path / "found.json", tmp_path / "curves.json"
    file.write_text('{"learning_rate": 1.0, "steps": 9}')
    result = CliRunner().invoke(converging.main, [str(file), "--seeds", "2", "--save", str(save)])
    assert result.exit_code == 0, result.output
    assert [(s.seed, s.steps) for s in trained] == [(1, 12_000), (1, 12_000), (2, 12_000), (2, 12_000)]
    assert "never" in result.output
    figures = json.loads(result.output.splitlines()[-1])
    assert figures["steps_found_to_defaults"] == [1.2, 1.2, 1.2]
    assert figures["last_found_less_defaults"] == [0.4, 0.4, 0.4]
    assert len(json.loads(save.read_text())["found"]) == 2
