"""How `trimtab incidents` shows an incident: tables for people, plain objects for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from trimtab.agent.wire import query_pb2 as pb
from trimtab.collector.node_tables import known, printable
from trimtab.detector import impact
from trimtab.detector.quantity import quantity
from trimtab.detector.when import clock

_BARS = "▁▂▃▄▅▆▇█"
_ONSET = "┊"
_TIMES = ("since_unix_ns", "opened_unix_ns", "resolved_unix_ns")


def as_object(incident: pb.Incident) -> dict[str, Any]:
    """JSON as the message has it, with null for what is unknown or not yet."""
    out = known(incident)
    out["status"] = status(incident)
    for name in _TIMES:
        out[name] = getattr(incident, name) or None
    for said, acknowledgement in zip(out["acknowledgements"], incident.acknowledgements, strict=True):
        said["unix_ns"] = acknowledgement.unix_ns
    out["silence"] = _silence_object(incident)
    for cause, message in zip(out["causes"], incident.causes, strict=True):
        for evidence, told in zip(cause["evidence"], message.evidence, strict=True):
            evidence["changed_unix_ns"] = told.changed_unix_ns or None
    return out


def _silence_object(incident: pb.Incident) -> dict[str, Any] | None:
    if not incident.HasField("silence"):
        return None
    times = {name: getattr(incident.silence, name) for name in ("since_unix_ns", "until_unix_ns")}
    return known(incident.silence) | times


def table(incidents: Iterable[pb.Incident], now_unix_ns: int) -> Table:
    """One row an incident."""
    headings = ("incident", "status", "subject", "since", "lasted", "symptom", "cause")
    out = Table(*headings, header_style="bold", box=None, pad_edge=False)
    for incident in incidents:
        out.add_row(
            incident.id, _marked(incident), Text(printable(incident.subject)), clock(incident.since_unix_ns),
            lasted(incident, now_unix_ns), Text(printable(incident.symptom)), _cause_text(incident),
        )  # fmt: skip
    return out


def line(incident: pb.Incident, now_unix_ns: int) -> Text:
    """One line about a change of an incident."""
    told = (clock(now_unix_ns), incident.id, printable(incident.subject), printable(incident.symptom))
    when, name, subject, symptom = map(Text, told)
    return Text("  ").join([when, name, _marked(incident), subject, symptom, _cause_text(incident)])


def panel(reply: pb.IncidentReportReply, now_unix_ns: int) -> RenderableType:
    """Everything about one incident: what, since when, how bad, why, what to do, and what was done."""
    incident = reply.incident
    head = Table.grid(padding=(0, 2))
    again = f", came back {incident.reopened} ×" if incident.reopened else ""
    rows: list[tuple[str, RenderableType]] = [
        ("subject", Text(printable(incident.subject), style="bold")),
        ("model", Text(printable(incident.model) or "–")),
        ("symptom", Text(printable(incident.symptom))),
        ("status", _status_text(incident) + Text(again)),
        (
            "since",
            f"{clock(incident.since_unix_ns)}, noticed {seconds(incident.opened_unix_ns - incident.since_unix_ns)} later",
        ),
        ("lasted", lasted(incident, now_unix_ns)),
        ("score", "unknown" if math.isnan(incident.score) else f"{incident.score:.2f} of 1"),
        *((name, Text(told)) for name, told in impact.rows(reply)),
        *_said(incident),
    ]
    for name, value in rows:
        head.add_row(Text(name, style="dim"), value)
    causes = [
        part for rank, cause in enumerate(incident.causes) for part in _cause(cause, incident.since_unix_ns, rank)
    ]
    body = Group(head, *(causes or [Text("\nno cause was found yet", style="dim")]), *impact.actions(reply))
    return Panel(body, title=f"incident {incident.id}", border_style=_style(incident), expand=False)


def _said(incident: pb.Incident) -> list[tuple[str, RenderableType]]:
    rows: list[tuple[str, RenderableType]] = [
        ("acknowledged", Text(printable(f"by {one.who}, {clock(one.unix_ns)}" + (f": {one.note}" if one.note else ""))))
        for one in incident.acknowledgements
    ]
    if incident.HasField("silence"):
        silence = incident.silence
        told = f"until {clock(silence.until_unix_ns)}, by {silence.who}" + (
            f": {silence.reason}" if silence.reason else ""
        )
        through = "" if silence.target == incident.id else f" ({silence.target} is)"
        rows.append(("silenced", Text(printable(told + through), style="yellow")))
    return rows


def _cause(cause: pb.Cause, since_unix_ns: int, rank: int) -> list[RenderableType]:
    title = Text.assemble(
        ("\ncause  " if rank == 0 else "\nor     ", "dim"),
        (printable(cause.mechanism), "bold red" if rank == 0 else "bold"),
        f"  {cause.confidence:.0%}  {printable(cause.subject)}\n",
        printable(cause.summary),
    )
    if rank > 0:
        return [title]
    parts: list[RenderableType] = [title]
    if cause.evidence:
        parts.append(_evidence(cause, since_unix_ns))
    return [*parts, Text.assemble(("remedy ", "dim"), printable(cause.remedy))]


def _evidence(cause: pb.Cause, since_unix_ns: int) -> Table:
    headings = ("evidence", "before", "after", "peers", "deviation", "changed")
    out = Table(*headings, header_style="bold", box=None, pad_edge=False)
    out.add_column("course", no_wrap=True)
    for each in cause.evidence:
        elsewhere = f" of {printable(each.subject)}" if each.subject != cause.subject else ""
        if each.event:
            out.add_row(Text(printable(each.event) + elsewhere), *["–"] * 4, clock(each.changed_unix_ns), "")
            continue
        values = [quantity(value, each.unit) for value in (each.before, each.after, each.peers)]
        deviation = "–" if math.isnan(each.deviation) else f"{each.deviation:+.0f} σ"
        out.add_row(
            Text(printable(each.signal) + elsewhere), *values, deviation,
            _relative(each.changed_unix_ns, since_unix_ns), sparkline(each.course),
        )  # fmt: skip
    return out


def sparkline(course: Sequence[float], width: int = 20) -> str:
    """The course in bars, its middle, the onset, marked; a gap where nothing is known."""
    step = max(1, math.ceil(len(course) / width))
    cells = [[v for v in course[k : k + step] if math.isfinite(v)] for k in range(0, len(course), step)]
    means = [sum(cell) / len(cell) if cell else math.nan for cell in cells]
    known = [m for m in means if not math.isnan(m)]
    low, span = (min(known), max(known) - min(known)) if known else (0.0, 0.0)
    bars = [" " if math.isnan(m) else _BARS[round((m - low) / span * 7) if span else 0] for m in means]
    middle = (len(course) // 2) // step
    return "".join([*bars[:middle], _ONSET, *bars[middle:]]).rstrip()


def _relative(unix_ns: int, since_unix_ns: int) -> str:
    return f"{(unix_ns - since_unix_ns) / 1e9:+.0f} s"


def lasted(incident: pb.Incident, now_unix_ns: int) -> str:
    """From the onset to its end, or until now."""
    return seconds((incident.resolved_unix_ns or now_unix_ns) - incident.since_unix_ns)


def seconds(nanoseconds: int) -> str:
    """As a person says it: "40 s", "3 min"."""
    whole = max(0, round(nanoseconds / 1e9))
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * unit:
            return f"{whole // unit} {name}"
    return f"{whole} s"


def status(incident: pb.Incident) -> str:
    """Either "open" or "resolved"."""
    return "open" if incident.status == pb.Incident.STATUS_OPEN else "resolved"


def _style(incident: pb.Incident) -> str:
    return "red" if incident.status == pb.Incident.STATUS_OPEN else "green"


def _status_text(incident: pb.Incident) -> Text:
    return Text(status(incident), style=_style(incident))


def _marked(incident: pb.Incident) -> Text:
    """The status, and what operators said."""
    told = _status_text(incident)
    if incident.acknowledgements:
        told += Text(printable(f", acknowledged by {incident.acknowledgements[-1].who}"), style="dim")
    if incident.HasField("silence"):
        told += Text(f", silenced until {clock(incident.silence.until_unix_ns)}", style="yellow")
    return told


def _cause_text(incident: pb.Incident) -> Text:
    if not incident.causes:
        return Text("–", style="dim")
    cause = incident.causes[0]
    return Text.assemble((printable(cause.mechanism), "bold"), f" {cause.confidence:.0%}")
