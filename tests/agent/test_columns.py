"""The wire: what is packed comes back, and whatever is malformed is refused by the name of its field."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trimtab.agent.sketch.loglinear import BUCKETS, of_seconds
from trimtab.agent.wire import telemetry_pb2 as pb
from trimtab.agent.wire.columns import (
    SERIES_MAX,
    SUBJECTS_MAX,
    Malformed,
    check_name,
    check_schema,
    pack_sketches,
    pack_values,
    schema_hash,
    unpack_sketches,
    unpack_values,
)


def schema(series: int = 2, subjects: int = 3) -> pb.Schema:
    table = pb.Table(
        kind=pb.SUBJECT_KIND_INSTANCE,
        series=[pb.Series(name=f"s{i}", unit="1", kind=pb.SERIES_KIND_GAUGE) for i in range(series)],
        subjects=[pb.Subject(id=f"n/{i}", labels={"model": "m"}) for i in range(subjects)],
    )
    return hashed(pb.Schema(tables=[table]))


def hashed(schema: pb.Schema) -> pb.Schema:
    schema.hash = schema_hash(schema)
    return schema


def column() -> pb.SketchColumn:
    return pack_sketches(
        0, "latency", "s", [0, 2], [of_seconds(np.array([0.001, 0.002])), of_seconds(np.array([0.5]), 0.25)]
    )


@given(arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2), elements=st.floats(allow_infinity=False)))
def test_values_come_back_as_they_were(values: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
    window = pb.Window(values=[pack_values(values)])
    (back,) = unpack_values(pb.Window.FromString(window.SerializeToString()), schema(*values.shape))
    np.testing.assert_array_equal(back, values)


def test_a_schema_of_the_agent_is_accepted_and_its_hash_is_of_its_content() -> None:
    check_schema(schema())
    assert schema().hash == schema().hash != schema(subjects=4).hash
    one, other = schema(), schema()
    other.tables[0].subjects[0].labels["a"] = "b"
    assert schema_hash(one) != schema_hash(other)


def broken(change: Callable[[pb.Table], object]) -> pb.Schema:
    result = schema()
    change(result.tables[0])
    return hashed(result)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (pb.Schema(hash=b"x", tables=schema().tables), "schema.hash"),
        (hashed(pb.Schema(tables=[*schema().tables, *schema().tables])), "schema.tables"),
        (broken(lambda t: setattr(t, "kind", pb.SUBJECT_KIND_UNSPECIFIED)), "schema.tables"),
        (schema(subjects=SUBJECTS_MAX + 1), "subjects"),
        (schema(series=SERIES_MAX + 1), "series"),
        (broken(lambda t: t.series.append(t.series[0])), "series"),
        (broken(lambda t: setattr(t.series[0], "name", 'x"; DROP TABLE')), "series.name"),
        (broken(lambda t: setattr(t.series[0], "name", "")), "series.name"),
        (broken(lambda t: t.subjects.append(t.subjects[0])), "subjects"),
        (broken(lambda t: setattr(t.subjects[0], "id", "")), "subjects"),
        (broken(lambda t: setattr(t.subjects[0], "id", "x" * 257)), "subjects"),
        (broken(lambda t: t.subjects[0].labels.update({"k": "x" * 257})), "subjects"),
        (broken(lambda t: t.subjects[0].labels.update({f"k{i}": "" for i in range(65)})), "subjects"),
    ],
)
def test_a_malformed_schema_is_refused_by_name(bad: pb.Schema, field: str) -> None:
    with pytest.raises(Malformed, match=field):
        check_schema(bad)


@pytest.mark.parametrize("name", ["", "A", "a-b", "a b", "é", "x" * 64, "a\n", "a.b"])
def test_a_name_that_cannot_be_a_column_is_refused(name: str) -> None:
    with pytest.raises(Malformed, match="the field"):
        check_name("the field", name)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ([], "window.values"),
        ([b"\0" * 48, b""], "window.values"),
        ([b"\0" * 47], r"window.values\[SUBJECT_KIND_INSTANCE\]"),
        ([pack_values(np.array([[0.0, 0, 0], [0, np.inf, 0]]))], "s1 is infinite"),
        ([pack_values(np.array([[0.0, 0, -np.inf], [0, 0, 0]]))], "s0 is infinite"),
    ],
)
def test_malformed_values_are_refused_by_name(values: list[bytes], field: str) -> None:
    with pytest.raises(Malformed, match=field):
        unpack_values(pb.Window(values=values), schema())


def u4(*values: int) -> bytes:
    return np.array(values, dtype="<u4").tobytes()


def u2(*values: int) -> bytes:
    return np.array(values, dtype="<u2").tobytes()


def f8(*values: float) -> bytes:
    return np.array(values, dtype="<f8").tobytes()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "Bad"}, "name"),
        ({"table": 1}, "table"),
        ({"subjects": b"abc"}, "subjects"),
        ({"subjects": u4(0)}, "subjects"),
        ({"subjects": u4(1, 1)}, "subjects"),
        ({"subjects": u4(0, 3)}, "subjects"),
        ({"probabilities": b"abc"}, "probabilities"),
        ({"probabilities": f8(0.0, 1.0)}, "probabilities"),
        ({"probabilities": f8(1.1, 1.0)}, "probabilities"),
        ({"probabilities": f8(float("nan"), 1.0)}, "probabilities"),
        ({"probabilities": f8(1.0)}, "probabilities"),
        ({"sums": b"abc"}, "sums"),
        ({"sums": f8(-1.0, 1.0)}, "sums"),
        ({"sums": f8(float("nan"), 1.0)}, "sums"),
        ({"sums": f8(float("inf"), 1.0)}, "sums"),
        ({"lengths": b"abc"}, "lengths"),
        ({"lengths": u4(2, 2)}, "lengths"),
        ({"lengths": u4((1 << 32) - 1, (1 << 32) - 1)}, "lengths"),
        ({"buckets": b"abc"}, "buckets"),
        ({"buckets": u2(5, 5, 9)}, "buckets"),
        ({"buckets": u2(6, 5, 9)}, "buckets"),
        ({"buckets": u2(5, BUCKETS, 9)}, "buckets"),
        ({"counts": b"abc"}, "counts"),
        ({"counts": u4(1)}, "counts"),
    ],
)
def test_malformed_sketches_are_refused_by_name(change: dict[str, object], field: str) -> None:
    bad = column()
    unpack_sketches(bad, schema())
    for name, value in change.items():
        setattr(bad, name, value)
    with pytest.raises(Malformed, match=rf"window\.sketches\[.*{field}"):
        unpack_sketches(bad, schema())


@given(st.data())
def test_any_bytes_are_unpacked_or_refused(data: st.DataObject) -> None:
    bad = column()
    field = data.draw(st.sampled_from(["subjects", "probabilities", "sums", "lengths", "buckets", "counts"]))
    setattr(bad, field, data.draw(st.binary(max_size=64)))
    try:
        back = unpack_sketches(bad, schema())
    except Malformed:
        return
    assert (back.owners < len(back.subjects)).all()
    assert len(back.owners) == len(back.buckets) == len(back.counts)
    assert (back.buckets < BUCKETS).all()
