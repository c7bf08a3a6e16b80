"""NVLink: which links of a GPU are up, what they lead to, and their errors.

NVLink 2 to 4 count errors of all links together, or of each; NVLink 5 counts in another way, and is left unknown but for its links.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from trimtab.agent.nvml.library import Device, call, constant, fields, nvlink_end
from trimtab.agent.registry import Signal

LINKS_MAX = 36
ENDS_MAX = 20
"""Told in one label."""
Counter = tuple[str, int, int]
"""The signal that its growth is part of, the field and the link."""
SIGNALS = (
    Signal("nvlink_links", "1", "NVLinks that it has, with or without a peer", "gpu"),
    Signal("nvlink_links_up", "1", "NVLinks that are up", "gpu"),
    Signal("nvlink_crc_errors_per_second", "1/s", "NVLink packets that arrived damaged", "gpu", rate=True),
    Signal("nvlink_replays_per_second", "1/s", "NVLink packets sent again", "gpu", rate=True),
    Signal("nvlink_recoveries_per_second", "1/s", "NVLinks that were trained anew after errors", "gpu", rate=True),
)
_COUNT = (constant("NVML_FI_DEV_NVLINK_LINK_COUNT"), 0)
_ALL = {
    "nvlink_crc_errors_per_second": ("CRC_FLIT_ERROR_COUNT_TOTAL", "CRC_DATA_ERROR_COUNT_TOTAL"),
    "nvlink_replays_per_second": ("REPLAY_ERROR_COUNT_TOTAL",),
    "nvlink_recoveries_per_second": ("RECOVERY_ERROR_COUNT_TOTAL",),
}
_EACH = {
    "nvlink_crc_errors_per_second": ("ERROR_DL_CRC",),
    "nvlink_replays_per_second": ("ERROR_DL_REPLAY",),
    "nvlink_recoveries_per_second": ("ERROR_DL_RECOVERY",),
}


@dataclass(frozen=True, slots=True)
class Links:
    """The links of one GPU."""

    up: frozenset[int]
    total: int
    errors: dict[Counter, float] = field(default_factory=dict)
    """Each that is known. By itself: a sum would jump when a link comes back."""


def read(device: Device) -> Links | None:
    """None where it cannot say. Raises Lost."""
    count = fields(device, (_COUNT,)).get(_COUNT)
    up: set[int] = set()
    total = 0
    for link in range(LINKS_MAX if count is None else min(int(count), LINKS_MAX)):
        state = call("nvmlDeviceGetNvLinkState", device.handle, link)
        if state is None:
            if count is None:
                break
            continue
        total += 1
        if state:
            up.add(link)
    if count is None and total == 0:
        return None
    total = total if count is None else int(count)
    return Links(frozenset(up), total, _errors(device, up) if total else {})


class Ends:
    """What the links of one GPU lead to. Asked of each link until it is known: that does not change while the host runs."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[str, str]] = {}

    def look(self, device: Device, up: frozenset[int]) -> None:
        """One that is down may not know. Raises Lost."""
        for link in up - self._known.keys():
            if end := nvlink_end(device, link):
                self._known[link] = end

    @property
    def labels(self) -> dict[str, str]:
        """`nvlink_gpus` and `nvlink_switches`: their PCI addresses; without what is not known."""
        found: dict[str, set[str]] = {}
        for label, address in self._known.values():
            found.setdefault(label, set()).add(address)
        return {label: ",".join(sorted(addresses)[:ENDS_MAX]) for label, addresses in found.items()}


def _errors(device: Device, up: set[int]) -> dict[Counter, float]:
    for names, links in ((_ALL, [0]), (_EACH, sorted(up))):
        signals = {constant(f"NVML_FI_DEV_NVLINK_{name}"): signal for signal, of in names.items() for name in of}
        found = fields(device, [(number, link) for number in signals for link in links]) if links else {}
        if found:
            return {(signals[number], number, link): value for (number, link), value in found.items()}
    return {}
