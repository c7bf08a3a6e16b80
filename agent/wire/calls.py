"""Whom an instance calls, as labels: remote addresses, in as many labels as it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trimtab.agent.wire.columns import TEXT_MAX

CALLEES_MAX = 64
"""Remote addresses of one instance that are told."""
_NAME = "calls"


def pack(addresses: Iterable[str]) -> dict[str, str]:
    """The labels "calls", "calls_2" …: each "host:port" with a comma behind it, but for the last.

    So a label that ends with a comma goes on in the next, and one that is left from a longer list is known to be.
    """
    parts = [""]
    for address in list(addresses)[:CALLEES_MAX]:
        if len(parts[-1]) + len(address) + 1 > TEXT_MAX:
            parts.append("")
        parts[-1] += f"{address},"
    parts[-1] = parts[-1].removesuffix(",")
    return {_name(number): part for number, part in enumerate(parts, 1)}


def unpack(labels: Mapping[str, str]) -> list[str]:
    """The addresses that `pack` was given; whatever is there where the labels are not of its making."""
    found: list[str] = []
    for number in range(1, CALLEES_MAX + 1):
        part = labels.get(_name(number), "")
        found += [address for address in part.split(",") if address]
        if not part.endswith(","):
            break
    return found[:CALLEES_MAX]


def _name(number: int) -> str:
    return _NAME if number == 1 else f"{_NAME}_{number}"
