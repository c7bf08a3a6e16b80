"""The serving collector, with a runtime made up for the purpose."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors import serving
from trimtab.agent.instances import INSTANCES_MAX
from trimtab.agent.registry import Host, Instance, Reading
from trimtab.agent.runtimes.base import NoAnswer, Session
from trimtab.agent.runtimes.process import ProcessInfo
from trimtab.agent.runtimes.vocabulary import (
    Batches,
    Capacity,
    Errors,
    Latency,
    Model,
    Scrape,
    Spent,
    Vitals,
    Worker,
)

NODE = "n"


class Said:
    """A runtime that says what it is told to, or hangs."""

    name = "said"

    def __init__(self) -> None:
        self.scrapes: dict[str, Scrape] = {}
        self.opened: list[Instance] = []
        self.closed: list[Instance] = []
        self.hang = threading.Event()
        self.hang.set()

    def matches(self, process: ProcessInfo) -> bool:
        return False

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        return None

    def open(self, instance: Instance) -> Session:
        self.opened.append(instance)
        return Telling(self, instance)


class Telling:
    def __init__(self, runtime: Said, instance: Instance) -> None:
        self.runtime, self.of = runtime, instance

    def scrape(self) -> Scrape:
        if self.of.id not in self.runtime.scrapes:
            self.runtime.hang.wait()
            raise NoAnswer("it hangs")
        return self.runtime.scrapes[self.of.id]

    def close(self) -> None:
        self.runtime.closed.append(self.of)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Said:
    runtime = Said()
    monkeypatch.setattr(serving, "known_runtimes", lambda: [runtime])
    return runtime


def instance(port: int, started: float = 0.0) -> Instance:
    return Instance(f"n/{port}", "said", 1, started, port, 0, (), urls={"api": ""})


def opened() -> serving.Serving:
    collector = serving.COLLECTOR()
    collector.open(Host(NODE, ManualClock()))
    return collector


def test_those_that_hang_delay_no_other(said: Said) -> None:
    well = INSTANCES_MAX - 1
    said.scrapes[f"n/{well}"] = Scrape(Vitals(queue_depth=3))
    said.hang.clear()
    collector = opened()
    try:
        for _ in range(2):  # the others still hang in the first question when they are asked the second
            reading = Reading([instance(port) for port in range(INSTANCES_MAX)], 1.0)
            collector.read(reading)
            assert reading.values == {
                **{("instance", f"n/{port}", "runtime_answers"): 0 for port in range(well)},
                ("instance", f"n/{well}", "runtime_answers"): 1,
                ("instance", f"n/{well}", "queue_depth"): 3,
            }
    finally:
        said.hang.set()
        collector.close()


def test_a_total_that_falls_is_unknown_for_this_window(said: Said) -> None:
    collector = opened()

    def rates(requests: float, seconds: float | None = None, started: float = 0.0) -> dict[str, float]:
        spent = None if seconds is None else Spent(seconds, requests)
        said.scrapes["n/1"] = Scrape(Vitals(latency=Latency(requests, spent)))
        reading = Reading([instance(1, started)], 2.0)
        collector.read(reading)
        return {name: value for (_, _, name), value in reading.values.items() if name != "runtime_answers"}

    assert rates(10, 1.0) == {}
    expected = {"predictions_per_second": 5, "inference_latency_seconds": 0.2}
    assert rates(20, 3.0) == pytest.approx(expected)
    assert rates(1, 0.1) == {}
    assert rates(3) == {"predictions_per_second": 1}
    assert rates(9, started=1.0) == {}  # another process
    collector.close()


def test_a_mean_is_over_the_requests_that_its_sum_is_of(said: Said) -> None:
    collector = opened()
    values: dict[str, float] = {}
    for times in (1, 2):
        latency = Latency(10 * times, queue=Spent(3 * times, 6 * times), first_token=Spent(2 * times, 4 * times))
        capacity = Capacity(batches=Batches(32 * times, 4 * times), cache_used_ratio=0.5, queue_max=100)
        vitals = Vitals(in_flight=2, latency=latency, errors=Errors(times, None), capacity=capacity)
        said.scrapes["n/1"] = Scrape(vitals)
        reading = Reading([instance(1)], 1.0)
        collector.read(reading)
        values = {name: value for (kind, _, name), value in reading.values.items() if kind == "instance"}
    collector.close()
    assert values == {
        "runtime_answers": 1,
        "requests_executing": 2,
        "queue_max": 100,
        "cache_used_ratio": 0.5,
        "predictions_per_second": 10,
        "errors_per_second": 1,
        "queue_latency_seconds": 0.5,
        "first_token_latency_seconds": 0.5,
        "batch_size_mean": 8,
    }


def test_workers_are_followed_by_id(said: Said) -> None:
    collector = opened()

    def seen(*workers: Worker) -> tuple[float | None, list[str]]:
        said.scrapes["n/1"] = Scrape(Vitals(workers=workers))
        reading = Reading([instance(1)], 1.0)
        collector.read(reading)
        deaths = [detail for _, _, name, _, detail in reading.events if name == "worker_death"]
        return reading.values.get(("instance", "n/1", "worker_restarts_per_second")), deaths

    other = Worker("b", 7, True)
    assert seen(Worker("a", 1, True), other) == (None, [])
    assert seen(Worker("a", 1, False), other) == (0, ["a, pid 1"])
    assert seen(Worker("a", None, False), other) == (0, [])
    assert seen(Worker("a", 2, False), other) == (1, [])
    assert seen(Worker("a", 3, False), other) == (1, ["a, pid 2"])
    assert seen(Worker("a", 3, True), other) == (0, [])
    assert seen(Worker("a", 4, True), other) == (1, ["a, pid 3"])
    assert seen(other) == (0, [])  # fewer were wanted
    assert seen(Worker("a", 9, True), other) == (0, [])  # more were wanted
    collector.close()


def model(name: str, version: str, *workers: Worker, requests: float = 0) -> Model:
    return Model(name, version, Vitals(workers=workers, latency=Latency(requests)))


def test_models_and_workers_are_subjects_of_their_own(said: Said) -> None:
    collector = opened()

    def read(pid: int, requests: float) -> Reading:
        workers = (Worker("a/1/9", pid, True, "a", "1", 4096, "gpu 1"), Worker("a/2/8", 8, False, "a", "2"))
        models = (model("a", "1", workers[0], requests=requests), model("a", "2", workers[1]), model("b", ""))
        said.scrapes["n/1"] = Scrape(Vitals(workers=workers), models)
        reading = Reading([instance(1)], 2.0)
        collector.read(reading)
        return reading

    read(1, 10)
    second = read(2, 16)
    collector.close()
    of_models = {(subject, name): v for (kind, subject, name), v in second.values.items() if kind == "model"}
    assert of_models["n/1/a/1", "predictions_per_second"] == 3
    assert of_models["n/1/a/1", "worker_restarts_per_second"] == 0.5
    assert of_models["n/1/a/2", "worker_restarts_per_second"] == 0
    assert (of_models["n/1/a/2", "workers_ready"], of_models["n/1/a/2", "workers_total"]) == (0, 1)
    assert of_models["n/1/b", "predictions_per_second"] == 0
    of_workers = {(subject, name): v for (kind, subject, name), v in second.values.items() if kind == "worker"}
    assert of_workers == {
        ("n/1/a/1/9", "worker_ready"): 1,
        ("n/1/a/1/9", "worker_memory_resident_bytes"): 4096,
        ("n/1/a/1/9", "worker_restarts_per_second"): 0.5,
        ("n/1/a/2/8", "worker_ready"): 0,
        ("n/1/a/2/8", "worker_restarts_per_second"): 0,
    }
    assert second.labels["worker", "n/1/a/1/9"] == {"instance": "n/1", "model": "a", "version": "1", "device": "gpu 1"}
    assert second.labels["model", "n/1/a/2"] == {"instance": "n/1", "runtime": "said", "model": "a", "version": "2"}
    assert second.labels["model", "n/1/b"] == {"instance": "n/1", "runtime": "said", "model": "b"}
    assert second.labels["instance", "n/1"] == {"model": "a,b"}


def test_the_number_of_models_and_workers_has_a_limit(said: Said) -> None:
    workers = tuple(Worker(f"m/1/{i}", i + 1, True) for i in range(200))
    models = tuple(model(f"m{i}", "") for i in range(200))
    said.scrapes["n/1"] = Scrape(Vitals(workers=workers), (*models, model("x" * 300, "")))
    collector = opened()
    reading = Reading([instance(1)], 1.0)
    collector.read(reading)
    collector.close()
    assert len({subject for kind, subject, _ in reading.values if kind == "model"}) == 64
    assert len({subject for kind, subject, _ in reading.values if kind == "worker"}) == 64
    assert reading.values["instance", "n/1", "workers_ready"] == 200


def test_a_session_is_closed_when_its_instance_changes_or_ends(said: Said) -> None:
    collector = opened()
    first, rekeyed, restarted = instance(1), replace(instance(1), headers={"a": "b"}), instance(1, started=2.0)
    said.scrapes["n/1"] = Scrape(Vitals())
    for found in ([first], [first], [rekeyed], [restarted], []):
        collector.read(Reading(found, 1.0))
    assert said.opened == said.closed == [first, rekeyed, restarted]
    collector.close()


def test_what_has_no_api_is_not_asked(said: Said) -> None:
    collector = opened()
    reading = Reading([replace(instance(1), urls={})], 1.0)
    collector.read(reading)
    collector.close()
    assert said.opened == []
    assert reading.values == {}
