"""One GPU: what is read of it in every window, what seldom, and what it said last."""

from __future__ import annotations

from trimtab.agent.counters import Rise
from trimtab.agent.nvml import fabric, nvlink, throttle
from trimtab.agent.nvml.fast import FAST, FAST_FIELDS, GROWING
from trimtab.agent.nvml.library import Device, Lost, found_again
from trimtab.agent.nvml.query import Values, ask
from trimtab.agent.nvml.slow import SLOW, SLOW_FIELDS, SLOW_SECONDS


class Card:
    """Asks one GPU. What is read seldom is carried in every window until it is read again, and dropped when the GPU is lost."""

    def __init__(self, device: Device, slow_at: float) -> None:
        """`slow_at` is when the second slow reading is due; the first is with the first window."""
        self.device = device
        self._slow: Values = {}
        self._slow_at, self._next_slow_at = -1.0, slow_at
        self._rise: Rise[str] = Rise()
        self._link_rise: Rise[nvlink.Counter] = Rise()
        self._links_up_most = 0
        self._link_ends = nvlink.Ends()
        self._onsets = throttle.Onsets()
        self._answered = False

    def read(self, now: float, seconds: float) -> tuple[Values, list[str]]:
        """Its signals, and the throttling that began. `seconds` have passed since the last reading. Raises Lost."""
        if self.device.handle is None:
            self._find(now)
        try:
            values = ask(self.device, FAST, FAST_FIELDS)
            if self._answered and not values:  # some drivers have only an unknown error for a GPU that is gone
                raise Lost("it answers nothing any more")
            self._answered = bool(values)
            throttled = throttle.read(self.device)
            if self._slow_at < 0 or now >= self._next_slow_at:
                self._read_slowly(now)
        except Lost:
            self._slow.clear()
            # What they grew by meanwhile is of more than one window.
            self._rise, self._link_rise = Rise(), Rise()
            raise
        counters = {name: values.pop(name) for name in GROWING & values.keys()}
        values |= {name: rose / seconds for name, rose in self._rise.since(counters).items()}
        return self._slow | values | (throttled or {}), self._onsets.since(throttled)

    @property
    def labels(self) -> dict[str, str]:
        """What it is joined to, as far as it has said so."""
        return self._link_ends.labels

    def _find(self, now: float) -> None:
        if now >= self._next_slow_at:
            self._next_slow_at = now + SLOW_SECONDS
            self.device = found_again(self.device)
        if self.device.handle is None:
            raise Lost

    def _read_slowly(self, now: float) -> None:
        elapsed, self._slow_at = now - self._slow_at, now
        while self._next_slow_at <= now:
            self._next_slow_at += SLOW_SECONDS
        self._slow = ask(self.device, SLOW, SLOW_FIELDS) | fabric.read(self.device)
        links = nvlink.read(self.device)
        if links is None:
            return
        self._link_ends.look(self.device, links.up)
        self._links_up_most = max(self._links_up_most, len(links.up))
        self._slow |= {"nvlink_links": links.total, "nvlink_links_up": len(links.up)}
        self._slow["nvlink_links_up_most"] = self._links_up_most
        for (signal, _, _), rose in self._link_rise.since(links.errors).items():
            self._slow[signal] = self._slow.get(signal, 0.0) + rose / elapsed
