"""Windows land in their slots, whenever they come and however long they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector import fleet as made
from tests.detector.faults import CARD, signals
from tests.detector.fleet import START_NS, Fleet, Noise
from trimtab.agent.sketch.loglinear import BUCKETS, quantiles_seconds
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import schema_hash
from trimtab.collector.window import Window
from trimtab.detector import quantiles
from trimtab.detector.changepoint import change_point
from trimtab.detector.features import Readings, read
from trimtab.detector.history import INSTANCE, History
from trimtab.detector.latencies import Piece

SECOND = 1_000_000_000


def windows(count: int, seconds: float = 1.0, seed: int = 0) -> list[Window]:
    fleet = Fleet([("m", "m")], seed=seed, window_seconds=seconds, noise=Noise(bursts_per_second=0, blips_per_second=0))
    return [fleet.step()[0] for _ in range(count)]


def course(history: History, subject: str, name: str) -> dict[int, float]:
    courses = history.courses(subject)
    assert courses is not None
    return {int(t): float(v) for t, v in zip(courses.times_ns, courses.course(name), strict=True) if not np.isnan(v)}


def told(window: Window, name: str) -> float:
    table = next(k for k, t in enumerate(window.schema.tables) if t.subjects[0].id == "n0")
    names = [s.name for s in window.schema.tables[table].series]
    return float(np.float32(window.values[table][names.index(name), 0]))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(12)))
def test_order_does_not_matter(order: list[int]) -> None:
    made = windows(12)
    first, second = History(60), History(60)
    for window in made:
        first.observe(window)
    for k in order:
        second.observe(made[k])
    a, b = first.courses("n0/8080"), second.courses("n0/8080")
    assert a is not None
    assert b is not None
    np.testing.assert_allclose(a.values[:, -12:], b.values[:, -12:], rtol=1e-6)
    now = made[-1].start_unix_ns + SECOND
    np.testing.assert_allclose(read(first, ["n0/8080"], now, 10).matrix(), read(second, ["n0/8080"], now, 10).matrix())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5), st.integers(1, 40))
def test_many_windows_at_once_are_as_one_after_the_other(seed: int, late: float, most: int) -> None:
    """Through changes of schema, lost and late windows, jumps beyond the ring, and another window length."""
    chance = np.random.default_rng(seed)
    fleets = [
        Fleet([("m", "m"), ("m",)], seed=seed),
        Fleet([("m", "k", "m"), ("m",)], seed=seed, gpus=True),
        Fleet([("m", "m"), ("k", "m")], seed=seed, window_seconds=2.0),
    ]
    now, queue = fleets[0].now_ns, list[Window]()
    for _ in range(40):
        fleet = fleets[chance.choice(3, p=(0.5, 0.3, 0.2))]
        now = fleet.now_ns = now + (70 * SECOND if chance.random() < 0.03 else 0)
        queue += [w for w in fleet.step() if chance.random() < 0.9]
        now = fleet.now_ns
    order = np.argsort(np.arange(len(queue)) + np.where(chance.random(len(queue)) < late, 12, 0), kind="stable")
    windows = [queue[k] for k in order]
    single, many = History(60), History(60)
    for window in windows:
        single.observe(window)
    while windows:
        size = int(chance.integers(1, most + 1))
        many.observe_all(windows[:size])
        del windows[:size]
    assert single.ignored == many.ignored
    ids = [instance for instance, _ in single.all(INSTANCE)]
    assert ids == [instance for instance, _ in many.all(INSTANCE)]
    for subject in [*ids, "n0", "n1"]:
        a, b = single.courses(subject), many.courses(subject)
        assert a is not None
        assert b is not None
        np.testing.assert_array_equal(a.values, b.values)
    first, second = read(single, ids, now, 10), read(many, ids, now, 10)
    for name in Readings.__annotations__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_an_instance_is_read_the_same_in_any_company() -> None:
    """Nodes of one layout are read side by side: that must not show."""
    fleet, history = Fleet([("m", "m", "k"), ("k",), ("m", "m", "k")], gpus=True), History(60)
    for _ in range(20):
        history.observe_all(fleet.step())
    together = read(history, fleet.instances, fleet.now_ns, 10)
    for row, instance in enumerate(fleet.instances):
        alone = read(history, [instance], fleet.now_ns, 10)
        for name in Readings.__annotations__:
            if name != "ids":
                np.testing.assert_array_equal(getattr(together, name)[..., row], getattr(alone, name)[..., 0])


def test_a_node_whose_table_of_gpus_is_empty_is_read() -> None:
    history = History(60)
    for window in windows(8):
        schema, message = pb.Schema(), pb.Window()
        schema.CopyFrom(window.schema)
        message.CopyFrom(window.message)
        schema.tables.append(
            pb.Table(kind=pb.SUBJECT_KIND_GPU, series=[pb.Series(name="utilisation_ratio", kind=pb.SERIES_KIND_GAUGE)])
        )
        message.values.append(b"")
        schema.hash = message.schema_hash = schema_hash(schema)
        history.observe(replace(window, schema=schema, message=message))
    plain = History(60)
    for window in windows(8):
        plain.observe(window)
    now = window.start_unix_ns + SECOND
    np.testing.assert_array_equal(
        read(history, ["n0/8080"], now, 10).matrix(), read(plain, ["n0/8080"], now, 10).matrix()
    )


def test_values_come_back_as_they_were() -> None:
    made, history = windows(10), History(60)
    for window in made:
        history.observe(window)
    assert course(history, "n0", "cpu_busy_cores") == {w.start_unix_ns: told(w, "cpu_busy_cores") for w in made}
    assert history.labels("n0/8080")["model"] == "m"
    assert history.instances("m") == ["n0/8080", "n0/8090"]


def test_what_is_too_old_is_ignored_and_counted() -> None:
    made, history = windows(200), History(60)
    history.observe(made[-1])
    for window in made[:-1]:
        history.observe(window)
    assert history.ignored == 200 - history.slots
    assert len(course(history, "n0", "cpu_cores")) == history.slots


def test_a_lost_window_is_unknown_not_zero() -> None:
    made, history = windows(10), History(60)
    for window in made[:4] + made[5:]:
        history.observe(window)
    assert sorted(course(history, "n0", "cpu_cores")) == [w.start_unix_ns for w in made[:4] + made[5:]]


@pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 5.0, 60.0])
def test_any_window_length(seconds: float) -> None:
    made, history = windows(70, seconds), History(180)
    for window in made:
        history.observe(window)
    slot = max(1.0, seconds)
    assert history.nodes["n0"].slot_seconds == pytest.approx(slot)
    assert len(course(history, "n0", "cpu_cores")) == round(70 * seconds / slot)
    reading = read(history, ["n0/8080", "n0/8090"], made[-1].start_unix_ns + round(seconds * 1e9), 10)
    np.testing.assert_allclose(np.exp(reading.latency_log), 0.012, rtol=0.5)
    np.testing.assert_allclose(reading.requests, 13 * max(5, seconds), rtol=0.6)


def test_another_window_length_starts_the_node_anew() -> None:
    history = History(60)
    for window in windows(6, 10.0):
        history.observe(window)
    for window in windows(10):
        history.observe(replace(window, start_unix_ns=window.start_unix_ns + 60 * SECOND))
    assert history.nodes["n0"].slot_seconds == 1.0


def test_a_late_window_fills_the_time_it_took() -> None:
    made, history = windows(6), History(60)
    for window in made[:5]:
        history.observe(window)
    history.observe(replace(made[5], duration_ns=3 * SECOND))
    assert len(course(history, "n0", "cpu_cores")) == 8


def test_schema_changes_keep_what_was_known() -> None:
    history = History(60)
    small, large = Fleet([("m", "m")]), Fleet([("m", "m", "m")], gpus=True)
    for _ in range(5):
        history.observe(small.step()[0])
    large.now_ns = small.now_ns
    for _ in range(5):
        history.observe(large.step()[0])
    small.now_ns = large.now_ns
    for _ in range(5):
        history.observe(small.step()[0])
    assert len(course(history, "n0/8080", "requests_per_second")) == 15
    assert len(course(history, "n0/8100", "requests_per_second")) == 5
    reading = read(history, ["n0/8100", "n0/8080"], small.now_ns, 10)
    assert reading.age_seconds.tolist() == [5, 0]
    assert np.isnan(reading.latency_log[0])


def test_a_clock_that_was_put_back_does_not_blind() -> None:
    made, history = windows(20), History(60)
    history.observe(replace(made[0], start_unix_ns=START_NS + 3600 * SECOND))
    history.forget(START_NS + SECOND, 600)
    for window in made:
        history.observe(window)
    assert (history.ignored, len(course(history, "n0", "cpu_cores"))) == (0, 20)


def test_silent_nodes_are_forgotten() -> None:
    history = History(60)
    history.observe(windows(1)[0])
    history.forget(START_NS + 700 * SECOND, 600)
    assert history.nodes == {}
    assert history.courses("n0") is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, BUCKETS - 1), st.integers(1, 50)), max_size=40))
def test_quantiles_are_those_of_the_merged_sketch(cells: list[tuple[int, int, int]]) -> None:
    dense = np.zeros((4, BUCKETS), dtype=np.int64)
    pieces = []
    for row, bucket, weight in cells:
        dense[row, bucket] += weight
        pieces.append(Piece(np.asarray([row]), np.asarray([bucket]), np.asarray([weight], dtype=np.float32)))
    q = (0.0, 0.5, 0.95, 1.0)
    found = quantiles.quantiles_seconds(pieces, 4, q)
    for row in range(4):
        np.testing.assert_allclose(found[:, row], quantiles_seconds(dense[row], q), rtol=1e-6)


@given(st.integers(8, 32), st.integers(0, 100), st.booleans())
def test_the_change_point_is_where_the_level_changes(at: int, seed: int, down: bool) -> None:
    chance = np.random.default_rng(seed)
    values = 0.1 * chance.standard_normal(40)
    values[at:] += -1 if down else 1
    values[chance.integers(0, 40)] += 5
    found = change_point(values.astype(np.float32), 3, 37)
    assert found is not None
    assert abs(found - at) <= 2


def test_too_little_has_no_change_point() -> None:
    assert change_point(np.full(20, np.nan, dtype=np.float32), 1, 19) is None


def test_what_a_gpu_announces_is_read_of_the_instance_that_uses_it() -> None:
    fleet, history = Fleet([("m", "m"), ("m",)], gpus=True), History(60)
    fleet.strike(signals(CARD, throttle_hardware=1, fault_xid=79))
    for _ in range(5):
        history.observe_all(fleet.step())
    told = read(history, fleet.instances, fleet.now_ns, 10)
    assert told.gpu_throttled.tolist() == [1, 0, 0]
    assert told.gpu_xid.tolist() == [79, 0, 0]
    assert np.isnan(told.gpu_memory_fault).all(), "no GPU tells of it"
    assert told.workers.tolist() == [2, 2, 2]
    assert (told.service_seconds > 0).all()


def test_without_a_gpu_nothing_is_known_of_one() -> None:
    fleet, history = Fleet([("m", "m")]), History(60)
    history.observe_all(fleet.step())
    told = read(history, fleet.instances, fleet.now_ns, 10)
    assert np.isnan([told.gpu_throttled, told.gpu_memory_fault, told.gpu_xid]).all()


def test_workers_are_as_many_requests_as_fill_their_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(made.INSTANCE, "batch_size_max", ("1", 8.0))
    fleet, history = Fleet([("m", "m")]), History(60)
    for _ in range(20):
        history.observe_all(fleet.step())
    assert read(history, fleet.instances, fleet.now_ns, 10).workers == pytest.approx([16, 16], rel=0.2)
