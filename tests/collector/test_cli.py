"""`trimtab nodes` and `trimtab query`, as their user sees them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from tests.collector.sender import collecting, publish, schema, window
from tests.collector.test_query import until
from trimtab import Exit, TrimtabError
from trimtab.agent.settings import Tls
from trimtab.agent.wire import query_pb2 as q
from trimtab.collector import cli

S = schema()


def invoke(command: object, *arguments: str, port: int = 9) -> Result:
    settings = SimpleNamespace(actuator=SimpleNamespace(collector=f"127.0.0.1:{port}"), tls=Tls())
    return CliRunner().invoke(command, arguments, obj=settings, env={"COLUMNS": "220"})  # type: ignore[arg-type]


def test_nodes(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, telemetry, query):
        assert "no agent has connected yet" in invoke(cli.nodes, port=collector.port).output
        publish(telemetry, S, window(3, S), window(4, S, duration_ns=0))
        until(lambda: bool(query.Nodes(q.NodesRequest()).nodes[0].instances))
        shown = invoke(cli.nodes, port=collector.port).output
        assert "gone" in shown
        assert "window.duration_ns: 0" in shown
        assert "n1/8080" in shown
        [node] = json.loads(invoke(cli.nodes, "--json", port=collector.port).output)
        counts = {name: node[name] for name in ("windows", "duplicates", "lost", "refused", "state")}
        assert counts == {"windows": 1, "duplicates": 0, "lost": 2, "refused": 1, "state": "gone"}
        assert node["instances"][0]["score"] is None


def test_a_proxy_of_the_environment_is_not_asked_for_what_is_on_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("grpc_proxy", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with collecting(tmp_path) as (collector, *_):
        assert "no agent has connected yet" in invoke(cli.nodes, port=collector.port).output


def test_query(tmp_path: Path) -> None:
    with collecting(tmp_path) as (collector, *_):
        sql = "SELECT 1 AS a, NULL AS b, 'x,y' AS a"
        assert json.loads(invoke(cli.query, sql, "--json", port=collector.port).output) == [
            {"a": 1, "b": None, "a_2": "x,y"}
        ]
        assert invoke(cli.query, sql, "--csv", port=collector.port).output == 'a,b,a_2\n1,,"x,y"\n'
        assert "–" in invoke(cli.query, sql, port=collector.port).output
        assert "\x1b" not in invoke(cli.query, "SELECT chr(27) || '[2J'", port=collector.port).output
        assert (
            "only the first 10000 rows" in invoke(cli.query, "FROM range(20000)", "--json", port=collector.port).stderr
        )
        wrong = invoke(cli.query, "DROP TABLE windows", port=collector.port).exception
        assert isinstance(wrong, TrimtabError)
        assert (wrong.exit_code, "\n" in str(wrong)) == (Exit.USAGE, False)


@pytest.mark.parametrize("arguments", [(cli.nodes,), (cli.query, "SELECT 1", "--collector", "127.0.0.1:9")])
def test_no_collector(arguments: tuple[object, ...]) -> None:
    error = invoke(*arguments).exception  # type: ignore[arg-type]
    assert isinstance(error, TrimtabError)
    assert error.exit_code == Exit.UNREACHABLE
    assert "trimtab up" in str(error)


def test_query_reads_the_file_when_no_collector_runs(tmp_path: Path) -> None:
    with collecting(tmp_path / "collector") as (_, telemetry, _query):
        publish(telemetry, S, window(1, S))
    result = invoke(cli.query, "SELECT seq FROM windows", "--json", "--state", str(tmp_path))
    assert json.loads(result.stdout) == [{"seq": 1}]
    assert "no collector answers; reading" in result.stderr
