"""What SQL reads is what the agent sent, whatever it sent."""

from __future__ import annotations

import math
from datetime import UTC
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.collector.sender import CLOCK, collecting, publish, schema, window
from trimtab.agent.sketch import loglinear
from trimtab.agent.wire.columns import pack_sketches, unpack_sketches
from trimtab.collector.packed import SketchList, unpack
from trimtab.collector.store import FILE, Store, arrow_batches

BOOTED_NS = CLOCK.unix_ns() - CLOCK.boottime_ns()
BEGUN_NS = CLOCK.unix_ns() // 10**9 * 10**9 - 60 * 10**9
VALUES = st.one_of(st.floats(allow_nan=True, allow_infinity=False, width=64))
SERIES = ["a", "b_per_second", "c"]


def begun(seq: int) -> int:
    """Whole seconds: what a window is known by in the table of its fingerprints."""
    return BEGUN_NS + seq * 10**9


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
            block = np.asarray(values).reshape(len(series), len(subjects))
            stamps = {"start_unix_ns": begun(seq), "start_boottime_ns": begun(seq) - BOOTED_NS}
            messages.append(window(seq, of, [block], **stamps))
            for j, subject in enumerate(subjects):
                known = {name: values[i][j] for i, name in enumerate(series) if not math.isnan(values[i][j])}
                expected[begun(seq), subject] = known
    with collecting(state) as (_, telemetry, _query):
        assert [a.ack.seq for a in publish(telemetry, *messages)[1:]] == list(range(1, seq + 1))
    import duckdb

    with duckdb.connect(state / FILE, read_only=True) as database:
        found = database.execute("SELECT * FROM fingerprint_instance")
        names = [column[0] for column in found.description]
        stored = {}
        for row in found.fetchall():
            cells = dict(zip(names, row, strict=True))
            start = round(cells["start"].replace(tzinfo=UTC).timestamp() * 1e9)
            stored[start, cells["subject"]] = {n: cells[n] for n in SERIES if cells.get(n) is not None}
        assert stored == expected
        assert len(stored) == database.execute("SELECT count(*) FROM fingerprint_instance").fetchone()[0]


OBSERVATIONS = st.lists(st.floats(0, 130), max_size=50)
DRAWN = st.lists(st.tuples(OBSERVATIONS, st.floats(0.01, 1)), min_size=1, max_size=5)


def sketch_list(drawn: list[tuple[list[float], float]]) -> tuple[SketchList, list[loglinear.Sketch]]:
    sketches = [loglinear.of_seconds(np.asarray(values), p) for values, p in drawn]
    of = schema({"instance": (["x"], [f"n1/{i}" for i in range(len(drawn))])})
    came = unpack_sketches(pack_sketches(0, "s", "s", range(len(drawn)), sketches), of)
    offsets = np.searchsorted(came.owners, np.arange(len(drawn) + 1))
    listed = SketchList(offsets, came.buckets.copy(), came.counts.copy(), came.probabilities.copy())
    return listed, sketches


@given(DRAWN)
@settings(deadline=None)
def test_summary_of_many_sketches_is_that_of_each(drawn: list[tuple[list[float], float]]) -> None:
    listed, sketches = sketch_list(drawn)
    one_by_one = [[s.count, s.mean_seconds, *s.quantiles_seconds((0.5, 0.95, 0.99))] for s in sketches]
    summary = listed.summary(np.asarray([s.sum_seconds for s in sketches]))
    np.testing.assert_allclose(summary, np.asarray(one_by_one).T, rtol=5.1e-6)


@given(DRAWN)
@settings(deadline=None)
def test_what_was_packed_comes_back(drawn: list[tuple[list[float], float]]) -> None:
    listed, _ = sketch_list(drawn)
    back = unpack(listed.pack())
    for name in ("offsets", "buckets", "counts", "probabilities"):
        np.testing.assert_array_equal(getattr(back, name), getattr(listed, name))


def test_sketches_come_back_whole(tmp_path: Path) -> None:
    sketches = [loglinear.of_seconds(np.asarray(v), 0.5) for v in ([0.1, 0.1, 3.0], [], [1e-9])]
    of = schema({"node": (["x"], ["n1"]), "instance": (["x"], ["n1/1", "n1/2", "n1/3", "n1/4"])})
    column = pack_sketches(1, "request_latency", "s", [3, 0, 2], sketches)
    with collecting(tmp_path) as (_, telemetry, _query):
        publish(telemetry, of, window(1, of, sketches=[column]))
    store = Store(tmp_path / FILE, 64 << 20, read_only=True)
    statement = "SELECT id, request_latency_sketch AS sketch FROM samples_instance JOIN subjects USING (subject)"
    with store.reading() as connection:
        [batch] = arrow_batches(connection, statement, {}, 100)
        found = dict(zip(batch["id"].to_pylist(), range(4), strict=True))
        assert not batch["sketch"][found["n1/2"]].is_valid
        for subject, sketch in zip(["n1/4", "n1/1", "n1/3"], sketches, strict=True):
            back = unpack(batch["sketch"].slice(found[subject], 1))
            dense = np.zeros(loglinear.BUCKETS, dtype=np.int64)
            dense[back.buckets] = back.counts
            assert back.probabilities.tolist() == [0.5]
            np.testing.assert_array_equal(dense, sketch.counts)
    store.close()
