"""ADWIN is what River does and what the paper says, stream by stream."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.detector.record_river import DELTA, EVERY, RECORDED
from trimtab.detector.adwin import Adwin


class Plain:
    """ADWIN2 by the paper, one stream, value by value: buckets are (values, sum, squared deviations), the oldest first."""

    def __init__(self, delta: float) -> None:
        self.delta, self.steps, self.seen, self.cut, self.anew = delta, 0, 0, -1, False
        self.buckets: list[tuple[int, float, float]] = []

    @property
    def window(self) -> tuple[int, float, float]:
        return merged(self.buckets)

    def told(self) -> tuple[float, float, float]:
        width, total, spread = self.window
        return width, total / width if width else 0.0, spread

    def update(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.anew:
            self.steps, self.buckets, self.anew = 0, [], False
        self.steps, self.seen = self.steps + 1, self.seen + 1
        self.buckets.append((1, value, 0.0))
        self._compress()
        if self.steps % 32 or self.window[0] <= 10:
            return False
        while self._differs():
            self.buckets.pop(0)
            self.anew = True
        if self.anew:
            self.cut = self.seen - self.window[0]
        return self.anew

    def _compress(self) -> None:
        size = 1
        while [b[0] for b in self.buckets].count(size) > 5:
            at = [b[0] for b in self.buckets].index(size)
            self.buckets[at : at + 2] = [merged(self.buckets[at : at + 2])]
            size *= 2

    def _differs(self) -> bool:
        width, _, spread = self.window
        doubt = math.log(2 * math.log(width) / self.delta)
        for k in range(1, len(self.buckets)):
            (old, old_sum, _), (new, new_sum, _) = merged(self.buckets[:k]), merged(self.buckets[k:])
            if old < 5 or new < 5:
                continue
            parts = 1 / (old - 5 + 1) + 1 / (new - 5 + 1)
            limit = math.sqrt(2 * parts * spread / width * doubt) + 2 / 3 * doubt * parts
            if abs(old_sum / old - new_sum / new) > limit:
                return True
        return False


def merged(buckets: list[tuple[int, float, float]]) -> tuple[int, float, float]:
    width, total = sum(b[0] for b in buckets), math.fsum(b[1] for b in buckets)
    mean = total / width if width else 0.0
    return width, total, math.fsum(b[2] + b[0] * (b[1] / b[0] - mean) ** 2 for b in buckets)


def jumping(
    chance: np.random.Generator, steps: int, streams: int, gaps: float = 0.0, size: float = 0.3
) -> NDArray[np.float32]:
    """Normal noise about means that jump now and then, with gaps."""
    means = np.cumsum(
        size * chance.standard_normal((steps, streams)) * (chance.random((steps, streams)) < 0.005), axis=0
    )
    values = means + 0.1 * chance.standard_normal((steps, streams))
    return np.where(chance.random(values.shape) < gaps, np.nan, values).astype(np.float32)


def told(adwin: Adwin) -> NDArray[np.float64]:
    """float64 [3, streams]: width, mean, and squared deviations."""
    empty = adwin.width == 0
    return np.stack([adwin.width, np.where(empty, 0, adwin.mean), np.where(empty, 0, adwin.variance * adwin.width)])


def test_it_is_rivers() -> None:
    with np.load(RECORDED) as recorded:
        values, drifts, windows = recorded["values"], recorded["drifts"], recorded["windows"]
    adwin = Adwin(values.shape[1], DELTA)
    assert drifts.sum() >= 8
    for step, row in enumerate(values):
        assert adwin.update(row).tolist() == drifts[step].tolist(), step
        if step % EVERY == 0:
            np.testing.assert_allclose(told(adwin), windows[step // EVERY], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [0.05, 0.1, 0.3])
def test_it_is_the_papers(size: float) -> None:
    values = jumping(np.random.default_rng(0), 700, 60, gaps=0.1, size=size)
    # Of these the limit is hardly more than its first term.
    values[:, ::2] *= 100
    adwin, plain = Adwin(60, 0.01), [Plain(0.01) for _ in range(60)]
    found = 0
    for step, row in enumerate(values):
        changed = [one.update(value) for one, value in zip(plain, row.tolist(), strict=True)]
        assert adwin.update(row).tolist() == changed, step
        found += sum(changed)
        if any(changed) or step % 50 == 0:
            np.testing.assert_allclose(told(adwin), np.transpose([one.told() for one in plain]), rtol=1e-9, atol=1e-9)
            assert adwin.cut.tolist() == [one.cut for one in plain]
    assert found > 10


def test_the_cut_is_where_the_mean_jumped() -> None:
    chance = np.random.default_rng(0)
    values = (0.1 * chance.standard_normal((640, 100)) + (np.arange(640) >= 480)[:, None]).astype(np.float32)
    adwin = Adwin(100, DELTA)
    changed = np.stack([adwin.update(row) for row in values])
    assert (changed.sum(axis=0) == 1).all()
    assert (changed.argmax(axis=0) == 511).all()
    # Whole buckets are dropped: of what was there before it keeps less than one, which here is 32 values.
    assert ((adwin.cut > 480 - 32) & (adwin.cut <= 480)).all()


def test_nothing_is_found_where_nothing_changes() -> None:
    chance = np.random.default_rng(0)
    adwin = Adwin(200, DELTA)
    found = sum(int(adwin.update(chance.random(200, dtype=np.float32)).sum()) for _ in range(2000))
    assert found <= 2
    assert np.median(adwin.width) == 2000


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.9), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_what_is_unknown_is_skipped(seed: int, gaps: float, unknown: float) -> None:
    chance = np.random.default_rng(seed)
    values = jumping(chance, 300, 1)
    with_gaps, without = Adwin(1, 0.05), Adwin(1, 0.05)
    for row in values:
        while chance.random() < gaps:
            assert not with_gaps.update(np.full(1, unknown, dtype=np.float32)).any()
        assert with_gaps.update(row).tolist() == without.update(row).tolist()
    np.testing.assert_array_equal(told(without), told(with_gaps))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([0.0, 0.02, 0.5]))
def test_streams_know_nothing_of_each_other(seed: int, streams: int, gaps: float) -> None:
    chance = np.random.default_rng(seed)
    values, order = jumping(chance, 300, streams, gaps), chance.permutation(streams)
    every, mixed, alone = Adwin(streams, 0.05), Adwin(streams, 0.05), Adwin(1, 0.05)
    for row in values:
        changed = every.update(row)
        assert changed[order].tolist() == mixed.update(row[order]).tolist()
        assert changed[:1].tolist() == alone.update(row[:1]).tolist()
    np.testing.assert_array_equal(told(every)[:, order], told(mixed))
    np.testing.assert_array_equal(told(every)[:, :1], told(alone))


def test_memory_grows_with_the_logarithm() -> None:
    adwin, sizes = Adwin(8, DELTA), []
    row = np.full(8, 0.5, dtype=np.float32)
    for _ in range(3):
        for _ in range(20_000):
            adwin.update(row)
        sizes.append(sum(array.nbytes for array in adwin.save().values()) / 8)
    assert adwin.width.tolist() == [60_000] * 8
    # Of a level: five sums and five squared deviations.
    levels = math.ceil(math.log2(2 * 60_000 / 5)) + 1
    assert sizes[-1] <= 80 * levels + 200
    assert sizes[-1] - sizes[0] <= 80 * 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 200), st.integers(1, 40))
def test_it_goes_on_where_it_was_saved(seed: int, when: int, streams: int) -> None:
    values = jumping(np.random.default_rng(seed), 300, streams, 0.05)
    first, second = Adwin(streams, 0.05), Adwin(3, 0.05)
    for row in values[:when]:
        first.update(row)
    second.restore(first.save())
    for row in values[when:]:
        assert first.update(row).tolist() == second.update(row).tolist()
    np.testing.assert_array_equal(told(first), told(second))
    assert first.cut.tolist() == second.cut.tolist()


def test_rows_are_added_and_forgotten() -> None:
    values = jumping(np.random.default_rng(3), 400, 50)
    adwin, fresh = Adwin(20, 0.05), Adwin(30, 0.05)
    for row in values[:100]:
        adwin.update(row[:20])
    adwin.resize(50)
    adwin.forget(np.asarray([4, 5]))
    for row in values[100:]:
        adwin.update(row)
        fresh.update(np.concatenate([row[4:6], row[22:]]))
    again = told(adwin)[:, [4, 5, *range(22, 50)]]
    np.testing.assert_array_equal(again, told(fresh))
    with pytest.raises(ValueError, match="50 are known"):
        adwin.resize(49)


def test_what_does_not_fit_is_refused() -> None:
    adwin = Adwin(3, DELTA)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        adwin.update(np.zeros(4, dtype=np.float32))
    good = dict(adwin.save())
    for bad in (
        {"at": np.full(3, 40, dtype=np.uint8)},
        {"widths": np.full(3, 31)},
        {"widths": np.full(3, 64)},
        {"widths": np.full(3, -32)},
        {"buckets": np.zeros((3, 2, 2, 4))},
    ):
        with pytest.raises(ValueError, match="state: "):
            adwin.restore(good | bad)
    with pytest.raises(ValueError, match="seen missing"):
        adwin.restore({name: array for name, array in good.items() if name != "seen"})
