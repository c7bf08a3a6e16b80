"""What is to come, earliest first: a binary heap over `fleet.events`, whose size is in `now[0].heap`."""

from __future__ import annotations

from typing import Any

from numba import njit


@njit(forceinline=True, error_model="numpy")
def push(events: Any, now: Any, time: float, who: int) -> None:
    """There must be room: one event a worker, one an instance."""
    k = now[0].heap
    now[0].heap = k + 1
    while k > 0:
        parent = (k - 1) >> 1
        if events[parent].time <= time:
            break
        events[k].time, events[k].who = events[parent].time, events[parent].who
        k = parent
    events[k].time, events[k].who = time, who


@njit(forceinline=True, error_model="numpy")
def drop_first(events: Any, now: Any) -> None:
    """Forget the earliest event; there must be one."""
    size = now[0].heap - 1
    now[0].heap = size
    time, who = events[size].time, events[size].who
    k = 0
    while True:
        child = 2 * k + 1
        if child >= size:
            break
        if child + 1 < size and events[child + 1].time < events[child].time:
            child += 1
        if time <= events[child].time:
            break
        events[k].time, events[k].who = events[child].time, events[child].who
        k = child
    events[k].time, events[k].who = time, who
