"""What SQL reads is what the agent sent, whatever it sent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.collector.sender import collecting, publish, schema, window
from trimtab.agent.sketch import loglinear
from trimtab.agent.wire.columns import pack_sketches, unpack_sketches
from trimtab.collector import rows
from trimtab.collector.store import FILE, Store

VALUES = st.one_of(st.floats(allow_nan=True, allow_infinity=False, width=64))
SERIES = ["a", "b_per_second", "c"]


@st.composite
def batches(draw: st.DrawFn) -> list[tuple[list[str], list[str], list[list[list[float]]]]]:
    """Some schemas, each with its series, subjects and windows' values."""
    out = []
    for _ in range(draw(st.integers(1, 3))):
        series = draw(st.lists(st.sampled_from(SERIES), min_size=1, max_size=3, unique=True))
        subjects = [f"n1/{port}" for port in draw(st.lists(st.integers(1, 99), min_size=0, max_size=4, unique=True))]
        values = arrays(np.float64, (len(series), len(subjects)), elements=VALUES)
        out.append((series, subjects, [block.tolist() for block in draw(st.lists(values, min_size=1, max_size=3))]))
    return out


@given(batches())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values(tmp_path_factory: object, batches: list[tuple[list[str], list[str], list[list[list[float]]]]]) -> None:
    state: Path = tmp_path_factory.mktemp("store")  # type: ignore[attr-defined]
    messages, expected, seq = [], {}, 0
    for series, subjects, windows in batches:
        of = schema({"instance": (series, subjects)})
        messages.append(of)
        for values in windows:
            seq += 1
            messages.append(window(seq, of, [np.asarray(values).reshape(len(series), len(subjects))]))
            for j, subject in enumerate(subjects):
                known = {name: values[i][j] for i, name in enumerate(series) if not math.isnan(values[i][j])}
                expected[seq, subject] = known
    with collecting(state) as (_, telemetry, _query):
        assert [a.ack.seq for a in publish(telemetry, *messages)[1:]] == list(range(1, seq + 1))
    import duckdb

    with duckdb.connect(state / FILE, read_only=True) as database:
        found = database.execute("SELECT * FROM fingerprint_instance")
        names = [column[0] for column in found.description]
        stored = {}
        for row in found.fetchall():
            cells = dict(zip(names, row, strict=True))
            stored[cells["seq"], cells["subject"]] = {n: cells[n] for n in SERIES if cells.get(n) is not None}
        assert stored == expected
        assert len(stored) == database.execute("SELECT count(*) FROM fingerprint_instance").fetchone()[0]


OBSERVATIONS = st.lists(st.floats(0, 130), max_size=50)


@given(st.lists(st.tuples(OBSERVATIONS, st.floats(0.01, 1)), min_size=1, max_size=5))
@settings(deadline=None)
def test_summary_of_many_sketches_is_that_of_each(drawn: list[tuple[list[float], float]]) -> None:
    sketches = [loglinear.of_seconds(np.asarray(values), p) for values, p in drawn]
    of = schema({"instance": (["x"], [f"n1/{i}" for i in range(len(drawn))])})
    packed = unpack_sketches(pack_sketches(0, "s", "s", range(len(drawn)), sketches), of)
    one_by_one = [[s.count, s.mean_seconds, *s.quantiles_seconds((0.5, 0.95, 0.99))] for s in sketches]
    np.testing.assert_allclose(rows.summary(packed), np.asarray(one_by_one).T, rtol=1e-12)


def test_sketches_come_back_whole(tmp_path: Path) -> None:
    sketches = [loglinear.of_seconds(np.asarray(v), 0.5) for v in ([0.1, 0.1, 3.0], [], [1e-9])]
    of = schema({"node": (["x"], ["n1"]), "instance": (["x"], ["n1/1", "n1/2", "n1/3", "n1/4"])})
    column = pack_sketches(1, "request_latency", "s", [3, 0, 2], sketches)
    with collecting(tmp_path) as (_, telemetry, _query):
        publish(telemetry, of, window(1, of, sketches=[column]))
    store = Store(tmp_path / FILE, 64 << 20, read_only=True)
    with store.reading() as connection:
        found = connection.execute("SELECT subject, probability, sum_seconds, buckets, counts FROM sketches").fetchall()
    store.close()
    for subject, sketch in zip(["n1/4", "n1/1", "n1/3"], sketches, strict=True):
        [(_, probability, total, buckets, counts)] = [row for row in found if row[0] == subject]
        dense = np.zeros(loglinear.BUCKETS, dtype=np.int64)
        dense[np.asarray(buckets, dtype=np.int64)] = counts
        assert (probability, total) == (0.5, sketch.sum_seconds)
        np.testing.assert_array_equal(dense, sketch.counts)
