"""Rollups against a plain twin, and the laws they keep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collector.fill import SERIES, START_US, floats, opened, put, rows, sketches
from trimtab.agent.sketch import loglinear
from trimtab.collector import kernels_rollup
from trimtab.collector.packed import unpack
from trimtab.collector.rollup import HOURS, MINUTES, Level, columns_of, fold, roll
from trimtab.collector.series import Series
from trimtab.collector.store import Connection, transaction

ALL = [Series(*one) for one in SERIES]  # type: ignore[arg-type]
SECOND_US = 1_000_000


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    store = opened(tmp_path_factory.mktemp("rollup"))
    found = store.cursor()
    for level in (MINUTES, HOURS):
        for one in ALL:
            for column, type_ in columns_of(one).items():
                found.execute(f'ALTER TABLE samples_instance{level.target} ADD COLUMN IF NOT EXISTS "{column}" {type_}')
    yield found
    store.close()


def emptied(connection: Connection) -> Connection:
    for suffix in ("_0", "_1", "_1m", "_1h"):
        connection.execute(f"DELETE FROM samples_instance{suffix}")
    return connection


def rolling(connection: Connection, level: Level, start_us: int = START_US, how: Any = roll) -> None:
    with transaction(connection):
        how(connection, level, "instance", ALL, start_us)


def hour(connection: Connection) -> None:
    for minute in minutes(connection):
        rolling(connection, MINUTES, minute)
    rolling(connection, HOURS)


def minutes(connection: Connection) -> list[int]:
    query = "SELECT DISTINCT epoch_us(time_bucket(INTERVAL 1 MINUTE, start)) FROM samples_instance"
    return sorted(minute for (minute,) in connection.execute(query).fetchall())


VALUES = st.one_of(st.none(), st.floats(-1e300, 1e300, allow_nan=False))
ROWS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.integers(0, 3599),
        VALUES,
        VALUES,
        st.one_of(st.none(), st.lists(st.floats(1e-9, 100), max_size=4)),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: row[:2],
)


def put_rows(connection: Connection, found: list[Any], probability: float = 1.0) -> None:
    subjects, seconds, first, second, observed = zip(*found, strict=True)
    starts = [START_US + s * SECOND_US for s in seconds]
    columns = {"requests_per_second": floats(first), "queue_depth": floats(second), **sketches(observed, probability)}
    put(connection, subjects, starts, **columns)


def twin(found: list[Any], period_seconds: int) -> list[dict[str, Any]]:
    """What a rollup is, in plain words."""
    groups: dict[tuple[int, int], list[Any]] = {}
    for row in sorted(found, key=lambda row: row[:2]):
        groups.setdefault((row[0], row[1] // period_seconds), []).append(row)
    out = []
    for (subject, period), some in sorted(groups.items()):
        one: dict[str, Any] = {"subject": subject, "period": period, "windows": len(some)}
        for at, name in ((2, "requests_per_second"), (3, "queue_depth")):
            known = [row[at] for row in some if row[at] is not None]
            parts = [None] * 4
            if known:
                parts = [min(known), sum(value / len(known) for value in known), max(known), known[-1]]
            names = [f"{name}_{part}" for part in ("min", "mean", "max", "last")]
            one.update({f"{name}_known": len(known), **dict(zip(names, parts, strict=True))})
        observed = [row[4] for row in some if row[4] is not None]
        one["values"] = [value for values in observed for value in values] if observed else None
        out.append(one)
    return out


def check(connection: Connection, table: str, found: list[Any], period_seconds: int) -> None:
    wanted = twin(found, period_seconds)
    stored = rows(connection, table)
    assert len(stored) == len(wanted)
    packed = connection.execute(
        f"SELECT request_latency_sketch AS s FROM {table} ORDER BY subject, start"
    ).to_arrow_table()
    for one, want, blob in zip(stored, wanted, packed["s"].to_pylist(), strict=True):
        scale = max([abs(v) for row in found for v in row[2:4] if v is not None], default=1.0)
        for name in want.keys() - {"values", "period"}:
            if name.endswith("_mean"):
                assert one[name] == (
                    want[name] if want[name] is None else pytest.approx(want[name], rel=1e-9, abs=scale * 1e-12)
                )
            else:
                assert one[name] == want[name], name
        if want["values"] is None:
            assert blob is None
            assert one["request_latency_count"] is None
            continue
        sketch = loglinear.of_seconds(np.asarray(want["values"], dtype=np.float64))
        [merged] = [
            unpack(packed["s"].combine_chunks().filter(np.asarray([b == blob for b in packed["s"].to_pylist()]))[:1])
        ]
        assert merged.buckets.tolist() == np.flatnonzero(sketch.counts).tolist()
        assert merged.counts.tolist() == sketch.counts[np.flatnonzero(sketch.counts)].tolist()
        assert one["request_latency_count"] == len(want["values"])
        if want["values"]:
            assert one["request_latency_mean"] == pytest.approx(np.mean(want["values"]), rel=1e-5)
            quantiles = sketch.quantiles_seconds((0.5, 0.95, 0.99))
            assert [one[f"request_latency_p{q}"] for q in (50, 95, 99)] == pytest.approx(quantiles, rel=1e-5)
        else:
            assert one["request_latency_mean"] is one["request_latency_p99"] is None


@settings(max_examples=25, deadline=None)
@given(found=ROWS, data=st.data())
def test_an_hour_of_minutes_is_an_hour_of_windows_in_any_order(
    connection: Connection, found: list[Any], data: st.DataObject
) -> None:
    emptied(connection)
    put_rows(connection, found)
    hour(connection)
    check(connection, "samples_instance_1m", found, 60)
    check(connection, "samples_instance_1h", found, 3600)
    before = rows(connection, "samples_instance_1m"), rows(connection, "samples_instance_1h")
    emptied(connection)
    put_rows(connection, data.draw(st.permutations(found)))
    hour(connection)
    assert (rows(connection, "samples_instance_1m"), rows(connection, "samples_instance_1h")) == before


@settings(max_examples=25, deadline=None)
@given(found=ROWS, cut=st.integers(0, 30))
def test_rolled_up_again_is_rolled_up_at_once(connection: Connection, found: list[Any], cut: int) -> None:
    emptied(connection)
    put_rows(connection, found)
    hour(connection)
    at_once = rows(connection, "samples_instance_1m"), rows(connection, "samples_instance_1h")
    emptied(connection)
    for part in (found[:cut], found[cut:]):
        if part:
            put_rows(connection, part)
            hour(connection)
            hour(connection)
    assert (rows(connection, "samples_instance_1m"), rows(connection, "samples_instance_1h")) == at_once


@settings(max_examples=25, deadline=None)
@given(found=ROWS, cut=st.integers(0, 30))
def test_what_came_after_its_minute_was_deleted_is_folded_in(
    connection: Connection, found: list[Any], cut: int
) -> None:
    found = sorted(found, key=lambda row: row[1])
    emptied(connection)
    for part in (found[:cut], found[cut:]):
        if part:
            put_rows(connection, part)
        for minute in minutes(connection):
            rolling(connection, MINUTES, minute, fold)
        assert not rows(connection, "samples_instance")
    check(connection, "samples_instance_1m", found, 60)
    rolling(connection, HOURS, how=fold)
    assert not rows(connection, "samples_instance_1m")
    check(connection, "samples_instance_1h", found, 3600)


def test_counts_of_sampled_observations_are_weighted(connection: Connection) -> None:
    emptied(connection)
    put_rows(connection, [(1, 0, None, None, [0.1] * 3)], probability=0.5)
    put_rows(connection, [(1, 1, None, None, [0.2] * 4)], probability=0.25)
    rolling(connection, MINUTES)
    [one] = rows(connection, "samples_instance_1m")
    assert one["request_latency_count"] == 6 + 16
    assert one["request_latency_mean"] == pytest.approx((6 * 0.1 + 16 * 0.2) / 22, rel=1e-5)
    assert one["request_latency_p50"] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("subjects", [1, 511, 512, 513, 1030])
def test_slices_of_subjects(connection: Connection, subjects: int) -> None:
    emptied(connection)
    put_rows(connection, [(subject, 0, float(subject), None, [0.1]) for subject in range(1, subjects + 1)])
    rolling(connection, MINUTES)
    found = rows(connection, "samples_instance_1m")
    assert [one["requests_per_second_last"] for one in found] == list(range(1, subjects + 1))


def test_the_kernel_and_its_twin() -> None:
    random = np.random.default_rng(7)
    known = random.integers(0, 3, (5, 40))
    parts = [np.where(known > 0, random.normal(size=known.shape), np.nan) for _ in range(4)]
    order = random.permutation(40)
    bounds = np.asarray([0, 1, 1, 17, 40])
    out_known, out = np.empty((5, 4), dtype=np.int64), np.empty((4, 5, 4))
    low, mean, high, last = np.minimum(parts[0], parts[2]), parts[1], np.maximum(parts[0], parts[2]), parts[3]
    mean = np.clip(mean, low, high)
    kernels_rollup.gather(known, low, mean, high, last, order, bounds, out_known, out)
    for c in range(5):
        for g in range(4):
            some = [row for row in order[bounds[g] : bounds[g + 1]] if known[c, row]]
            assert out_known[c, g] == sum(known[c, row] for row in some)
            if not some:
                assert np.isnan(out[:, c, g]).all()
                continue
            weights = [known[c, row] for row in some]
            assert out[0, c, g] == min(low[c, row] for row in some)
            assert out[1, c, g] == pytest.approx(np.average(mean[c, some], weights=weights), rel=1e-9)
            assert out[2, c, g] == max(high[c, row] for row in some)
            assert out[3, c, g] == last[c, some[-1]]


def test_no_windows_are_no_rows(connection: Connection) -> None:
    emptied(connection)
    rolling(connection, MINUTES)
    rolling(connection, MINUTES, how=fold)
    assert not rows(connection, "samples_instance_1m")
