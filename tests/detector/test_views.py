"""When an incident opens, all views are asked, and the symptom says how many agree."""

from __future__ import annotations

import re

import numpy as np

from tests.detector.faults import VICTIM, slow
from tests.detector.fleet import Fleet, Stage
from trimtab.detector.features import SCALE_FLOORS
from trimtab.detector.views import LEARN_EVERY, Views
from trimtab.rootcause.rank import Ranking

ROWS = 12
GROUPS, WELL = np.zeros(ROWS, dtype=np.int64), np.ones(ROWS, dtype=np.bool_)


def test_the_symptom_says_how_many_views_agree_for_as_long_as_it_is_open() -> None:
    stage = Stage(Fleet())
    stage.run(60)
    stage.fleet.strike(slow(4, VICTIM))
    stage.run(20)
    (incident,) = stage.incidents
    found = re.search(r", in (\d) of (\d) views$", incident.symptom)
    assert found, incident.symptom
    odd, known = int(found[1]), int(found[2])
    # Own history and its peers at the least; the hour of the day is not known after a minute, the forest learns every fifth window.
    assert 2 <= odd <= known <= 4
    stage.run(10)
    assert stage.incidents[0].symptom.endswith(found[0])


def test_views_count_what_is_odd_and_what_is_known() -> None:
    views, chance = Views(10), np.random.default_rng(0)
    views.resize(ROWS)
    nothing, odd = np.full(ROWS, np.nan, dtype=np.float32), np.full(ROWS, 0.9, dtype=np.float32)

    def window() -> np.ndarray:
        return (0.1 * chance.standard_normal((ROWS, len(SCALE_FLOORS)))).astype(np.float32)

    assert [counts.tolist() for counts in views.agree(window(), GROUPS, [odd, nothing])] == [[1] * ROWS, [1] * ROWS]
    for _ in range(40 * LEARN_EVERY):
        views.learn(window(), GROUPS, WELL)
    far = window()
    far[3], far[5] = 40, np.nan
    agreed, known = views.agree(far, GROUPS, [odd, nothing])
    assert (agreed[3], known[3]) == (3, 3)
    assert (agreed[5], known[5]) == (1, 1)
    assert np.delete(agreed, [3, 5]).max() <= 2
    views.forget(np.asarray([3]))
    assert [int(counts[3]) for counts in views.agree(far, GROUPS, [nothing])] == [0, 0]


def test_what_began_before_the_history_is_explained_as_well_as_may_be() -> None:
    stage = Stage(Fleet(), Ranking())
    stage.run(30)
    peers = [instance for instance in stage.fleet.instances if instance != VICTIM]
    for seconds in (100, 3600, 10**6):
        since = stage.fleet.now_ns - seconds * 10**9
        causes = Ranking().explain(stage.watch._history, VICTIM, since, peers)
        assert causes[0].mechanism == "unknown"
