"""The dashboard asks for metrics that there are, with expressions that Prometheus takes, in a file that Grafana can import."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.agent.test_metrics import Agent, samples
from trimtab.agent.figures import PREFIX

FILE = Path(__file__).resolve().parents[2] / "packaging" / "grafana" / "trimtab-agent.json"
DASHBOARD: dict[str, Any] = json.loads(FILE.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in DRAWN for target in panel["targets"]]


def names(expression: str) -> set[str]:
    return set(re.findall(rf"{PREFIX}\w+", expression))


@pytest.fixture
def there(tmp_path: Path) -> set[str]:
    """All metrics; every one has a sample."""
    one = Agent(tmp_path)
    one.vitals.window_seconds = 0.1
    return {PREFIX + name.partition("{")[0] for name in samples(one.page())}


def test_every_expression_asks_for_metrics_that_there_are(there: set[str]) -> None:
    assert [(e, names(e) - there) for e in EXPRESSIONS if not names(e) or names(e) - there] == []
    [instances] = [variable for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    assert names(instances["query"]["query"]) <= there


def test_every_metric_is_drawn(there: set[str]) -> None:
    assert set().union(*map(names, EXPRESSIONS)) == there


def test_counters_are_drawn_as_rates_and_gauges_are_not() -> None:
    for expression in EXPRESSIONS:
        for name in names(expression):
            counted = re.search(rf"(rate|increase)\({name}\b", expression) is not None
            assert counted == name.endswith("_total"), expression


def test_it_can_be_imported() -> None:
    assert DASHBOARD["id"] is None
    assert {"title", "uid", "schemaVersion", "time", "templating", "panels", "__requires"} <= DASHBOARD.keys()
    assert [panel["title"] for panel in PANELS if panel["type"] == "row"] == [
        "Health",
        "Delivery",
        "Cost",
        "Collectors",
    ]
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    used = {panel["type"] for panel in DRAWN}
    assert used == {entry["id"] for entry in DASHBOARD["__requires"] if entry["type"] == "panel"}
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    sources = [panel["datasource"] for panel in DRAWN] + [t["datasource"] for panel in DRAWN for t in panel["targets"]]
    assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources)
    referred = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) - {"__rate_interval"}
    assert referred == variables.keys()
    for panel in DRAWN:
        assert panel["title"], panel["id"]
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def test_no_panel_lies_on_another() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (a, b)


def test_prometheus_takes_the_expressions(tmp_path: Path) -> None:
    if not shutil.which("promtool"):
        pytest.skip("no promtool here: apt install prometheus brings it")
    rules = [
        {"record": f"check:number{number}", "expr": e.replace("$__rate_interval", "5m").replace("$instance", ".*")}
        for number, e in enumerate(EXPRESSIONS)
    ]
    # JSON is YAML.
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "check", "rules": rules}]}))
    command = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(EXPRESSIONS)} rules found" in done.stdout
