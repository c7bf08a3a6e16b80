"""The search for hyper-parameters (the published AHPO): Bayesian optimisation by a Gaussian process, hopeless trainings cut short,
resumable.

The only file that imports Optuna.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trimtab import Exit, TrimtabError
from trimtab.actuator.reward import Reward
from trimtab.actuator.tune.dqn import Settings

STARTUP_TRIALS = 6
"""They are drawn at random, before the process knows anything."""
_NAME = "trimtab"

Score = Callable[[Settings, Callable[[int, float], bool]], float]
"""Trains with these settings, reporting (step, score) as it goes until told False; the score at the end: lower is better, whatever α, β
and γ are."""


class Cut(Exception):
    """The training was cut short: others were better by then."""


def suggested(base: Settings, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Settings:
    """The settings of a trial: `base`, but for what is searched over."""
    return replace(
        base,
        learning_rate=trial.suggest_float("learning_rate", 1e-4, 3e-3, log=True),
        epsilon_first=trial.suggest_float("epsilon_first", 0.1, 1.0),
        epsilon_last=trial.suggest_float("epsilon_last", 0.005, 0.1, log=True),
        exploration=trial.suggest_float("exploration", 0.1, 0.9),
        buffer=trial.suggest_int("buffer", 2_000, 50_000, log=True),
        reward=Reward(
            alpha=trial.suggest_float("alpha", 0.0, 5.0),
            beta=trial.suggest_float("beta", 0.1, 2.0, log=True),
            gamma=trial.suggest_float("gamma", 0.001, 0.5, log=True),
        ),
    )


def opened(file: Path, seed: int) -> optuna.Study:
    """The study in this file, which is made when there is none. Raises TrimtabError."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("optuna").propagate = False
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=1)
    try:
        storage = JournalStorage(JournalFileBackend(str(file)))
        return optuna.create_study(
            storage=storage, study_name=_NAME, sampler=sampler, pruner=pruner, load_if_exists=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise TrimtabError(f"{file}: no study: {error}; name another file", Exit.USAGE) from error


def search(
    study: optuna.Study, base: Settings, trials: int, score: Score, done: Callable[[optuna.trial.FrozenTrial], None]
) -> None:
    """Try so many more settings; `done` is told of each."""

    def objective(trial: optuna.Trial) -> float:
        def report(step: int, value: float) -> bool:
            trial.report(value, step)
            return not trial.should_prune()

        try:
            return score(suggested(base, trial), report)
        except Cut as cut:
            raise optuna.TrialPruned from cut

    study.optimize(objective, n_trials=trials, callbacks=[lambda _study, trial: done(trial)])


def best(study: optuna.Study, base: Settings) -> tuple[Settings, float]:
    """The best settings so far, and their score. Raises TrimtabError when no trial was completed."""
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise TrimtabError("the study has no completed trial: run `trimtab tune search` longer", Exit.NO)
    winner = min(complete, key=lambda t: t.value or 0.0)
    return suggested(base, winner), float(winner.value or 0.0)


def rows(study: optuna.Study) -> list[dict[str, Any]]:
    """Each trial as plain data: number, state, score, parameters, and the scores on the way."""
    return [
        {
            "number": t.number,
            "state": t.state.name.lower(),
            "score": t.value,
            "params": t.params,
            "course": dict(t.intermediate_values),
        }
        for t in study.trials
    ]


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the good scores each parameter explains (PED-ANOVA, Watanabe et al., 2023); empty with too few trials."""
    complete = sum(t.state == optuna.trial.TrialState.COMPLETE for t in study.trials)
    return dict(optuna.importance.get_param_importances(study)) if complete > STARTUP_TRIALS else {}
