"""The faults of a GPU that show in what it says of itself, and when each is truly over. XID errors are in `xid_faults`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trimtab.agent.nvml.latch import Latch
from trimtab.agent.nvml.query import Values
from trimtab.agent.registry import Signal

FLAP_SECONDS = 60.0
"""How long a link must be up, or a GPU must answer, before it is believed."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind. Its condition is None where it is not known."""

    signal: str
    help: str
    condition: Callable[[Values], bool | None]
    what: str
    """What is wrong and what to do, for people."""
    hold_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A fault that came or went."""

    fault: Fault
    raised: bool


def _above_zero(*names: str) -> Callable[[Values], bool | None]:
    def condition(values: Values) -> bool | None:
        known = [values[name] for name in names if name in values]
        return any(known) if known else None

    return condition


def _links_down(values: Values) -> bool | None:
    if "nvlink_links_up" not in values:
        return None
    return values["nvlink_links_up"] < values["nvlink_links_up_most"]


FAULTS = (
    Fault(
        "fault_lost",
        "1: it fell off the bus or waits for a reset, or has answered for less than a minute since",
        _above_zero("lost"),
        "it does not answer; drain the host and restart it",
        FLAP_SECONDS,
    ),
    Fault(
        "fault_ecc",
        "1: memory errors that could not be corrected, since the driver was loaded or the GPU reset",
        _above_zero("ecc_uncorrected_total"),
        "memory errors that could not be corrected; restart what runs on it, reset it, replace it if they come back",
    ),
    Fault(
        "fault_row_remap",
        "1: a bad memory row waits for a reset, or could not be replaced",
        _above_zero("row_remap_pending", "row_remap_failure"),
        "a bad memory row; drain and reset the GPU, and replace it where row_remap_failure is 1",
    ),
    Fault(
        "fault_retired_pages",
        "1: a bad memory page waits for a reset to be retired",
        _above_zero("retired_pages_pending"),
        "a bad memory page; drain and reset the GPU",
    ),
    Fault(
        "fault_nvlink",
        "1: fewer NVLinks are up, or were within the last minute, than at best since the agent started",
        _links_down,
        "an NVLink is down; look at its cable or bridge, and reset the GPU",
        FLAP_SECONDS,
    ),
)
SIGNALS = tuple(Signal(fault.signal, "1", fault.help, "gpu") for fault in FAULTS)


class Faults:
    """Those of one GPU."""

    def __init__(self) -> None:
        self._latches = [(fault, Latch(fault.hold_seconds)) for fault in FAULTS]

    def step(self, now: float, values: Values) -> list[Change]:
        """What changed, given the signals that are known now, "lost", and "nvlink_links_up_most"."""
        changes = ((fault, latch.step(now, fault.condition(values))) for fault, latch in self._latches)
        return [Change(fault, change) for fault, change in changes if change is not None]

    @property
    def values(self) -> Values:
        """The signals; a fault of which nothing is known yet is left out."""
        return {fault.signal: float(latch.raised) for fault, latch in self._latches if latch.raised is not None}
