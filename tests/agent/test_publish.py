"""Delivery: every window arrives, in order, at least once; by its number exactly once; through every kind of failure."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.agent.fakes import NODE, Service, schema_of, until, window_of
from trimtab import Exit, TrimtabError
from trimtab.agent import publish, session
from trimtab.agent.clock import SystemClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.publish import Publisher
from trimtab.agent.settings import Tls
from trimtab.agent.spool import Spool
from trimtab.agent.wire import telemetry_pb2 as pb


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    one.start()
    yield one
    one.hold.set()
    one.mute = False
    one.stop()


class Bench:
    """A spool and its publisher."""

    def __init__(self, directory: Path, service: Service) -> None:
        self.directory = directory
        self.service = service
        self.vitals = Vitals()
        self.open()

    def open(self) -> None:
        self.spool = Spool(self.directory / "spool", 64 << 20, self.vitals)
        self.publisher = Publisher(
            target=f"127.0.0.1:{self.service.port}",
            tls=Tls(),
            spool=self.spool,
            hello=lambda: pb.Hello(node=NODE, spool_id=self.spool.id, first_seq=self.spool.first_seq),
            refused=self.directory / "refused",
            clock=SystemClock(),
            rng=random.Random(1),
            vitals=self.vitals,
        )

    def append(self, count: int, schema: str = "a", padding: int = 100) -> None:
        for _ in range(count):
            self.spool.append(schema_of(schema), window_of(schema_of(schema), padding))

    def stored(self) -> list[int]:
        return [seq for _, seq in self.service.stored]

    def delivered(self) -> bool:
        return self.spool.waiting == 0

    def close(self) -> None:
        self.publisher.close(2)
        self.spool.close()


@pytest.fixture
def bench(tmp_path: Path, service: Service) -> Iterator[Bench]:
    one = Bench(tmp_path, service)
    yield one
    service.hold.set()
    one.close()


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_windows_arrive_in_order_each_with_its_schema(bench: Bench) -> None:
    bench.append(100)
    bench.publisher.start()
    bench.append(100, "b")
    bench.append(1, "a")
    until(bench.delivered)
    assert bench.service.arrived == bench.stored() == list(range(1, 202))
    assert len(bench.service.hellos) == 1


def test_what_the_collector_has_is_not_sent_again(bench: Bench) -> None:
    bench.append(10)
    bench.service.stored[bench.spool.id, 7] = pb.Window()
    bench.publisher.start()
    until(bench.delivered)
    assert bench.service.arrived == [8, 9, 10]


def test_windows_unanswered_are_bounded(bench: Bench) -> None:
    bench.service.hold.clear()
    seen: list[int] = []
    answer = session.Session.answer

    def look(self: session.Session, seq: int) -> bytes:
        seen.append(len(self._in_flight))
        return answer(self, seq)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session.Session, "answer", look)
        bench.append(300)
        bench.publisher.start()
        until(lambda: bool(bench.service.arrived))
        until(lambda: bench.publisher._session is not None)
        current = bench.publisher._session
        assert current is not None
        until(lambda: len(current._in_flight) == session.IN_FLIGHT_MAX)
        bench.service.hold.set()
        until(bench.delivered)
    assert max(seen) == session.IN_FLIGHT_MAX
    assert bench.stored() == list(range(1, 301))


def test_a_killed_collector_gets_everything_when_it_is_back(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    bench.publisher.start()
    for _ in range(3):
        bench.append(20)
        # Stored, but the collector dies before it can say so.
        bench.service.unacked = 5
        bench.append(5)
        last = bench.spool.last_seq
        until(lambda last=last: bench.service.mark(bench.spool.id) == last)  # type: ignore[misc]
        bench.service.stop()
        bench.append(20)
        bench.service.unacked = 0
        bench.service.start()
        until(bench.delivered)
    assert bench.stored() == list(range(1, bench.spool.last_seq + 1))
    assert all(b - a <= 1 for a, b in zip(bench.service.arrived, bench.service.arrived[1:], strict=False))
    assert len(messages(caplog, "is away")) == 3
    assert len(messages(caplog, "is back; windows waiting")) == 3


def test_windows_in_flight_when_the_collector_dies_come_again(bench: Bench) -> None:
    bench.publisher.start()
    bench.service.hold.clear()
    bench.append(100)
    until(lambda: bool(bench.service.arrived))
    bench.service.hold.set()
    bench.service.stop()
    bench.service.start()
    until(bench.delivered)
    assert sorted(set(bench.stored())) == list(range(1, 101))


def test_a_collector_that_is_away_is_said_once_and_back_within_seconds(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.service.stop()
    bench.publisher.start()
    bench.append(3)
    until(lambda: bench.publisher._failures >= 5)
    (line,) = messages(caplog, "is away")
    assert f"127.0.0.1:{bench.service.port}" in line
    assert "kept in the spool" in line
    bench.service.start()
    until(bench.delivered, publish._BACKOFF_SECONDS_MAX + 3)
    assert messages(caplog, "is back") == [f"collector 127.0.0.1:{bench.service.port} is back; windows waiting: 3"]


def test_a_refused_window_is_set_aside_and_the_rest_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.service.refuse = {2, 4}
    bench.append(6)
    bench.publisher.start()
    until(bench.delivered)
    assert bench.stored() == [1, 3, 5, 6]
    assert bench.vitals.windows_refused == 2
    assert len(messages(caplog, "refused window 2: because")) == 1
    window = pb.Window.FromString((bench.directory / "refused" / "2.window").read_bytes())
    assert window.seq == 2


def test_of_refused_windows_only_the_last_hundred_are_kept_and_not_each_is_said(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.service.refuse = set(range(1, 151))
    bench.append(150)
    bench.publisher.start()
    until(bench.delivered, 20)
    assert bench.vitals.windows_refused == 150
    kept = {int(path.stem) for path in (bench.directory / "refused").iterdir()}
    assert len(kept) == publish.REFUSED_MAX
    assert 150 in kept
    assert 1 not in kept
    assert len(messages(caplog, "refused window 1: because")) == len(messages(caplog, "the collector refused")) == 1


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT],
)
def test_a_collector_that_refuses_this_agent_is_quoted_and_asked_seldom(
    bench: Bench, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "FINAL_SECONDS", 0.2)
    bench.service.reject = (code, "node n1 is another host's; set agent.node")
    bench.append(2)
    bench.publisher.start()
    until(lambda: len(bench.service.hellos) >= 3)
    (line,) = messages(caplog, "is away")
    assert "another host's; set agent.node" in line
    bench.service.reject = None
    until(bench.delivered)


def test_refusal_for_good_pauses_half_a_minute(bench: Bench) -> None:
    waits: list[float] = []

    class Clock(SystemClock):
        def wait(self, stop: object, seconds: float) -> bool:
            waits.append(seconds)
            return super().wait(bench.publisher._stop, min(seconds, 0.05))

    bench.publisher._clock = Clock()
    bench.service.reject = (grpc.StatusCode.FAILED_PRECONDITION, "no")
    bench.publisher.start()
    until(lambda: len(waits) >= 2)
    assert waits[:2] == [publish.FINAL_SECONDS] * 2


def test_pauses_grow_to_a_limit_with_jitter(bench: Bench) -> None:
    waits: list[float] = []

    class Clock(SystemClock):
        def wait(self, stop: object, seconds: float) -> bool:
            waits.append(seconds)
            return super().wait(bench.publisher._stop, 0.001)

    bench.publisher._clock = Clock()
    bench.service.stop()
    bench.publisher.start()
    until(lambda: len(waits) >= 10)
    bounds = [min(0.2 * 2**i, 5.0) for i in range(10)]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(waits, bounds, strict=False))
    assert len(set(waits[5:10])) == 5
    bench.service.start()


@pytest.mark.parametrize("stage", ["welcome", "ack", "read"])
def test_a_collector_that_does_not_answer_is_left(
    bench: Bench, stage: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS_MAX", 0.3)
    if stage == "welcome":
        bench.service.mute = True
    else:
        bench.service.hold.clear()
    # What one that does not even read leaves on the way is more than the way holds.
    bench.append(30, padding=500_000 if stage == "read" else 100)
    bench.publisher.start()
    until(lambda: len(bench.service.hellos) >= 2)
    assert len(messages(caplog, "it has not answered")) == 1
    bench.service.mute = False
    bench.service.hold.set()
    until(bench.delivered)
    assert set(bench.stored()) == set(range(1, 31))


def test_an_idle_stream_is_kept(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS_MAX", 0.2)
    bench.publisher.start()
    bench.append(1)
    until(bench.delivered)
    time.sleep(1.2)  # over two polls of the watch on the answers
    bench.append(1)
    until(bench.delivered)
    assert len(bench.service.hellos) == 1


def test_the_end_of_an_idle_stream_is_noticed_at_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.publisher.start()
    bench.append(1)
    until(bench.delivered)
    bench.service.stop()
    until(lambda: bool(messages(caplog, "is away")))
    bench.service.start()
    until(lambda: len(bench.service.hellos) >= 2, publish._BACKOFF_SECONDS_MAX + 3)
    bench.append(1)
    until(bench.delivered)


def test_an_answer_for_what_was_not_sent_breaks_the_stream(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def bad(requests: Iterator[pb.AgentMessage], context: object) -> Iterator[pb.CollectorMessage]:
        yield pb.CollectorMessage(welcome=pb.Welcome())
        yield pb.CollectorMessage(ack=pb.Ack(seq=5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Service, "Publish", lambda self, requests, context: bad(requests, context))
        bench.service.stop()
        bench.service.start()
        bench.append(2)
        bench.publisher.start()
        until(lambda: bool(messages(caplog, "window 5, which was not sent")))
    assert bench.spool.waiting == 2


def test_an_error_of_its_own_does_not_end_delivery(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    hello = bench.publisher._hello
    calls = 0

    def bad() -> pb.Hello:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise KeyError("bug")
        return hello()

    bench.publisher._hello = bad
    bench.append(2)
    bench.publisher.start()
    until(bench.delivered)
    assert len(messages(caplog, "internal error: KeyError")) == 1


def test_closing_sends_what_is_there(tmp_path: Path, service: Service) -> None:
    bench = Bench(tmp_path, service)
    bench.publisher.start()
    bench.append(1)
    until(bench.delivered)
    bench.append(50)
    bench.close()
    assert service.mark(bench.spool.id) == 51


def test_closing_while_the_collector_is_away_is_quick_and_a_new_start_goes_on(tmp_path: Path, service: Service) -> None:
    bench = Bench(tmp_path, service)
    service.stop()
    bench.publisher.start()
    bench.append(5)
    until(lambda: bench.publisher._failures >= 1)
    bench.close()
    assert not bench.publisher._thread.is_alive()
    service.start()
    bench.open()
    bench.append(5)
    bench.publisher.start()
    until(bench.delivered)
    bench.close()
    assert bench.stored() == list(range(1, 11))


def test_without_tls_it_keeps_to_loopback(tmp_path: Path) -> None:
    with pytest.raises(TrimtabError, match=r"agent\.collector.*tls") as caught:
        Publisher(
            target="192.0.2.1:7470",
            tls=Tls(),
            spool=Spool(tmp_path / "spool", 1 << 20, Vitals()),
            hello=pb.Hello,
            refused=tmp_path,
            clock=SystemClock(),
            rng=random.Random(1),
            vitals=Vitals(),
        )
    assert caught.value.exit_code == Exit.SETTINGS
