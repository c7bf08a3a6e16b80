"""vLLM: stand-ins found by discovery, and what recorded expositions say in trimtab's words. No vLLM is run."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest

from tests.agent.stand_in import EXPOSITIONS, StandIn, vllm
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.serving import Serving
from trimtab.agent.instances import Discovery
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.runtimes.process import ProcessInfo
from trimtab.agent.runtimes.prometheus import parse
from trimtab.agent.runtimes.vllm import MODULE, NAMES, Vllm, told
from trimtab.agent.runtimes.vocabulary import Errors, Latency, Scrape, Spent, Vitals


def found(server: StandIn) -> Instance:
    return next(i for i in Discovery("n").find(0.0) if i.pid == server.pid)


def recorded(name: str) -> Scrape:
    return told(parse((EXPOSITIONS / name).read_bytes(), NAMES))


def test_it_is_found_by_its_command(tmp_path: Path) -> None:
    with vllm(tmp_path) as server:
        instance = found(server)
        (port,) = server.ports
        assert (instance.id, instance.runtime, instance.port) == (f"n/{port}", "vllm", port)
        assert instance.urls == {"metrics": f"http://127.0.0.1:{port}"}


def test_on_every_address_it_is_asked_on_loopback(tmp_path: Path) -> None:
    with vllm(tmp_path, host="0.0.0.0") as server:
        assert found(server).urls == {"metrics": f"http://127.0.0.1:{server.ports[0]}"}


def test_encrypted_it_is_unknown_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with vllm(tmp_path, "vllm_older.txt", "--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem") as server:
        assert found(server).urls == {}
    assert caplog.text.count("is not plain HTTP") == 1


def test_only_its_server_is_vllm() -> None:
    def matches(*command: str) -> bool:
        return Vllm().matches(ProcessInfo(1, 0.0, command))

    assert matches("/usr/bin/python3", "/usr/local/bin/vllm", "serve", "m")
    assert matches("vllm", "serve", "m")
    assert matches("python3", "-m", MODULE, "--model", "m")
    assert matches("python3", "-u", "-m", MODULE)
    assert not matches("python3", "/usr/local/bin/vllm", "bench", "serve")
    assert not matches("sh", "-c", "vllm serve m")
    assert not matches("grep", MODULE)
    assert not matches("VLLM::EngineCore")


def test_a_fork_that_holds_its_socket_is_not_another_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with vllm(tmp_path, FORK="1") as server:
        (child,) = psutil.Process(server.pid).children()
        assert ProcessInfo(child.pid, 0.0, ()).listeners() == {server.ports[0]: "127.0.0.1"}
        assert [i.pid for i in Discovery("n").find(0.0) if i.port == server.ports[0]] == [server.pid]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("text", "port"),
    [("model: m\nport: 9001\n", 9001), ('port: "9002" # here\n', 9002), ("uvport: 7\n", 8000), ("", 8000)],
)
def test_the_port_may_be_in_a_file(text: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProcessInfo, "forked", lambda self: False)
    monkeypatch.setattr(ProcessInfo, "text", lambda self, path, follow=True: text)
    monkeypatch.setattr(ProcessInfo, "listeners", lambda self: {port: "127.0.0.1", 1234: "127.0.0.1"})
    monkeypatch.setattr(ProcessInfo, "netns", lambda self: 1)
    monkeypatch.setattr("trimtab.agent.runtimes.vllm.api.urls", lambda *_: {})

    def listens_on(*flags: str) -> int | None:
        instance = Vllm().instance(ProcessInfo(1, 0.0, ("vllm", "serve", *flags)), "n")
        return instance and instance.port

    assert listens_on("--config", "c.yaml") == port
    assert listens_on("--config", "c.yaml", "--port", "1234") == 1234


def test_what_a_recorded_server_said() -> None:
    scrape = recorded("vllm_0.28_full_cache.txt")
    assert scrape.models
    (model,) = scrape.models
    assert (model.name, model.version) == ("facebook/opt-125m", "")
    whole = scrape.whole
    assert (whole.in_flight, whole.queue_depth) == (84, 16)
    assert whole.capacity.cache_used_ratio == 0.9990224828934506
    assert whole.latency == Latency(
        18648,
        inference=Spent(33132.511038614124, 18648),
        queue=Spent(220.02530889599154, 18648),
        first_token=Spent(531.6850378513336, 18747),
    )
    assert model.vitals.latency == whole.latency
    assert whole.errors == Errors(server=0, client=0)
    assert model.vitals.errors == Errors(server=0)
    assert (whole.workers, whole.age_seconds, whole.capacity.batches) == (None, None, None)


def test_what_an_older_server_says() -> None:
    whole = recorded("vllm_older.txt").whole
    assert whole.capacity.cache_used_ratio == 0.25
    assert whole.latency == Latency(40, inference=Spent(60.0, 40), queue=Spent(20.0, 40))
    assert whole.errors == Errors()


def test_errors_are_those_of_the_http_server() -> None:
    body = b"""# TYPE http_requests_total counter
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 7
http_requests_total{handler="/v1/completions",method="POST",status="5xx"} 2
http_requests_total{handler="none",method="GET",status="404"} 3
http_requests_total{handler="/v1/completions",method="POST",status="4xx"} 1
"""
    assert told(parse(body, NAMES)).whole.errors == Errors(server=2, client=4)
    failed = b'vllm:request_success_total{finished_reason="error",model_name="m"} 5\n'
    assert told(parse(failed, NAMES)).whole.errors == Errors(server=5)
    assert told(parse(b"", NAMES)) == Scrape(Vitals(), ())


def test_engines_are_added_up_and_the_fullest_cache_counts() -> None:
    body = b"".join(
        b'vllm:num_requests_running{engine="%d",model_name="m"} 2\nvllm:kv_cache_usage_perc{engine="%d",model_name="m"} 0.%d\n'
        % (engine, engine, engine)
        for engine in (1, 7)
    )
    (model,) = told(parse(body, NAMES)).models or ()
    assert (model.vitals.in_flight, model.vitals.capacity.cache_used_ratio) == (4, 0.7)


def test_signals_of_a_window(tmp_path: Path) -> None:
    collector = Serving()
    collector.open(Host("n", ManualClock()))
    with vllm(tmp_path) as server:
        instance = found(server)
        collector.read(Reading([instance], math.nan))
        before = server.file.read_bytes()
        for was, now in (
            (
                b'finished_reason="length",model_name="facebook/opt-125m"} 18648.0',
                b'finished_reason="length",model_name="facebook/opt-125m"} 18658.0',
            ),
            (
                b'queue_time_seconds_count{engine="0",model_name="facebook/opt-125m"} 18648.0',
                b'queue_time_seconds_count{engine="0",model_name="facebook/opt-125m"} 18658.0',
            ),
            (b"220.02530889599154", b"225.02530889599154"),
            (b"18747.0\nvllm:time_to_first_token_seconds_sum", b"18767.0\nvllm:time_to_first_token_seconds_sum"),
            (b"531.6850378513336", b"535.6850378513336"),
        ):
            assert was in before
            before = before.replace(was, now)
        server.say(before)
        reading = Reading([instance], 1.0)
        collector.read(reading)
    collector.close()
    subject = f"{instance.id}/facebook/opt-125m"
    values = {name: value for (kind, of, name), value in reading.values.items() if (kind, of) == ("model", subject)}
    assert values == {
        "requests_executing": 84,
        "queue_depth": 16,
        "cache_used_ratio": 0.9990224828934506,
        "predictions_per_second": 10,
        "errors_per_second": 0,
        "queue_latency_seconds": pytest.approx(0.5),
        "first_token_latency_seconds": pytest.approx(0.2),
    }
    assert reading.values["instance", instance.id, "client_errors_per_second"] == 0
    assert reading.labels["model", subject] == {
        "instance": instance.id,
        "runtime": "vllm",
        "model": "facebook/opt-125m",
    }
