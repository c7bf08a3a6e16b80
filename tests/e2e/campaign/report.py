"""The table of a campaign, for people and for programs."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from tests.e2e.campaign.record import Clients, Record
from tests.e2e.campaign.score import Score, Share, score

ALL = "all"
TITLE = "before the fault → under it; delay: median–worst; shares: how many of how many (Wilson's 95 % interval, %)"
HEAD = (
    "fault",
    "runs",
    "clients' p99, ms",
    "errors, %",
    "delay, s",
    "recall",
    "precision",
    "instance",
    "mechanism",
    "quiet",
)


def rows(records: Sequence[Record], names: Sequence[str]) -> list[tuple[str, ...]]:
    """A row a class of which a run was made, in the order of `names`, and one of all."""
    of = {name: [r for r in records if r.fault == name and not r.cannot] for name in names}
    table = [_row(name, runs) for name, runs in of.items() if runs]
    return [*table, (ALL, *_row(ALL, [r for runs in of.values() for r in runs])[1:2], "", "", *_of_score(records))]


def table(records: Sequence[Record], names: Sequence[str]) -> Table:
    """For a terminal."""
    made = Table(title=TITLE, title_justify="left")
    for head in HEAD:
        made.add_column(head, justify="left" if head == HEAD[0] else "right")
    for row in rows(records, names):
        made.add_row(*row)
    return made


def markdown(records: Sequence[Record], names: Sequence[str]) -> str:
    """For docs/campaign.md."""
    lines = [HEAD, ("---",) * len(HEAD), *rows(records, names)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """What was said of each class of faults, a line each: "quota: 4 × cgroup CPU quota, 1 × nothing"."""
    found = []
    for name in names:
        runs = [r for r in records if r.fault == name and not r.cannot]
        if runs and runs[0].subjects:
            said = Counter(_said(r) for r in runs)
            found.append(f"{name}: " + ", ".join(f"{count} × {what}" for what, count in said.most_common()))
    return found


def cannot(records: Sequence[Record]) -> list[str]:
    """What could not be injected, a line each, and why."""
    return sorted({f"{r.fault}: {r.cannot}" for r in records if r.cannot})


def summary(records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """All of it. What is not known is None."""
    made = {name: [r for r in records if r.fault == name] for name in names}
    scores = {name: score(runs) for name, runs in (*made.items(), (ALL, records))}
    return {
        "classes": {name: _plain(one) for name, one in scores.items() if one.runs},
        "told": told(records, names),
        "cannot": cannot(records),
    }


def _said(record: Record) -> str:
    if record.told is None:
        return "nothing"
    whom = "" if record.right_instance else f" of {record.told.subject}"
    return f"{record.told.mechanism or 'no cause'}{whom}"


def _row(name: str, runs: Sequence[Record]) -> tuple[str, ...]:
    latencies = _change([r.before for r in runs], [r.during for r in runs], "p99_seconds", 1e3)
    errors = _change([r.before for r in runs], [r.during for r in runs], "error_ratio", 100)
    return (name, str(len(runs)), latencies, errors, *_of_score(runs))


def _of_score(runs: Sequence[Record]) -> tuple[str, ...]:
    one = score(runs)
    known = math.isfinite(one.delay_median_seconds)
    delay = f"{one.delay_median_seconds:.1f}–{one.delay_worst_seconds:.1f}" if known else "–"
    return (delay, *map(_share, (one.recall, one.precision, one.right_instance, one.right_mechanism, one.quiet)))


def _share(share: Share) -> str:
    low, high = share.interval
    return f"{share.successes}/{share.trials} ({100 * low:.0f}–{100 * high:.0f})" if share.trials else "–"


def _change(before: Sequence[Clients | None], during: Sequence[Clients | None], what: str, factor: float) -> str:
    """The medians of the runs, before the fault and under it."""
    sides = ([getattr(c, what) for c in side if c and getattr(c, what) is not None] for side in (before, during))
    return " → ".join(f"{statistics.median(s) * factor:.0f}" if s else "–" for s in sides)


def _plain(one: Score) -> dict[str, Any]:
    shares = ("recall", "precision", "right_instance", "right_mechanism", "quiet")
    plain: dict[str, Any] = {
        key: value if math.isfinite(value) else None for key, value in asdict(one).items() if key not in shares
    }
    for key in shares:
        share: Share = getattr(one, key)
        if share.trials:
            plain[key] = {"of": share.trials, "value": share.value, "low": share.interval[0], "high": share.interval[1]}
    return plain
