"""Triton: stand-ins found by discovery, and what recorded expositions say in trimtab's words. No Triton is run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.agent.stand_in import EXPOSITIONS, StandIn, triton
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.serving import Serving
from trimtab.agent.instances import Discovery
from trimtab.agent.registry import Host, Instance, Kind, Reading
from trimtab.agent.runtimes.process import ProcessInfo
from trimtab.agent.runtimes.prometheus import parse
from trimtab.agent.runtimes.triton import NAMES, Triton, told
from trimtab.agent.runtimes.vocabulary import Batches, Latency, Scrape, Spent, Vitals


def found(server: StandIn) -> Instance:
    return next(i for i in Discovery("n").find(0.0) if i.pid == server.pid)


def recorded(name: str) -> Scrape:
    return told(parse((EXPOSITIONS / name).read_bytes(), NAMES))


def test_it_is_found_by_its_command(tmp_path: Path) -> None:
    with triton(tmp_path) as server:
        instance = found(server)
        http, _, metrics = server.ports
        assert (instance.id, instance.runtime, instance.port) == (f"n/{http}", "triton", http)
        assert instance.addresses == (f"127.0.0.1:{http}",)
        assert instance.urls == {"metrics": f"http://127.0.0.1:{metrics}"}


def test_without_http_it_is_known_by_its_grpc_port(tmp_path: Path) -> None:
    with triton(tmp_path, "triton_25.12_loaded.txt", "--allow-http", "false") as server:
        assert (found(server).port, found(server).grpc_port) == (server.ports[1], 0)


def test_its_grpc_port_is_known_beside_http(tmp_path: Path) -> None:
    with triton(tmp_path, "triton_25.12_loaded.txt") as server:
        assert (found(server).port, found(server).grpc_port) == (server.ports[0], server.ports[1])


def test_without_metrics_it_is_unknown_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with triton(tmp_path, "triton_25.12_loaded.txt", "--allow-metrics=false") as server:
        assert found(server).urls == {}
    assert caplog.text.count("its metrics API is not plain HTTP on a port it listens on") == 1


def test_only_a_tritonserver_is_triton() -> None:
    def matches(*command: str) -> bool:
        return Triton().matches(ProcessInfo(1, 0.0, command))

    assert matches("tritonserver", "--model-repository=/m")
    assert matches("/opt/tritonserver/bin/tritonserver")
    assert not matches("sh", "-c", "tritonserver --model-repository=/m")
    assert not matches("grep", "tritonserver")


def test_what_a_recorded_server_said() -> None:
    scrape = recorded("triton_25.12_loaded.txt")
    assert scrape.models
    (model,) = scrape.models
    assert (model.name, model.version) == ("echo", "1")
    assert model.vitals == scrape.whole
    latency = Latency(280, inference=Spent((704653 - 549401) / 1e6, 280), queue=Spent(549401 / 1e6, 280))
    assert scrape.whole.latency == latency
    assert (scrape.whole.queue_depth, scrape.whole.errors.server) == (0, 0)
    assert scrape.whole.capacity.batches == Batches(280, 280)
    unknown = (scrape.whole.in_flight, scrape.whole.workers, scrape.whole.age_seconds, scrape.whole.errors.client)
    assert unknown == (None, None, None, None)


def test_versions_and_models_are_kept_apart() -> None:
    scrape = recorded("triton_two_models.txt")
    by_name = {(model.name, model.version): model.vitals for model in scrape.models or ()}
    assert set(by_name) == {("bert", "1"), ("resnet", "1"), ("resnet", "2")}
    first = by_name["resnet", "1"]
    assert first.queue_depth == 7
    assert first.latency == Latency(112, inference=Spent(3.0, 100), queue=Spent(2.0, 100))
    assert first.errors.server == 7  # and 5 that clients cancelled
    assert first.capacity.batches == Batches(400, 50)
    assert by_name["resnet", "2"].errors.server == 0
    assert (scrape.whole.queue_depth, scrape.whole.errors.server, scrape.whole.latency.requests) == (9, 7, 162)


def test_nothing_known_is_nothing_said() -> None:
    assert told(parse(b"nv_gpu_utilization 1\n", NAMES)) == Scrape(Vitals(), ())


def test_signals_of_a_window(tmp_path: Path) -> None:
    collector = Serving()
    collector.open(Host("n", ManualClock()))
    with triton(tmp_path, "triton_two_models.txt") as server:
        instance = found(server)
        collector.read(Reading([instance], math.nan))
        before = server.file.read_bytes()
        for was, now in (
            (b'success{model="resnet",version="1"} 100', b'success{model="resnet",version="1"} 120'),
            (
                b'queue_duration_us{model="resnet",version="1"} 2000000',
                b'queue_duration_us{model="resnet",version="1"} 3000000',
            ),
            (
                b'request_duration_us{model="resnet",version="1"} 5000000',
                b'request_duration_us{model="resnet",version="1"} 10000000',
            ),
            (
                b'nv_inference_count{model="resnet",version="1"} 400',
                b'nv_inference_count{model="resnet",version="1"} 560',
            ),
            (b'exec_count{model="resnet",version="1"} 50', b'exec_count{model="resnet",version="1"} 60'),
        ):
            assert was in before
            before = before.replace(was, now)
        server.say(before)
        reading = Reading([instance], 2.0)
        collector.read(reading)
    collector.close()

    def value(kind: Kind, subject: str, name: str) -> float:
        return reading.values[kind, subject, name]

    subject = f"{instance.id}/resnet/1"
    assert value("model", subject, "predictions_per_second") == 10
    assert value("model", subject, "queue_latency_seconds") == pytest.approx(0.05)
    assert value("model", subject, "inference_latency_seconds") == pytest.approx(0.2)
    assert value("model", subject, "batch_size_mean") == 16
    assert value("model", subject, "queue_depth") == 7
    assert value("model", f"{instance.id}/bert", "predictions_per_second") == 0
    assert ("model", f"{instance.id}/bert", "queue_latency_seconds") not in reading.values
    assert value("instance", instance.id, "predictions_per_second") == 10
    assert ("instance", instance.id, "workers_ready") not in reading.values
    assert reading.labels["instance", instance.id] == {"model": "bert,resnet"}
