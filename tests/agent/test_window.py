"""Readings become columns: unknown stays unknown, the schema is stable, and what breaks the contract costs itself only."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.agent.fakes import INSTANCE, NODE, Fake
from trimtab.agent.collectors.own import Vitals
from trimtab.agent.registry import Instance, Reading, Signal
from trimtab.agent.sketch.loglinear import BUCKETS, Sketch, of_seconds
from trimtab.agent.window import Builder
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import EVENTS_MAX, check_schema, unpack_sketches, unpack_values

GPU = f"{NODE}/gpu/GPU-1"
SIGNALS = (
    Signal("cores", "cores", "help", "node"),
    Signal("latency", "s", "help", "instance", sketch=True),
    Signal("rate", "1/s", "help", "instance", rate=True),
    Signal("power", "watts", "help", "gpu"),
    Signal("clock", "hertz", "help", "gpu"),
)


class Bench:
    def __init__(self, labels: dict[str, str] | None = None) -> None:
        self.vitals = Vitals()
        self.builder = Builder(NODE, labels or {}, [Fake("one", signals=SIGNALS), Fake("two")], self.vitals)

    def build(
        self, instances: tuple[Instance, ...] = (INSTANCE,), **readings: Reading
    ) -> tuple[pb.Schema, pb.Window, dict[tuple[str, str], float]]:
        schema, window = self.builder.build(readings, instances, 10, 20, 30)
        check_schema(schema)
        assert window.schema_hash == schema.hash
        blocks = unpack_values(window, schema)
        values = {
            (subject.id, series.name): float(block[row, column])
            for table, block in zip(schema.tables, blocks, strict=True)
            for row, series in enumerate(table.series)
            for column, subject in enumerate(table.subjects)
        }
        return schema, window, values


def reading() -> Reading:
    return Reading((INSTANCE,), 1.0)


def labels(schema: pb.Schema, subject: str) -> dict[str, str]:
    return next(dict(s.labels) for table in schema.tables for s in table.subjects if s.id == subject)


def test_values_land_at_their_series_and_subject_and_the_rest_is_nan() -> None:
    one = reading()
    one.set("node", NODE, "cores", 2.5)
    one.set("gpu", GPU, "power", 300.0)
    one.set("instance", INSTANCE.id, "rate", None)
    _, window, values = Bench().build(one=one)
    known = {key: value for key, value in values.items() if not math.isnan(value)}
    assert known == {(NODE, "cores"): 2.5, (GPU, "power"): 300.0}
    assert {(INSTANCE.id, "rate"), (GPU, "clock"), (NODE, "two_value")} <= values.keys()
    assert (window.start_unix_ns, window.start_boottime_ns, window.duration_ns) == (10, 20, 30)


def test_units_and_kinds_are_those_declared_and_sketches_are_no_columns() -> None:
    schema, _, _ = Bench().build()
    series = {s.name: (s.unit, s.kind) for table in schema.tables for s in table.series}
    assert series["rate"] == ("1/s", pb.SERIES_KIND_RATE)
    assert series["cores"] == ("cores", pb.SERIES_KIND_GAUGE)
    assert "latency" not in series


def test_subjects_carry_the_labels_agreed_on() -> None:
    one = reading()
    one.label("gpu", GPU, index="0", name="H100", instances=INSTANCE.id)
    one.label("node", NODE, kernel="6.1", rack="of the collector")
    schema, _, _ = Bench({"rack": "r7"}).build(one=one)
    assert labels(schema, NODE) == {"rack": "r7", "kernel": "6.1"}
    assert labels(schema, GPU) == {"index": "0", "name": "H100", "instances": INSTANCE.id}
    wanted = {"runtime": "torchserve", "model": "bert", "addresses": "127.0.0.1:8080", "pid": "123"}
    assert labels(schema, INSTANCE.id) == wanted


def test_a_port_for_grpc_is_told_where_there_is_one() -> None:
    assert "grpc_port" not in labels(Bench().build()[0], INSTANCE.id)
    both = replace(INSTANCE, grpc_port=7070)
    assert labels(Bench().build((both,))[0], INSTANCE.id)["grpc_port"] == "7070"


def test_the_schema_is_the_same_until_subjects_or_labels_change() -> None:
    bench, one = Bench(), reading()
    one.set("gpu", GPU, "power", 1.0)
    first, _, _ = bench.build(one=one)
    assert bench.build(one=one)[0] is first
    # Late for a window, or silent about a value: neither is news.
    late, _, values = bench.build()
    assert late is first
    assert math.isnan(values[GPU, "power"])
    assert bench.build(instances=())[0].hash != first.hash
    assert bench.build()[0].hash == first.hash
    labelled = reading()
    labelled.label("gpu", GPU, name="H100")
    assert bench.build(one=labelled)[0].hash != first.hash
    gone, _, _ = bench.build(one=reading())
    assert {t.kind: len(t.subjects) for t in gone.tables if t.subjects} == {
        pb.SUBJECT_KIND_NODE: 1,
        pb.SUBJECT_KIND_INSTANCE: 1,
    }


def test_the_order_in_which_readings_come_changes_nothing() -> None:
    one, two = reading(), reading()
    one.label("gpu", GPU, name="a")
    two.label("gpu", f"{GPU}0", name="b")
    forth, _, _ = Bench().build(one=one, two=two)
    back, _, _ = Bench().build(two=two, one=one)
    assert forth.hash == back.hash


@pytest.mark.parametrize(
    ("subject", "name", "value"),
    [(NODE, "unheard_of", 1.0), (NODE, "cores", math.inf), (NODE, "cores", -math.inf), ("other", "cores", 1.0)],
)
def test_a_value_that_breaks_the_contract_costs_itself_only(
    subject: str, name: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    bench, one, two = Bench(), reading(), reading()
    one.set("instance", INSTANCE.id, "rate", 5.0)
    one.set("node", subject, name, value)
    two.set("node", NODE, "two_value", 7.0)
    for _ in range(3):
        _, _, values = bench.build(one=one, two=two)
    assert (values[INSTANCE.id, "rate"], values[NODE, "two_value"]) == (5.0, 7.0)
    assert math.isnan(values[NODE, "cores"])
    assert bench.vitals.values_dropped == 3
    assert len([r for r in caplog.records if "collector one" in r.message and name in r.message]) == 1


def test_sketches_travel_with_their_subject() -> None:
    other = Instance(f"{NODE}/9090", "torchserve", 5, 1.0, 9090, 7, ())
    one, sketch = reading(), of_seconds(np.array([0.1, 0.2]), 0.5)
    one.sketch("instance", other.id, "latency", sketch)
    schema, window, _ = Bench().build((INSTANCE, other), one=one)
    (column,) = window.sketches
    back = unpack_sketches(column, schema)
    table = schema.tables[back.table]
    assert [table.subjects[i].id for i in back.subjects] == [other.id]
    assert back.owners.tolist() == [0] * len(back.buckets)
    assert (sketch.counts[back.buckets] == back.counts).all()
    assert sketch.counts.sum() == back.counts.sum()
    assert (column.name, column.unit, back.probabilities.tolist()) == ("latency", "s", [0.5])


def sketch(probability: float = 1.0, sum_seconds: float = 0.0, count: int = 0) -> Sketch:
    counts = np.zeros(BUCKETS, dtype=np.int64)
    counts[3] = count
    return Sketch(counts, sum_seconds, probability)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("latency", sketch(sum_seconds=math.inf)),
        ("latency", sketch(sum_seconds=math.nan)),
        ("latency", sketch(probability=0)),
        ("latency", sketch(count=-1)),
        ("latency", Sketch(np.zeros(3, dtype=np.int64), 0.0)),
        ("rate", sketch()),
        ("unheard_of", sketch()),
    ],
)
def test_a_bad_sketch_costs_itself_only(name: str, bad: Sketch) -> None:
    bench, one = Bench(), reading()
    one.sketch("instance", INSTANCE.id, name, bad)
    _, window, _ = bench.build(one=one)
    assert not window.sketches
    assert bench.vitals.values_dropped == 1


def test_events_are_bounded_and_stamped_with_the_window() -> None:
    bench, one = Bench(), reading()
    for _ in range(EVENTS_MAX + 5):
        one.event("instance", INSTANCE.id, "worker_death", 1.0, "x" * 300)
    _, window, _ = bench.build(one=one)
    assert len(window.events) == EVENTS_MAX
    assert bench.vitals.values_dropped == 5
    event = window.events[0]
    assert (event.subject_kind, event.subject, event.name) == (
        pb.SUBJECT_KIND_INSTANCE,
        INSTANCE.id,
        "worker_death",
    )
    assert (event.unix_ns, len(event.detail)) == (10, 256)


@pytest.mark.parametrize(("length", "kept"), [(1, 64), (1000, 15)])
def test_overlong_labels_are_cut_to_what_the_collector_takes(length: int, kept: int) -> None:
    one = reading()
    one.label("node", NODE, **{f"k{i}": "v" * length for i in range(100)})
    schema, _, _ = Bench().build(one=one)
    assert len(labels(schema, NODE)) == kept
