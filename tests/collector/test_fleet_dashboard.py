"""The fleet's dashboard asks for signals that there are, with expressions that Prometheus takes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from trimtab.agent.registry import discover

FILE = Path(__file__).resolve().parents[2] / "packaging" / "grafana" / "trimtab-fleet.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in DRAWN for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}


def names(expression: str) -> set[str]:
    return set(re.findall(r"trimtab_\w+", expression))


def federated() -> set[str]:
    """Every name that /federate can have."""
    found = set()
    for collector in discover():
        for signal in collector.signals:
            name = f"trimtab_{signal.kind}_{signal.name}"
            found |= {name, f"{name}_count", f"{name}_mean"} if signal.sketch else {name}
    return found


def test_every_expression_asks_for_signals_that_there_are() -> None:
    asked = [*EXPRESSIONS, *(VARIABLES[name]["query"]["query"] for name in ("node", "model"))]
    there = federated()
    assert [(e, names(e) - there) for e in asked if not names(e) or names(e) - there] == []


def test_a_distribution_is_asked_for_one_quantile() -> None:
    sketches = {f"trimtab_{s.kind}_{s.name}" for collector in discover() for s in collector.signals if s.sketch}
    for expression in EXPRESSIONS:
        assert bool(names(expression) & sketches) == ("quantile=" in expression), expression


def test_it_can_be_imported() -> None:
    assert (DASHBOARD["id"], DASHBOARD["uid"]) == (None, "trimtab-fleet")
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    required = {entry["id"] for entry in DASHBOARD["__requires"] if entry["type"] == "panel"}
    assert {panel["type"] for panel in DRAWN} == required
    sources = [panel["datasource"] for panel in DRAWN] + [t["datasource"] for panel in DRAWN for t in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) == VARIABLES.keys()
    for panel in DRAWN:
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


def test_no_panel_lies_on_another() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


def test_prometheus_takes_the_expressions(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool here: apt install prometheus brings it")
    filled = [e.replace("$node", ".*").replace("$model", ".*") for e in EXPRESSIONS]
    rules = [{"record": f"check:number{number}", "expr": e} for number, e in enumerate(filled)]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "check", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
