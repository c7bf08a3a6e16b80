"""The loop: windows on the wall clock's boundaries, and one collector's trouble is its own."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.agent.fakes import INSTANCE, NODE, Fake, until
from trimtab.agent.clock import ManualClock
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.loop import Loop
from trimtab.agent.registry import Host, Instance, Reading, Unavailable
from trimtab.agent.window import Builder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import unpack_values
from trimtab.agent.wire.events import AGENT_STOPPED

START_NS = 1_700_000_000_300_000_000
WINDOW_SECONDS = 0.2


class Bench:
    """A loop by a clock that is moved by hand: windows come as fast as they can, until there are enough."""

    def __init__(self, *fakes: Fake, find: Callable[[float], tuple[Instance, ...]] = lambda _: (INSTANCE,)) -> None:
        self.clock = ManualClock(START_NS - 10_000_000_000)
        self.clock.advance(10)
        self.vitals = Vitals()
        self.stop = threading.Event()
        self.windows: list[pb.Window] = []
        self.values: list[dict[str, float]] = []
        self.subjects: list[list[str]] = []
        self.after: dict[int, Callable[[], object]] = {}
        self.wanted = 0
        self.fakes = fakes
        self.loop = Loop(
            collectors=fakes,
            find=find,
            host=Host(NODE, self.clock),
            window_seconds=WINDOW_SECONDS,
            builder=Builder(NODE, {}, fakes, self.vitals),
            keep=self.keep,
            vitals=self.vitals,
        )

    def keep(self, schema: pb.Schema, window: pb.Window) -> None:
        self.windows.append(window)
        self.subjects.append([s.id for table in schema.tables for s in table.subjects])
        block = unpack_values(window, schema)[0]
        self.values.append({s.name: float(block[i, 0]) for i, s in enumerate(schema.tables[0].series)})
        self.after.get(len(self.windows), lambda: None)()
        if len(self.windows) == self.wanted:
            self.stop.set()

    def run(self, windows: int) -> None:
        self.wanted = windows
        self.loop.run(self.stop)

    def known(self, name: str) -> list[bool]:
        return [not math.isnan(values[f"{name}_value"]) for values in self.values]


@contextmanager
def hanging() -> Iterator[threading.Event]:
    """An event to hang on, that is set in the end."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def messages(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


def test_windows_are_aligned_and_follow_each_other() -> None:
    bench = Bench(Fake())
    bench.run(5)
    starts = [window.start_unix_ns for window in bench.windows]
    assert starts == [1_700_000_000_200_000_000 + i * 200_000_000 for i in range(5)]
    assert {window.duration_ns for window in bench.windows} == {200_000_000}
    assert {w.start_unix_ns - w.start_boottime_ns for w in bench.windows} == {START_NS - 10_000_000_000}
    assert bench.known("fake") == [True] * 5
    assert bench.vitals.windows_skipped == 0


def test_a_goodbye_is_a_window_that_says_nothing_else() -> None:
    bench = Bench(Fake())
    bench.run(2)
    bench.clock.advance(0.05)
    bench.loop.say_goodbye()
    last = bench.windows[-1]
    assert (last.start_unix_ns % 200_000_000, last.duration_ns) == (0, 200_000_000)
    assert 0 <= bench.clock.unix_ns() - last.start_unix_ns < 200_000_000
    assert last.start_unix_ns - last.start_boottime_ns == START_NS - 10_000_000_000
    assert [(event.subject, event.name) for event in last.events] == [(NODE, AGENT_STOPPED)]
    assert bench.known("fake") == [True, True, False]
    assert last.schema_hash == bench.windows[-2].schema_hash


def test_the_reading_says_how_long_it_really_was() -> None:
    fake = Fake()
    bench = Bench(fake)
    bench.after[2] = lambda: bench.clock.advance(0.05)
    bench.run(4)
    assert math.isnan(fake.seconds[0])
    assert fake.seconds[1:] == pytest.approx([0.2, 0.2, 0.2])


def test_missed_boundaries_are_counted_and_not_made_up(caplog: pytest.LogCaptureFixture) -> None:
    fake = Fake()
    bench = Bench(fake)
    bench.after[2] = lambda: bench.clock.advance(1.3)
    bench.run(4)
    starts = [(window.start_unix_ns - START_NS) // 100_000_000 for window in bench.windows]
    # Boundaries at 0.1, 0.3; then 1.6 s is past those up to 1.5.
    assert starts == [-1, 1, 15, 17]
    assert bench.vitals.windows_skipped == 6
    assert fake.seconds[2] == pytest.approx(1.4)
    assert len(messages(caplog, "windows skipped: 6")) == 1


class Stepping(ManualClock):
    """Its wall clock can be set."""

    step_ns = 0

    def unix_ns(self) -> int:
        return super().unix_ns() + self.step_ns


@pytest.mark.parametrize("step_seconds", [3600, -3600, 0.07])
def test_a_wall_clock_that_is_set_skips_and_stalls_nothing(step_seconds: float) -> None:
    bench = Bench(Fake())
    clock = Stepping(START_NS)
    bench.clock = clock
    bench.loop._clock = clock

    def step() -> None:
        clock.step_ns = round(step_seconds * 1e9)

    bench.after[2] = step
    bench.run(5)
    starts = [window.start_unix_ns for window in bench.windows]
    assert all(start % 200_000_000 == 0 for start in starts)
    assert abs(starts[2] - starts[1] - step_seconds * 1e9) <= 400_000_000
    assert bench.vitals.windows_skipped == 0
    assert clock.monotonic() < 5 * WINDOW_SECONDS + 0.4


def test_a_slow_collector_is_left_out_and_delays_no_other() -> None:
    with hanging() as event:
        slow = Fake("slow", on_read=lambda _: event.wait(20))
        bench = Bench(slow, Fake())
        bench.run(3)
        assert bench.known("fake") == [True] * 3
        assert bench.known("slow") == [False] * 3
        # Asked once: it is busy since.
        assert len(slow.seconds) == 1
        assert bench.vitals.collector_failures == 3


def test_a_late_reading_is_not_taken_for_a_later_one_but_its_events_are_kept() -> None:
    with hanging() as event:

        def read(reading: Reading) -> None:
            if len(slow.seconds) == 1:
                event.wait(20)
                reading.event("node", NODE, "oom_kill")
                reading.set("node", NODE, "slow_value", 99.0)
            else:
                reading.set("node", NODE, "slow_value", 2.0)

        slow = Fake("slow", on_read=read)
        bench = Bench(slow)

        def let_go() -> None:
            event.set()
            answer = bench.loop._workers[0]._answer
            assert answer is not None
            until(answer.done)

        bench.after[1] = let_go
        bench.run(3)
    assert [values["slow_value"] for values in bench.values][1:] == [2.0, 2.0]
    assert math.isnan(bench.values[0]["slow_value"])
    assert [[event.name for event in window.events] for window in bench.windows] == [[], ["oom_kill"], []]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), Unavailable("gone"), KeyError("bug")])
def test_a_failing_collector_is_counted_each_time_and_said_once(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Reading) -> None:
        raise error

    bench = Bench(Fake("bad", on_read=fail), Fake())
    bench.run(4)
    assert bench.vitals.collector_failures == 4
    assert bench.known("fake") == [True] * 4
    assert len(messages(caplog, "collector bad failed")) == 1


def test_the_reading_after_a_failure_counts_as_a_first() -> None:
    def read(reading: Reading) -> None:
        if len(fake.seconds) == 2:
            raise OSError(5, "Input/output error")

    fake = Fake(on_read=read)
    Bench(fake).run(4)
    assert [math.isnan(seconds) for seconds in fake.seconds] == [True, False, True, False]


def test_it_says_that_it_works_again_and_then_a_new_failure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def read(reading: Reading) -> None:
        if len(bad.seconds) in {1, 4}:
            raise OSError(5, "Input/output error")

    bad = Fake("bad", on_read=read)
    bench = Bench(bad)
    bench.after[2] = lambda: bench.clock.advance(90)
    bench.run(5)
    said = [record.getMessage() for record in caplog.records if "collector bad" in record.getMessage()]
    assert [text.split(":")[0] for text in said] == [
        "collector bad failed", "collector bad works again", "collector bad failed",
    ]  # fmt: skip


def test_unavailable_is_said_once_and_tried_again_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        if bad.opened <= 2:
            raise Unavailable("no such device", "plug it in")

    bad = Fake("bad", on_open=refuse)
    bench = Bench(bad, Fake())
    for window in (2, 4):
        bench.after[window] = lambda: bench.clock.advance(60)
    bench.run(8)
    assert bad.opened == 3
    said = messages(caplog, "not available")
    assert said == ["collector bad is not available: no such device; plug it in; its signals are unknown"]
    # Opening it took one window.
    assert bench.known("bad") == [False] * 5 + [True] * 3
    assert bench.known("fake") == [True] * 8
    assert bench.vitals.collector_failures == 0


@pytest.mark.parametrize(("remedy", "level"), [("plug it in", logging.WARNING), ("", logging.INFO)])
def test_what_no_remedy_could_change_is_no_warning(remedy: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def refuse() -> None:
        raise Unavailable("no such device", remedy)

    Bench(Fake(on_open=refuse)).run(2)
    assert [r.levelno for r in caplog.records if "not available" in r.getMessage()] == [level]


def test_opening_may_take_its_time() -> None:
    with hanging() as event:
        slow = Fake("slow", on_open=lambda: event.wait(20))
        bench = Bench(slow, Fake())

        def let_go() -> None:
            event.set()
            until(lambda: bench.loop._workers[0]._opened)

        bench.after[2] = let_go
        bench.run(4)
    assert bench.known("slow") == [False, False, True, True]
    assert bench.vitals.collector_failures == 0


def test_instances_come_and_go_and_a_search_that_fails_keeps_those_known(caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def find(_: float) -> tuple[Instance, ...]:
        nonlocal calls
        calls += 1
        if calls in {2, 3}:
            raise OSError(13, "Permission denied")
        return (INSTANCE,) if calls < 5 else ()

    bench = Bench(Fake(), find=find)
    for window in range(1, 7):
        bench.after[window] = lambda: None
    bench.loop._take_instances = lambda take=bench.loop._take_instances: (until(_found(bench)), take())  # type: ignore[method-assign]
    bench.run(6)
    assert [INSTANCE.id in subjects for subjects in bench.subjects] == [True, True, True, True, False, False]
    assert len(messages(caplog, "looking for serving instances failed")) == 1


def _found(bench: Bench) -> Callable[[], bool]:
    return lambda: bench.loop._finding is None or bench.loop._finding.done()


def test_a_search_that_hangs_delays_nothing() -> None:
    with hanging() as event:

        def find(_: float) -> tuple[Instance, ...]:
            event.wait(20)
            return (INSTANCE,)

        bench = Bench(Fake(), find=find)
        bench.run(2)
        assert bench.subjects == [[NODE], [NODE]]


def test_all_that_opened_are_closed_and_one_that_hangs_is_left(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise Unavailable("no")

    with hanging() as event:
        slow = Fake("slow", on_read=lambda _: event.wait(20))
        never, good = Fake("never", on_open=refuse), Fake("good")
        bench = Bench(slow, never, good)
        bench.run(1)
        bench.loop.close(0.2)
        assert (good.closed, never.closed, slow.closed) == (1, 0, 0)
        assert len(messages(caplog, "collector slow did not close")) == 1


def test_a_suspend_in_the_middle_of_a_wait_is_skipped() -> None:
    bench = Bench(Fake())

    class Sleeper(ManualClock):
        waits = 0

        def wait(self, stop: threading.Event, seconds: float) -> bool:
            self.waits += 1
            return super().wait(stop, seconds + 5.07 if self.waits == 3 else seconds)

    bench.loop._clock = Sleeper(START_NS)
    bench.run(4)
    starts = [(window.start_unix_ns - START_NS) // 1_000_000 for window in bench.windows]
    # The boundaries at 0.1 and 0.3 s, the one just before 5.57 s when it wakes, and the next.
    assert starts == [-100, 100, 5300, 5500]
    assert bench.vitals.windows_skipped == 25
