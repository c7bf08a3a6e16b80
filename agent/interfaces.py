"""The network interfaces of this host that are hardware, what passed through them, and what state their links are in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trimtab.agent import procfs

INTERFACES = Path("/sys/class/net")
INTERFACES_MAX = 32
"""Those beyond, by name, are not looked at."""
_BITS_PER_MEGABIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Traffic:
    """A row of /proc/net/dev: since the interface was made."""

    receive_bytes: int
    receive_packets: int
    transmit_bytes: int
    transmit_packets: int
    errors: int
    drops: int


@dataclass(frozen=True, slots=True)
class Link:
    """What the kernel says of a link. None is unknown."""

    up: bool | None
    """Whether there is a carrier; unknown of an interface that is switched off."""
    ups: int | None
    """How often it came up since the interface was made."""
    downs: int | None


def traffic(text: str) -> dict[str, Traffic]:
    """/proc/net/dev, by interface. Garbage raises ValueError."""
    out = {}
    for line in text.splitlines()[2:]:
        name, colon, rest = line.partition(":")
        fields = [procfs.whole(field) for field in rest.split()]
        if not colon or len(fields) < 16:
            raise ValueError(f"/proc/net/dev: {line[:80]!r}")
        out[name.strip()] = Traffic(
            receive_bytes=fields[0],
            receive_packets=fields[1],
            transmit_bytes=fields[8],
            transmit_packets=fields[9],
            errors=fields[2] + fields[10],
            drops=fields[3] + fields[11],
        )
    return out


def hardware(names: frozenset[str]) -> list[str]:
    """Those of these that are hardware; without any (in a container, in some virtual machines) all but loopback. Sorted."""
    physical = {name for name in names if (INTERFACES / name / "device").exists()}
    return sorted(physical or names - {"lo"})[:INTERFACES_MAX]


def link(name: str) -> Link:
    """The state of its link now."""
    carrier = _number(name, "carrier")
    return Link(
        None if carrier is None else carrier == 1,
        _number(name, "carrier_up_count"),
        _number(name, "carrier_down_count"),
    )


def speed_bits_per_second(name: str) -> float | None:
    """What its link was negotiated to; None where the driver does not say, as of most virtual ones. May wait for the driver."""
    megabits = _number(name, "speed")
    return megabits * _BITS_PER_MEGABIT if megabits else None


def _number(name: str, file: str) -> int | None:
    try:
        return procfs.whole(procfs.read(f"{INTERFACES}/{name}/{file}").strip())
    except (OSError, ValueError):  # it is switched off, or the driver does not know: -1
        return None
