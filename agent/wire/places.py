"""Where a node stands: what it shares with others, and what may fail for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping

from trimtab.agent.wire.columns import Malformed

PLACES = ("rack", "switch")
"""Labels of a node that name it."""
NAME_MAX = 64


def places(labels: Mapping[str, str]) -> tuple[str, ...]:
    """ "rack NAME", "switch NAME": the subjects that incidents are about. A name that `check_places` refuses is none."""
    return tuple(f"{place} {labels[place]}" for place in PLACES if labels.get(place) and _is_name(labels[place]))


def check_places(field: str, labels: Mapping[str, str]) -> None:
    """Raises Malformed."""
    for place in PLACES:
        if not _is_name(labels.get(place, "")):
            raise Malformed(f"{field}.{place}: not at most {NAME_MAX} printable characters")


def _is_name(text: str) -> bool:
    return len(text) <= NAME_MAX and text.isprintable()
