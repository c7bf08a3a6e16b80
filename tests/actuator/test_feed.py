"""The routing feed: complete, at once, repeated while somebody decides, silent when nobody does."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.actuator.conftest import until
from trimtab.actuator.snapshot import Assignment, Cache, Snapshot
from trimtab.actuator.targets import feed as module
from trimtab.actuator.targets.feed import VALID_SECONDS, Feed
from trimtab.agent.settings import Tls
from trimtab.agent.wire import routing_pb2 as pb
from trimtab.agent.wire.routing_pb2_grpc import RoutingStub

DOCS = Path(__file__).resolve().parents[2] / "docs" / "routing.md"


def snapshot(weight: float) -> Snapshot:
    both = (
        Assignment("a/1", "m", ("10.0.0.1:8080",), weight, "why"),
        Assignment("a/2", "other", ("10.0.0.1:8081",), 1.0),
    )
    return Snapshot("active", both, time.time_ns())


class Served:
    def __init__(self) -> None:
        self.cache = Cache()
        self.feed = Feed(self.cache, "epoch")
        self.address = f"127.0.0.1:{self.feed.start('127.0.0.1:0', Tls())}"
        self.channel = grpc.insecure_channel(self.address)

    def watch(self, model: str = "") -> Iterator[pb.RoutingSnapshot]:
        return RoutingStub(self.channel).WatchRouting(pb.WatchRoutingRequest(model=model), timeout=20)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.channel.close()
    made.feed.close()


def test_everything_at_once_then_every_publication(served: Served) -> None:
    served.cache.publish(snapshot(0.5))
    stream = served.watch()
    first = next(stream)
    assert [(a.instance, a.weight, a.reason) for a in first.assignments] == [("a/1", 0.5, "why"), ("a/2", 1.0, "")]
    assert (first.version, first.epoch, first.mode, first.valid_for_seconds) == (1, "epoch", "active", VALID_SECONDS)
    served.cache.publish(snapshot(0.5))
    assert next(stream).version == 1, "repeated, so that it stays valid"
    served.cache.publish(snapshot(0.25))
    changed = next(stream)
    assert (changed.version, changed.assignments[0].weight) == (2, 0.25)


def test_model_filter(served: Served) -> None:
    served.cache.publish(snapshot(0.5))
    assert [a.instance for a in next(served.watch("other")).assignments] == ["a/2"]


def test_a_slow_watcher_sees_the_newest_and_no_queue(served: Served) -> None:
    served.cache.publish(snapshot(1.0))
    stream = served.watch()
    next(stream)
    for k in range(5000):
        served.cache.publish(snapshot(k / 5000))
    versions = []
    while not versions or versions[-1] < 5000:
        versions.append(next(stream).version)
    assert len(versions) < 4000
    assert versions == sorted(versions)


def test_closing_sends_the_last_word_first() -> None:
    served = Served()
    served.cache.publish(snapshot(0.5))
    stream = served.watch()
    next(stream)
    served.cache.publish(snapshot(1.0))
    threading.Thread(target=served.feed.close).start()
    assert [s.assignments[0].weight for s in stream] == [1.0]
    served.channel.close()


def test_one_watcher_too_many_is_told_so(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.feed, "_places", threading.BoundedSemaphore(2))
    assert module.WATCHERS_MAX == 64
    served.cache.publish(snapshot(0.5))
    streams = [served.watch(), served.watch()]
    assert [next(s).version for s in streams] == [1, 1]
    with pytest.raises(grpc.RpcError) as refused:
        next(served.watch())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    streams[0].cancel()
    until(lambda: _admitted(served), 5, "a place that was left is free")


def _admitted(served: Served) -> bool:
    try:
        return bool(next(served.watch()))
    except grpc.RpcError:
        return False


def test_the_client_in_the_docs(served: Served, tmp_path: Path) -> None:
    [source] = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    program = tmp_path / "client.py"
    program.write_text(source)
    client = subprocess.Popen([sys.executable, "-u", program, served.address], stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    assert client.stdout
    out = client.stdout
    reader = threading.Thread(target=lambda: lines.extend(out), daemon=True)
    reader.start()
    try:
        stop = threading.Event()

        def publish() -> None:
            while not stop.wait(0.2):
                served.cache.publish(snapshot(0.5))

        publisher = threading.Thread(target=publish)
        publisher.start()
        until(lambda: "{'10.0.0.1:8080': 0.5, '10.0.0.1:8081': 1.0}\n" in lines, 20, "the client follows")
        stop.set()
        publisher.join()
        until(lambda: lines[-1] == "{}\n", VALID_SECONDS + 5, "the client lets go when it hears nothing")
    finally:
        client.kill()
        client.wait()
        reader.join()
        out.close()
