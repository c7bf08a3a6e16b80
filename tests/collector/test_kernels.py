"""Each kernel agrees with a plain twin of it in numpy or Python."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.agent.sketch.loglinear import BUCKETS, MIDDLES_SECONDS
from trimtab.collector import kernels
from trimtab.collector.packed import SketchList, unpack

CELLS = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, 2**32 - 1), max_size=12)
SKETCHES = st.lists(st.tuples(CELLS, st.one_of(st.just(1.0), st.floats(0.001, 1))), max_size=6)


def listed(sketches: list[tuple[dict[int, int], float]]) -> SketchList:
    cells = [sorted(sketch.items()) for sketch, _ in sketches]
    return SketchList(
        np.concatenate([[0], np.cumsum([len(c) for c in cells])]).astype(np.int64),
        np.asarray([bucket for c in cells for bucket, _ in c], dtype=np.uint16),
        np.asarray([count for c in cells for _, count in c], dtype=np.uint32),
        np.asarray([probability for _, probability in sketches], dtype=np.float64),
    )


def six_digits(value: float) -> float:
    return float(f"{value:.5e}")


@given(
    st.floats(allow_nan=False, allow_infinity=False, min_value=-1e250, max_value=1e250).filter(
        lambda v: abs(v) > 1e-250
    )
)
def test_rounded(value: float) -> None:
    # Halves may go either way.
    assert kernels.rounded(value) == pytest.approx(value, rel=5.000001e-6)
    assert kernels.rounded(value) == pytest.approx(six_digits(value), rel=1.1e-5)


def test_rounded_leaves_what_has_no_digits() -> None:
    assert [kernels.rounded(v) for v in (0.0, math.inf, -math.inf)] == [0.0, math.inf, -math.inf]
    assert math.isnan(kernels.rounded(math.nan))
    assert kernels.rounded(0.123456789) == 0.123457


@given(SKETCHES, st.randoms(use_true_random=False))
def test_summarise_in_any_order(sketches: list[tuple[dict[int, int], float]], chance: Any) -> None:
    of = listed(sketches)
    order = [chance.choice([-1, *range(len(sketches))]) for _ in range(5)] if sketches else [-1]
    sums = np.asarray([float(sum(sketch.values())) * 0.01 for sketch, _ in sketches])
    found = of.summary(sums, np.asarray(order, dtype=np.int64)).T
    for row, k in zip(found, order, strict=True):
        np.testing.assert_allclose(row, twin(*sketches[k], sums[k]) if k >= 0 else [np.nan] * 5, rtol=1.1e-5)


def twin(sketch: dict[int, int], probability: float, total: float) -> list[float]:
    sampled = sum(sketch.values())
    if not sampled:
        return [0.0, *[math.nan] * 4]
    out = [sampled / probability, total / sampled]
    for q in (0.5, 0.95, 0.99):
        seen = 0
        for bucket, count in sorted(sketch.items()):
            seen += count
            if seen >= max(1, math.ceil(q * sampled * (1 - 1e-12))):
                out.append(float(MIDDLES_SECONDS[bucket]))
                break
    return out


@given(SKETCHES)
def test_pack_is_what_its_page_says_and_unpack_undoes_it(sketches: list[tuple[dict[int, int], float]]) -> None:
    of = listed(sketches)
    packed = of.pack()
    assert packed.to_pylist() == [encoded(*sketch) for sketch in sketches]
    back = unpack(packed)
    for name in ("offsets", "buckets", "counts", "probabilities"):
        np.testing.assert_array_equal(getattr(back, name), getattr(of, name))


def encoded(sketch: dict[int, int], probability: float) -> bytes:
    out = b"\x01" if probability == 1 else b"\x02" + np.float64(probability).tobytes()
    before = -1
    for bucket, count in sorted(sketch.items()):
        out += varint((bucket - before - 1) << 1 | (count > 1)) + (varint(count - 2) if count > 1 else b"")
        before = bucket
    return out


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@given(st.lists(st.binary(max_size=20), max_size=4))
def test_unpack_takes_no_nonsense(blobs: list[bytes]) -> None:
    import pyarrow as pa

    try:
        back = unpack(pa.array(blobs, type=pa.binary()))
    except ValueError:
        return
    # What it takes holds together.
    assert (back.buckets < BUCKETS).all()
    for k in range(len(back)):
        mine = back.buckets[back.offsets[k] : back.offsets[k + 1]].astype(int)
        assert (np.diff(mine) > 0).all()


@given(SKETCHES)
def test_sampled_is_the_sum_of_the_counts(sketches: list[tuple[dict[int, int], float]]) -> None:
    assert listed(sketches).sampled.tolist() == [float(sum(cells.values())) for cells, _ in sketches]


@given(SKETCHES.filter(bool), st.integers(1, 3), st.randoms(use_true_random=False))
def test_merge_adds_counts(sketches: list[tuple[dict[int, int], float]], groups: int, chance: Any) -> None:
    alike = [({b: c % 1000 + 1 for b, c in sketch.items()}, 1.0) for sketch, _ in sketches]
    of = listed(alike)
    into = np.asarray([chance.randrange(groups) for _ in alike], dtype=np.int64)
    merged = of.merge(into, groups)
    for group in range(groups):
        expected: dict[int, int] = {}
        for (sketch, _), g in zip(alike, into.tolist(), strict=True):
            for bucket, count in sketch.items() if g == group else ():
                expected[bucket] = expected.get(bucket, 0) + count
        cells = slice(merged.offsets[group], merged.offsets[group + 1])
        assert dict(zip(merged.buckets[cells].tolist(), merged.counts[cells].tolist(), strict=True)) == expected


VALUES = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=4), st.data())
def test_scatter(shapes: list[tuple[int, int]], data: st.DataObject) -> None:
    columns, rows = 5, sum(subjects for _, subjects in shapes)
    blocks, parts, maps, at, row = [], [], [], 0, 0
    for series, subjects in shapes:
        block = np.asarray(data.draw(st.lists(VALUES, min_size=series * subjects, max_size=series * subjects)))
        parts.append([at, series, subjects, row, len(maps)])
        maps += data.draw(st.permutations(range(columns)))[:series]
        blocks.append(block.reshape(series, subjects))
        at, row = at + block.size, row + subjects
    out, known = np.zeros((columns, rows)), np.zeros((columns, (rows + 7) // 8), dtype=np.uint8)
    bad = np.zeros(len(parts), dtype=np.bool_)
    flat = np.concatenate([block.ravel() for block in blocks])
    kernels.scatter(flat, np.asarray(parts), np.asarray(maps, dtype=np.int64), out, known, bad)
    bits = np.unpackbits(known, axis=1, bitorder="little")[:, :rows].astype(bool)
    for (_, series, subjects, first, to), block, wrong in zip(parts, blocks, bad, strict=True):
        assert wrong == np.isinf(block).any()
        here = maps[to : to + series]
        finite = np.isfinite(block)
        np.testing.assert_array_equal(bits[here, first : first + subjects], finite)
        np.testing.assert_array_equal(out[here, first : first + subjects][finite], block[finite])


@given(st.lists(st.tuples(st.integers(0, 3), CELLS, st.floats(), st.floats()), max_size=4), st.integers(1, 3))
def test_check_sketches(given_: list[tuple[int, dict[int, int], float, float]], subjects: int) -> None:
    cells = [sorted(sketch.items()) for _, sketch, _, _ in given_]
    lengths = np.asarray([len(c) for c in cells], dtype=np.uint32)
    order, offsets = np.full(subjects, -1, dtype=np.int64), np.zeros(len(given_) + 1, dtype=np.int64)
    bad = np.zeros(1, dtype=np.bool_)
    kernels.check_sketches(
        np.asarray([[0, len(given_), 0, int(lengths.sum()), subjects, 0]]),
        np.asarray([subject for subject, *_ in given_], dtype=np.uint32),
        np.asarray([p for *_, p, _ in given_], dtype=np.float64),
        np.asarray([total for *_, total in given_], dtype=np.float64),
        lengths,
        np.asarray([bucket for c in cells for bucket, _ in c], dtype=np.uint16),
        offsets,
        order,
        bad,
    )
    named = [subject for subject, *_ in given_]
    fine = (
        len(set(named)) == len(named)
        and all(subject < subjects for subject in named)
        and all(0 < p <= 1 and 0 <= total < math.inf for *_, p, total in given_)
    )
    assert bad[0] != fine
    if fine:
        np.testing.assert_array_equal(offsets, np.concatenate([[0], np.cumsum(lengths)]))
        assert [order[subject] for subject in named] == list(range(len(named)))
