"""`trimtab replay` on what a real collector stored of a fleet whose fault is known."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from tests.actuator.replay.staged import TOLD_AFTER_SECONDS, stored
from trimtab import Exit, TrimtabError
from trimtab.actuator.fleetsim.drive import guarded
from trimtab.actuator.fleetsim.faults import Fault
from trimtab.actuator.fleetsim.fleet import Fleet
from trimtab.actuator.fleetsim.scenario import Arrivals, Scenario, Service, instances
from trimtab.actuator.policy import POLICIES
from trimtab.actuator.replay.cli import replay
from trimtab.actuator.settings import GuardSettings
from trimtab.actuator.state import Vector
from trimtab.agent.settings import Tls

ONSET, SECONDS = 90, 170
FAULTS = {
    "slow": Fault(2, "slow", ONSET, SECONDS, factor=4.0),
    "slow, then slower": Fault(2, "slow", ONSET, SECONDS, factor=3.0),
    "errors": Fault(2, "fail_fast", ONSET, SECONDS, ratio=0.7, error_seconds=0.003),
    "stuck": Fault(2, "stuck", ONSET + 10, ONSET + 30),
}


def scenario(fault: str, **changes: Any) -> Scenario:
    more = (Fault(2, "slow", ONSET + 40, SECONDS, factor=2.0),) if fault == "slow, then slower" else ()
    faults = [replace(f, detect_seconds=ONSET + TOLD_AFTER_SECONDS - f.onset_seconds) for f in (FAULTS[fault], *more)]
    made: dict[str, Any] = {
        "seed": 11, "seconds": SECONDS, "arrivals": Arrivals(rate_per_second=60.0),
        "instances": instances((1.0, 1.0, 1.0, 0.8), workers=2), "service": Service(mean_seconds=0.04, cv=0.6),
        "faults": tuple(faults), "overhead_seconds": 0.001,
    }  # fmt: skip
    return Scenario(**made | changes)


def invoke(*arguments: str, port: int = 9) -> Result:
    at = SimpleNamespace(collector=f"127.0.0.1:{port}", guard=GuardSettings())
    settings = SimpleNamespace(actuator=at, tls=Tls())
    return CliRunner().invoke(replay, arguments, obj=settings, env={"COLUMNS": "120"})


def told(result: Result) -> Any:
    assert result.exception is None, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("runtime_tells", [True, False])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_the_scenario_is_recovered(tmp_path: Path, fault: str, runtime_tells: bool) -> None:
    with stored(tmp_path, scenario(fault), ONSET, runtime_tells) as truth:
        found = told(invoke("i-1", "--json", "--policy", "neutral", port=truth.port))
    assert (found["subjects"], found["onset_second"], found["seconds"]) == ([truth.subject], ONSET, SECONDS)
    figures = {f["name"]: f for f in found["fidelity"]}
    # What is told as recorded is the truth, but for what sketches round.
    assert figures["mean"]["recorded"] == pytest.approx(truth.mean_seconds, rel=0.02)
    assert figures["p99"]["recorded"] == pytest.approx(truth.p99_seconds, rel=0.02)
    assert figures["errors"]["recorded"] == pytest.approx(truth.error_ratio, abs=1e-9)
    assert figures["mean"]["simulated"] == pytest.approx(truth.mean_seconds, rel=0.25)
    assert figures["p99"]["simulated"] == pytest.approx(truth.p99_seconds, rel=0.3)
    assert figures["errors"]["simulated"] == pytest.approx(truth.error_ratio, abs=0.02)
    assert not any(f["differs"] for f in found["fidelity"])
    rows = {row["policy"]: row for row in found["policies"]}
    assert rows["by hand"]["hit_more"]["mean"] + rows["by hand"]["hit_more"]["half"] < 0
    assert rows["by hand"]["hit"]["mean"] < 0.7 * rows["neutral"]["hit"]["mean"]
    assert rows["by hand"]["first_change_seconds"] == TOLD_AFTER_SECONDS
    assert rows["neutral"]["hit_more"]["mean"] == 0


@pytest.mark.parametrize("fault", ["slow", "errors"])
def test_what_was_not_done_is_foretold(tmp_path: Path, fault: str) -> None:
    """Of a fleet that was steered, what neutral weights and a drained instance would have meant; the truth is other runs of it."""
    steered = guarded(POLICIES["proportional"](), GuardSettings())
    with stored(tmp_path, scenario(fault), ONSET, decide=steered) as truth:
        found = told(invoke("i-1", "--json", "--seeds", "3", port=truth.port))
    assert not any(f["differs"] for f in found["fidelity"])
    assert not any("no routing decision" in a for a in found["assumptions"])
    rows = {row["policy"]: row for row in found["policies"]}
    for name, decide in {"neutral": neutral, "by hand": drained}.items():
        mean, errors = truly(scenario(fault), decide)
        assert rows[name]["mean_seconds"]["mean"] == pytest.approx(mean, rel=0.25)
        assert rows[name]["errors"]["mean"] / rows[name]["requests"] == pytest.approx(errors, abs=0.03)
    assert rows["neutral"]["hit_more"]["mean"] - rows["neutral"]["hit_more"]["half"] > 0
    assert rows["proportional"]["hit"]["mean"] == pytest.approx(rows["as it was"]["hit"]["mean"], rel=0.5)
    assert rows["as it was"]["lowest_instance"] == truth.subject
    assert rows["as it was"]["lowest_weight"] < 0.1


def neutral(second: int) -> Vector:
    return np.ones(4)


def drained(second: int) -> Vector:
    return np.array([1.0, 1, second < ONSET + TOLD_AFTER_SECONDS, 1])


def truly(of: Scenario, weights: Callable[[int], Vector]) -> tuple[float, float]:
    """Mean of the good answers since the onset, in seconds, and the share of errors."""
    fleet, latency, failed = Fleet(of), [], []
    while not fleet.done:
        answers = fleet.step(weights(fleet.second)).answers
        if fleet.second > ONSET:
            latency.append(np.array(answers["latency"]))
            failed.append(np.array(answers["failed"]))
    bad = np.concatenate(failed) > 0
    return float(np.concatenate(latency)[~bad].mean()), float(bad.mean())


def test_a_person_reads_it(tmp_path: Path) -> None:
    with stored(tmp_path, scenario("slow"), ONSET) as truth:
        shown = invoke("i-1", "--seeds", "2", "--policy", "neutral", port=truth.port)
        one = invoke("i-1", "--seeds", "1", "--by-hand", "30s", "--balancer", "leastconn", "--json", port=truth.port)
    assert shown.exception is None, shown.output
    assert "incident i-1: n/8082, CPU contention" in shown.stdout
    assert "told after 6 s" in shown.stdout
    assert re.search(r"Best: by hand\. It would have spared [\d,]+ ± [\d,]+ of [\d,]+ requests", shown.stdout)
    assert "as it was, simulated (recorded): mean" in shown.stdout
    assert "- no routing decision is stored of that time: as it was, all weights were neutral" in shown.stdout
    rows = {row["policy"]: row for row in told(one)["policies"]}
    assert list(rows) == ["as it was", "neutral", "by hand", *sorted(POLICIES.keys() - {"neutral"})]
    assert rows["by hand"]["first_change_seconds"] == 30
    # With one seed nothing is known of chance.
    assert rows["by hand"]["hit"]["half"] is None


def test_the_file_is_read_when_no_collector_runs(tmp_path: Path) -> None:
    with stored(tmp_path / "collector", scenario("slow"), ONSET):
        pass
    result = invoke("i-1", "--json", "--seeds", "1", "--policy", "neutral", "--state", str(tmp_path))
    assert told(result)["seconds"] == SECONDS
    assert "no collector answers; reading" in result.stderr


def test_what_cannot_be_replayed_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = scenario("slow", arrivals=Arrivals(rate_per_second=0.5))
    with stored(tmp_path, quiet, ONSET) as truth:
        for arguments, message, code in (
            (["i-9"], r"no incident 'i-9'; `trimtab incidents` lists them", Exit.NO),
            (["i-1"], r"incident i-1: \d+ requests in the 90 s before its onset; it takes 100", Exit.NO),
            (
                ["i-1", "--model", "x"],
                "the store knows no instance of model 'x'; `trimtab instances` lists them",
                Exit.NO,
            ),
        ):
            error = invoke(*arguments, port=truth.port).exception
            assert isinstance(error, TrimtabError)
            assert re.search(message, str(error)), error
            assert (error.exit_code, "\n" in str(error)) == (code, False)
    monkeypatch.setitem(sys.modules, "trimtab.actuator.replay.play", None)
    error = invoke("i-1").exception
    assert isinstance(error, ModuleNotFoundError), "a part of trimtab that is missing is trimtab's own error"


def test_without_numba_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.startswith(("trimtab.actuator.fleetsim", "trimtab.actuator.replay."))]:
        if not name.endswith((".cli", ".scenario")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    error = invoke("i-1").exception
    assert isinstance(error, TrimtabError)
    assert str(error) == "`trimtab replay` needs numba: pip install 'trimtab[collector]'"
    assert error.exit_code == Exit.SETTINGS
