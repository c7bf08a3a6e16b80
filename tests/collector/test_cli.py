"""`trimtab nodes`, `instances`, `series` and `query`, as their user sees them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from tests.collector.sender import CLOCK, Recording, collecting, latency, publish, schema, window
from tests.collector.test_query import until
from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector.instance_tables import instances_table
from trimtab.collector.instances_cli import instances
from trimtab.collector.node_tables import nodes_table
from trimtab.collector.nodes_cli import nodes, show
from trimtab.collector.offline import asking
from trimtab.collector.options import SHOWN_MAX
from trimtab.collector.query_cli import query as query_command
from trimtab.collector.series_cli import series

S = schema()


def settings_of(port: int) -> Any:
    return SimpleNamespace(actuator=SimpleNamespace(collector=f"127.0.0.1:{port}"), tls=Tls())


def invoke(command: object, *arguments: str, port: int = 9) -> Result:
    return CliRunner().invoke(command, arguments, obj=settings_of(port), env={"COLUMNS": "220"})  # type: ignore[arg-type]


def test_nodes(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, query):
        assert "no agent has connected yet" in invoke(nodes, port=collector.port).output
        publish(telemetry, S, window(3, S), window(4, S, duration_ns=0))
        until(lambda: bool(query.Nodes(q.NodesRequest()).nodes[0].instances))
        shown = invoke(nodes, port=collector.port).output
        assert "gone" in shown
        assert "window.duration_ns: 0" in shown
        assert "n1/8080" in shown
        [node] = json.loads(invoke(nodes, "--json", port=collector.port).output)
        counts = {name: node[name] for name in ("windows", "duplicates", "lost", "refused", "state")}
        assert counts == {"windows": 1, "duplicates": 0, "lost": 2, "refused": 1, "state": "gone"}
        assert node["instances"][0]["score"] is None


def test_a_proxy_of_the_environment_is_not_asked_for_what_is_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with collecting(tmp_path) as (collector, *_):
        assert "no agent has connected yet" in invoke(nodes, port=collector.port).output


def test_query(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, *_):
        sql = "SELECT 1 AS a, NULL AS b, 'x,y' AS a"
        assert json.loads(invoke(query_command, sql, "--json", port=collector.port).output) == [
            {"a": 1, "b": None, "a_2": "x,y"}
        ]
        assert invoke(query_command, sql, "--csv", port=collector.port).output == 'a,b,a_2\n1,,"x,y"\n'
        assert "–" in invoke(query_command, sql, port=collector.port).output
        assert "\x1b" not in invoke(query_command, "SELECT chr(27) || '[2J'", port=collector.port).output
        assert (
            "only the first 10000 rows"
            in invoke(query_command, "FROM range(20000)", "--json", port=collector.port).stderr
        )
        wrong = invoke(query_command, "DROP TABLE windows", port=collector.port).exception
        assert isinstance(wrong, TrimtabError)
        assert (wrong.exit_code, "\n" in str(wrong)) == (Exit.USAGE, False)


@pytest.mark.parametrize("arguments", [(nodes,), (query_command, "SELECT 1", "--collector", "127.0.0.1:9")])
def test_no_collector(arguments: tuple[object, ...]) -> None:
    error = invoke(*arguments).exception  # type: ignore[arg-type]
    assert isinstance(error, TrimtabError)
    assert error.exit_code == Exit.UNREACHABLE
    assert "trimtab up" in str(error)


def test_query_reads_the_file_when_no_collector_runs(tmp_path: Path) -> None:
    with collecting(tmp_path / "collector") as (_, telemetry, _query):
        publish(telemetry, S, window(1, S))
    result = invoke(query_command, "SELECT seq FROM windows", "--json", "--state", str(tmp_path))
    assert json.loads(result.stdout) == [{"seq": 1}]
    assert "no collector answers; reading" in result.stderr


@pytest.mark.parametrize("online", [True, False])
def test_several_questions_are_answered_by_one_source(tmp_path: Path, online: bool) -> None:
    with collecting(tmp_path / "collector") as (collector, telemetry, _):
        publish(telemetry, S, window(1, S), window(2, S))
        if online:
            _several(settings_of(collector.port), tmp_path)
    if not online:
        _several(settings_of(9), tmp_path)
        with pytest.raises(TrimtabError, match="no collector answers"), asking(settings_of(9), "127.0.0.1:9", tmp_path):
            pass


def _several(settings: Any, state: Path) -> None:
    with asking(settings, None, state) as ask:
        assert ask("SELECT seq, seq + 1 FROM windows ORDER BY 1") == [[1, 2], [2, 3]]
        assert ask("SELECT count(*) FROM nodes") == [[1]]
        with pytest.raises(TrimtabError, match="DELETE is not possible here") as wrong:
            ask("DELETE FROM nodes")
        assert wrong.value.exit_code == Exit.USAGE
    with pytest.raises(TrimtabError, match=r"raise collector\.query_rows_max"), asking(settings, None, state) as ask:
        ask("FROM range(20000)")


class Fleet(Recording):
    """An Analysis that knows more than one instance."""

    def tick(self, now_unix_ns: int) -> q.FleetState:
        nan = float("nan")
        ill = q.InstanceState(
            id="n1/8081", node="n1", requests_per_second=3, latency_p99_seconds=0.7, incident="i-1", mechanism="oom"
        )
        return q.FleetState(
            unix_ns=now_unix_ns, instances=[q.InstanceState(id="n1/8080", node="n1", score=0.2, error_ratio=nan), ill]
        )


def test_instances(tmp_path: Path) -> None:
    first = schema({"instance": (["queue_depth"], ["n1/8080", "n1/8081", "n1/8082"])})
    second = schema({"instance": (["queue_depth"], ["n1/8080", "n1/8081"])})
    with collecting(tmp_path, analysis=Fleet()) as (collector, telemetry, query):
        assert isinstance(invoke(instances, port=collector.port).exception, TrimtabError)
        publish(telemetry, first, window(1, first), second, window(2, second))
        publish(telemetry, other := schema({"instance": (["queue_depth"], ["n2/1"])}), window(1, other), node="n2")
        until(lambda: bool(query.Nodes(q.NodesRequest()).nodes[0].instances))

        def listed(*arguments: str) -> list[str]:
            shown = json.loads(invoke(instances, "--json", *arguments, port=collector.port).stdout)
            return [one["instance"] for one in shown]

        assert listed() == ["n1/8080", "n1/8081", "n2/1"]
        assert listed("--all") == ["n1/8080", "n1/8081", "n1/8082", "n2/1"]
        assert listed("--node", "n2") == ["n2/1"]
        assert listed("--model", "m") == listed()
        assert listed("--model", "other") == []
        well, ill, _, quiet = json.loads(invoke(instances, "--json", "--all", port=collector.port).stdout)
        assert (ill["incident"], ill["mechanism"], ill["latency_p99_seconds"], ill["current"]) == (
            "i-1",
            "oom",
            0.7,
            True,
        )
        assert (well["incident"], well["score"], well["error_ratio"]) == (None, 0.2, None)
        assert {quiet[name] for name in ("score", "age_seconds", "requests_per_second", "incident")} == {None}
        shown = invoke(instances, "--all", port=collector.port).stdout
        assert shown.index("n1/8081") < shown.index("n1/8080") < shown.index("n1/8082")
        assert "4 instances of 1 model on 2 nodes; 1 gone" in shown


def test_series(tmp_path: Path) -> None:
    first = schema(
        {"instance": (["queue_depth", "in_flight"], ["n1/8080", "n1/8081"]), "gpu": (["power_watts"], ["n1/gpu/GPU-1"])}
    )
    values = [np.asarray([[1.0, 2.0], [1.0, np.nan]]), np.asarray([[np.nan]])]
    old = CLOCK.unix_ns() - 3600 * 10**9
    with collecting(tmp_path) as (collector, telemetry, _):
        # The machine may be up for less than that.
        boot = max(CLOCK.boottime_ns() - 3600 * 10**9, 0)
        publish(
            telemetry,
            first,
            window(1, first, sketches=[latency([0.01])], start_unix_ns=old, start_boottime_ns=boot),
            window(2, first, values),
        )

        def counted(*arguments: str) -> dict[str, int]:
            shown = json.loads(invoke(series, "--json", *arguments, port=collector.port).stdout)
            return {f"{one['kind']} {one['name']} {one['form']}": one["subjects"] for one in shown}

        # What was an hour ago is not now.
        assert counted("--kind", "instance", "queue") == {"instance queue_depth gauge": 2}
        found = counted()
        assert found["instance in_flight gauge"] == 1
        assert found["instance request_latency sketch"] == 0
        assert found["gpu power_watts gauge"] == 0
        shown = invoke(series, "power", port=collector.port).stdout
        assert "power_watts" in shown
        assert "in_flight" not in shown
        missing = invoke(series, "nothing", port=collector.port).exception
        assert isinstance(missing, TrimtabError)
        assert missing.exit_code == Exit.NO


def test_of_many_nodes_those_in_trouble_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    now = 10**18
    reply = q.NodesReply(now_unix_ns=now)
    for number in range(1000):
        reply.nodes.add(name=f"n{number:04}", connected=True, last_window_unix_ns=now - 10**9, windows=9)
    changes: dict[int, dict[str, Any]] = {
        3: {"lost": 7},
        4: {"connected": False, "last_window_unix_ns": now - 9 * 10**12},
        5: {"connected": False, "last_window_unix_ns": now - 10**12},
        6: {"last_window_unix_ns": now - 20 * 10**9},
        7: {"clock_error_seconds": -5.0},
        8: {"refused": 1, "last_refusal": "window.duration_ns: 0"},
    }
    for number, fields in changes.items():
        reply.nodes[number].MergeFrom(q.Node(**fields))
        if "connected" in fields:
            reply.nodes[number].connected = False
    reply.nodes[900].instances.add(id="n0900/1", incident="i-3")

    def shown(everything: bool) -> tuple[str, list[str]]:
        show(Console(width=120), reply, everything)
        out = capsys.readouterr().out
        return out, re.findall(r"^(n\d{4}) ", out, re.MULTILINE)

    out, names = shown(everything=False)
    assert names == ["n0900", "n0006", "n0005", "n0004", "n0007", "n0008", "n0003"]
    assert "1,000 nodes: 997 connected, 1 silent, 2 gone; 1 instance, 1 open incident; 1 wrong clock;" in out
    assert "window.duration_ns: 0" in out
    assert "not shown: 993 that are well" in out
    assert len(shown(everything=True)[1]) == 1000
    for node in reply.nodes:
        node.lost = 1
    out, names = shown(everything=False)
    assert len(names) == SHOWN_MAX
    assert f"not shown: {1000 - SHOWN_MAX} more in trouble;" in out


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_name_is_never_cut(width: int) -> None:
    node = q.Node(
        name="gpu-rack-07-node-31.example", connected=True, last_window_unix_ns=1, clock_error_seconds=-1234.5
    )
    one = q.Instance(id=f"{node.name}/8080", model="a-model-of-some-length", current=True)
    console = Console(width=width, file=io.StringIO())
    console.print(nodes_table([node], 2, width), instances_table([one], width))
    assert f"{one.id} " in console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{node.name} " in console.file.getvalue()  # type: ignore[attr-defined]
