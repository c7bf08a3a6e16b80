"""Every runtime there is keeps the contract, and the contract's check can fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.agent.http_stub import answering, said_with
from tests.agent.stand_in import StandIn, triton, vllm
from trimtab.agent.check_runtime import check_runtime, check_scrape
from trimtab.agent.instances import known_runtimes
from trimtab.agent.registry import Instance
from trimtab.agent.runtimes.base import Runtime, Session
from trimtab.agent.runtimes.metrics_only import MetricsOnly
from trimtab.agent.runtimes.process import ProcessInfo, own_netns, url
from trimtab.agent.runtimes.vocabulary import Errors, Latency, Model, Scrape, Spent, Vitals, Worker

RUNTIMES = {runtime.name: type(runtime) for runtime in known_runtimes()}
STAND_INS: dict[str, Callable[[Path], AbstractContextManager[StandIn]]] = {"triton": triton, "vllm": vllm}


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES.keys())
def test_runtime(runtime: type[Runtime], tmp_path: Path) -> None:
    if runtime.name not in STAND_INS:  # what its own tests run is a real server
        check_runtime(runtime)
        return
    with STAND_INS[runtime.name](tmp_path) as server:
        command = Path(f"/proc/{server.pid}/cmdline").read_text().rstrip("\0").split("\0")
        scrape = check_runtime(runtime, ProcessInfo(server.pid, 1.0, tuple(command)))
    assert scrape
    assert scrape.models


def test_the_three_of_this_house_are_found() -> None:
    assert list(RUNTIMES) == ["torchserve", "triton", "vllm"]


class Good:
    """This very process, which serves on `port` in the tests below."""

    name = "good"
    port = 0

    def matches(self, process: ProcessInfo) -> bool:
        return process.command[0] == "good"

    def instance(self, process: ProcessInfo, node: str) -> Instance | None:
        address = process.listeners()[self.port]
        return Instance(
            f"{node}/{self.port}",
            self.name,
            process.pid,
            process.started,
            self.port,
            process.netns(),
            (),
            urls={"metrics": url(address, self.port)},
            headers={"Authorization": "secret"},
        )

    def open(self, instance: Instance) -> Session:
        return MetricsOnly(instance, ("a",), lambda said: Scrape(Vitals(queue_depth=said.gauge("a"))))


def broken(**changes: object) -> type[Good]:
    return type("Broken", (Good,), changes)


def changed(**changes: object) -> Callable[[Good, ProcessInfo, str], Instance | None]:
    def instance(self: Good, process: ProcessInfo, node: str) -> Instance | None:
        found = Good.instance(self, process, node)
        return found and replace(found, **changes)

    return instance


def saying(scrape: Scrape) -> Callable[[Good, Instance], Session]:
    return lambda self, instance: MetricsOnly(instance, (), lambda said: scrape)


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessInfo]:
    with answering(said_with(b"200 OK", b"a 3\n")) as stub:
        monkeypatch.setattr(Good, "port", int(stub.url.rpartition(":")[2]))
        yield ProcessInfo(os.getpid(), 1.0, ("good",))


def test_a_good_runtime_passes(process: ProcessInfo) -> None:
    assert check_runtime(Good, process) == Scrape(Vitals(queue_depth=3))


class Crashes:
    def scrape(self) -> Scrape:
        raise KeyError("bug")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"name": "Bad name"}, "name"),
        ({"matches": lambda self, process: True}, "no such server"),
        ({"matches": lambda self, process: False}, "does not know"),
        ({"instance": lambda self, process, node: None}, "does not listen"),
        ({"instance": changed(id="elsewhere/1")}, "id elsewhere/1"),
        ({"instance": changed(runtime="other")}, "runtime other"),
        ({"instance": changed(started=7.0)}, "another process"),
        ({"instance": changed(netns=own_netns() + 1)}, "netns"),
        ({"instance": changed(urls={"metrics": "https://127.0.0.1:1"})}, "not plain HTTP"),
        ({"instance": changed(urls={"metrics": "http://127.0.0.1:1"})}, "not its own"),
        ({"instance": changed(addresses=("secret",))}, "a header shows"),
        ({"open": saying(Scrape(Vitals(queue_depth=float("nan"))))}, "queue_depth"),
        ({"open": saying(Scrape(Vitals(errors=Errors(server=-1))))}, "errors.server"),
        ({"open": saying(Scrape(Vitals(latency=Latency(queue=Spent(1, float("inf"))))))}, "latency.queue.requests"),
        ({"open": lambda self, instance: Crashes()}, "bug"),
    ],
)
def test_a_broken_runtime_is_found(process: ProcessInfo, changes: dict[str, object], names: str) -> None:
    with pytest.raises((AssertionError, ValueError, KeyError), match=names):
        check_runtime(broken(**changes), process)


@pytest.mark.parametrize(
    ("models", "names"),
    [
        ((Model("m", "1", Vitals()), Model("m", "1", Vitals())), "a model comes twice"),
        ((Model("", "1", Vitals()),), "without a name"),
        ((Model("m", "1", Vitals(workers=(Worker("a", 1, True),) * 2)),), "a worker comes twice"),
        ((Model("m", "1", Vitals(workers=(Worker("a", 1, True, memory_bytes=-1),))),), "memory_bytes"),
    ],
)
def test_broken_models_are_found(models: tuple[Model, ...], names: str) -> None:
    with pytest.raises(AssertionError, match=names):
        check_scrape(Good(), Scrape(Vitals(), models))
