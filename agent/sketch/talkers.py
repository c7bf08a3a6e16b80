"""Who talks most, and how many there are: heavy hitters and a distinct count in bounded memory, by Apache DataSketches.

Frequent items (Misra and Gries, 1982; Anderson et al., 2017): with a map of 2^m remotes, the weight of every remote is known
within 3.5 / 2^m of all weight together, and exactly while no more than three quarters of the map are filled. HyperLogLog (Flajolet
et al., 2007) with 2^b registers: the number of distinct remotes, with a standard error of 1.04 / 2^(b/2). Both merge in any order, and
the bounds of a merge are those of its parts added up. This is the one file that imports the library.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasketches import (  # type: ignore[import-untyped]
    frequent_items_error_type,
    frequent_strings_sketch,
    hll_sketch,
    hll_union,
    tgt_hll_type,
)

from trimtab.agent.wire.talkers import HLL_LOG2, MAP_LOG2, Talkers

MERGED_LOG2 = 12
"""Of the map of a merge: it has room for sixteen intervals of strangers before it adds an error of its own."""
_DEVIATIONS = 3


@dataclass(frozen=True, slots=True)
class Bounded:
    """An estimate, and what it is at the least and at the most."""

    value: float
    low: float
    high: float


class Tally:
    """The remotes of one interval, or of many that are merged."""

    def __init__(self, map_log2: int = MAP_LOG2) -> None:
        self._frequent = frequent_strings_sketch(map_log2)
        self._hll = hll_sketch(HLL_LOG2, tgt_hll_type.HLL_8)
        self._union: hll_union | None = None

    @property
    def total(self) -> int:
        """All weight together, exact."""
        return int(self._frequent.total_weight)

    @property
    def is_empty(self) -> bool:
        """Whether it names no remote: with more of equal weight than it has room for, it may have let go of every one."""
        return bool(self._frequent.is_empty())

    def add(self, remote: str, weight: int) -> None:
        """Count a remote, by its address as text; `weight` > 0. Not after a merge."""
        self._frequent.update(remote, weight)
        self._hll.update(remote)

    def pack(self, seconds: float) -> Talkers:
        """As it travels and is stored."""
        return Talkers(self._frequent.serialize(), self._hll.serialize_compact(), seconds)

    def merge(self, frequent_items: bytes, hll: bytes) -> None:
        """Take in what `check_talkers` has let through. Raises ValueError where the library does not take it."""
        try:
            frequent = frequent_strings_sketch.deserialize(frequent_items)
            distinct = hll_sketch.deserialize(hll)
            if self._union is None:
                self._union = hll_union(HLL_LOG2)
                self._union.update(self._hll)
            self._union.update(distinct)
            self._frequent.merge(frequent)
        except (RuntimeError, ValueError, IndexError, MemoryError) as error:
            raise ValueError(f"a sketch of talkers is broken: {error}") from error

    def distinct(self) -> Bounded:
        """How many remotes there are, within three standard errors."""
        counted = self._union or self._hll
        low, high = counted.get_lower_bound(_DEVIATIONS), counted.get_upper_bound(_DEVIATIONS)
        return Bounded(counted.get_estimate(), low, high)

    def top(self, most: int) -> list[tuple[str, Bounded]]:
        """The remotes of the greatest weight, the greatest first. All that have more than the bounds are wide are there."""
        found = self._frequent.get_frequent_items(frequent_items_error_type.NO_FALSE_NEGATIVES, 0)
        found.sort(key=lambda item: (-item[1], item[0]))
        return [(remote, Bounded(value, low, high)) for remote, value, low, high in found[:most]]

    def of(self, remote: str) -> Bounded:
        """The weight of one remote."""
        sketch = self._frequent
        bounds = sketch.get_estimate(remote), sketch.get_lower_bound(remote), sketch.get_upper_bound(remote)
        return Bounded(*map(float, bounds))
